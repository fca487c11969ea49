"""A behavior in words."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Brief:
    """A behavior in words.

    Attributes:
        name: what it is called.
        description: one sentence.
        instruction: a system prompt that asks for it.
        counter_instruction: a system prompt that asks for its opposite.
    """

    name: str
    description: str
    instruction: str
    counter_instruction: str
