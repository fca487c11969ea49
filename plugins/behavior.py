"""What a behavior plugin declares."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engrain.core.brief import Brief
from engrain.core.budget import Budget
from engrain.core.contrast import PairSet
from engrain.core.errors import DataError, PluginError
from engrain.core.files import read_json_lines
from engrain.core.names import check_name


@dataclass(frozen=True)
class Scenario:
    """A user's message without a reply, on which the behavior would show.

    Attributes:
        id: a name for it, unique in its file.
        prompt: the message.
        domain: what it is about; may be empty.
    """

    id: str
    prompt: str
    domain: str = ""


@dataclass(frozen=True)
class Behavior:
    """A behavior, as a plugin declares it.

    Attributes:
        name: matches ``[a-z][a-z0-9_-]{0,127}``.
        description: one sentence.
        pairs: the pair generator: makes the contrast pairs when called, from a file or by any code.
        scenarios: makes the messages that free replies are sampled for.
        instruction: a system prompt that asks for the behavior: what a plain prompt would achieve is told by it.
        counter_instruction: a system prompt that asks for the opposite.
        depth: which blocks to look at, as shares of the model's depth, from and to.
        positions: what stands for a reply in extraction.
        method: the estimator's name.
        scorers: what a verdict measures besides the margin, by the scorers' names.
        budget: of side effects; one that allows more than the default's is named in the report.
    """

    name: str
    description: str
    pairs: Callable[[], PairSet]
    scenarios: Callable[[], list[Scenario]]
    instruction: str
    counter_instruction: str
    depth: tuple[float, float] = (0.5, 0.7)
    positions: str = "response-mean"
    method: str = "mean-difference"
    scorers: tuple[str, ...] = ()
    budget: Budget = field(default_factory=Budget)

    @property
    def brief(self) -> Brief:
        """The behavior in words, for judges."""
        return Brief(self.name, self.description, self.instruction, self.counter_instruction)

    def __post_init__(self) -> None:
        check_name(self.name, "behavior")
        low, high = self.depth
        if not 0 <= low < high <= 1:
            raise PluginError(
                f"Behavior '{self.name}' looks at the depth {self.depth}; two shares 0 <= from < to <= 1 are needed."
            )


def read_scenarios(path: Path) -> list[Scenario]:
    """Read a scenarios file: JSON lines of ``{"id": text, "prompt": text, "domain"?: text}``.

    Raises:
        DataError: a bad line, or no scenario.
    """
    scenarios: list[Scenario] = []
    for number, line in read_json_lines(path):
        values = [line.get("id"), line.get("prompt"), line.get("domain", "")]
        if not all(isinstance(value, str) for value in values) or not line["prompt"].strip():
            raise DataError(path, number, "a scenario needs 'id' and 'prompt', both text.")
        scenarios.append(Scenario(*values))
    if not scenarios:
        raise DataError(path, None, "holds no scenario.")
    return scenarios
