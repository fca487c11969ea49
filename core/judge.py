"""Judges of free replies: how much of a behavior a reply shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engrain.core.brief import Brief
from engrain.core.capture import PackRunner
from engrain.core.contrast import Message
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.progress import Count
from engrain.core.scoring import reply_means


@dataclass(frozen=True)
class Exchange:
    """A user's message and a model's reply to it, both untrusted text."""

    prompt: str
    reply: str


class Judge(Protocol):
    """Says of each reply how much of the behavior it shows; more is more."""

    @property
    def name(self) -> str:
        """What ``--judge`` calls it, its argument behind a colon."""

    @property
    def unit(self) -> str:
        """What a score counts: "nats", "points"."""

    def score(self, exchanges: Sequence[Exchange], progress: Count | None = None) -> list[float]:
        """Return a finite score for each exchange, or raise: there is no score for want of an answer.

        Args:
            exchanges: what to judge.
            progress: called with the number of exchanges judged since the last call.
        """


class ContrastiveJudge:
    """Asks the unedited model itself: is the reply likelier when the behavior is asked for than when its opposite is?

    The score is the mean log-probability per reply token behind the one system prompt minus that behind the other.
    An empty reply scores 0.

    Args:
        model: the judge; call it outside of any edit.
        brief: the behavior.
    """

    name = "contrastive"
    unit = "nats"

    def __init__(self, model: SteerableModel, brief: Brief) -> None:
        self._model = model
        self._instructions = (brief.instruction, brief.counter_instruction)

    def score(self, exchanges: Sequence[Exchange], progress: Count | None = None) -> list[float]:
        """Return the scores, nats per token."""
        spoken = [place for place, one in enumerate(exchanges) if one.reply]
        sequences = [
            self._model.encode(
                [Message("system", asked), Message("user", exchanges[place].prompt)], exchanges[place].reply
            )
            for asked in self._instructions
            for place in spoken
        ]
        found = [0.0] * len(exchanges)
        if spoken:
            means = reply_means(PackRunner(self._model, sequences), sequences)
            for place, score in zip(spoken, (means[: len(spoken)] - means[len(spoken) :]).tolist(), strict=True):
                found[place] = score
        if progress is not None:
            progress(len(exchanges))
        return found


def contrastive(model: SteerableModel, brief: Brief, argument: str) -> ContrastiveJudge:
    """Make the judge that ``--judge contrastive`` names.

    Raises:
        InputError: an argument, which it does not take.
    """
    if argument:
        raise InputError(
            f"The judge 'contrastive' takes no argument, '{argument}' is given; write --judge contrastive."
        )
    return ContrastiveJudge(model, brief)
