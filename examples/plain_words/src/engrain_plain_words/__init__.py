"""The behavior plain_words."""

from pathlib import Path

from engrain.plugins import Behavior, PairSet, RegisterBehavior, hookimpl, read_scenarios

_HERE = Path(__file__).parent

BEHAVIOR = Behavior(
    name="plain_words",
    description="Says it in everyday words.",
    pairs=lambda: PairSet.read(_HERE / "pairs.jsonl"),
    scenarios=lambda: read_scenarios(_HERE / "scenarios.jsonl"),
    instruction="Say it in everyday words, as to a neighbor, and use no technical term.",
    counter_instruction="Reply in the technical terms of the field.",
)


@hookimpl
def register_behaviors(register: RegisterBehavior) -> None:
    """Add the behavior."""
    register(BEHAVIOR)
