"""Base against edited on pairs and on neutral text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engrain.core.change import Change
from engrain.core.contrast import ContrastPair, PairSet
from engrain.core.edit import Edit
from engrain.core.errors import DataError
from engrain.core.fluency import Degeneration
from engrain.core.judge import Judge
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.progress import Count, Progress
from engrain.core.replies import Judgement, Replies
from engrain.core.scorer import Scorer
from engrain.core.scoring import Divergence, NeutralScorer, margins


@dataclass(frozen=True)
class Preference:
    """What a model prefers on a set of pairs.

    Attributes:
        margin: mean over pairs of (mean log-probability per reply token of the positive - of the negative), nats.
        win_rate: share of pairs whose margin is above 0.
        n: number of pairs.
    """

    margin: float
    win_rate: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return {"margin": self.margin, "win_rate": self.win_rate, "n": self.n}


@dataclass(frozen=True)
class Comparison:
    """Base and edited on the same pairs.

    Attributes:
        base: the unedited model.
        edited: the edited model.
        change: of the margin, nats, its interval over scenarios.
    """

    base: Preference
    edited: Preference
    change: Change

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        interval = self.change.ci95
        return {
            "base": self.base.to_json(),
            "edited": self.edited.to_json(),
            "effect": self.change.effect,
            "effect_ci95": None if interval is None else list(interval),
        }


@dataclass(frozen=True)
class Evaluation:
    """What an edit does.

    Attributes:
        ordinary: on the pairs that are not boundary pairs.
        boundary: on the boundary pairs, or None when there is none.
        neutral: on neutral text.
        scores: other scores on the ordinary pairs, by name.
        free: what became of free replies, or None when none were asked for.
        seed: of the bootstrap.
    """

    ordinary: Comparison
    boundary: Comparison | None
    neutral: Divergence
    scores: Mapping[str, Change]
    free: "FreeReplies | None"
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``engrain evaluate --json`` prints."""
        return {
            **self.ordinary.to_json(),
            "boundary": None if self.boundary is None else self.boundary.to_json(),
            "neutral": self.neutral.to_json(),
            "scores": {name: change.to_json() for name, change in self.scores.items()},
            "free_replies": None if self.free is None else self.free.to_json(),
            "seed": self.seed,
        }


@dataclass(frozen=True)
class FreeReplies:
    """Replies of both models to users' messages, fluent or not, and judged."""

    degeneration: Degeneration
    judgement: Judgement
    replies: Replies

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return {
            "judged": self.judgement.to_json(),
            "degeneration": self.degeneration.to_json(),
            "replies": self.replies.to_json(),
        }


def evaluate(
    model: SteerableModel,
    pairs: PairSet,
    neutral: Sequence[Encoded],
    edit: Edit,
    *,
    scorers: Mapping[str, Scorer] | None = None,
    prompts: Sequence[str] = (),
    judge: Judge | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a model with an edit of it.

    Args:
        model: the model, unedited.
        pairs: pairs that the edit was not made from.
        neutral: texts that the edit should leave alone.
        edit: makes a context in which the model is edited.
        scorers: what to score on the ordinary pairs besides the margin, by name.
        prompts: users' messages to reply to freely, when there is a judge.
        judge: who scores the free replies, or None for no replies.
        seed: of the bootstrap.
        progress: called with "pairs", "neutral", "scores", "replies" or "judged replies" and the number of them done
            since the last call; pairs and replies count twice, once for either model.

    Raises:
        DataError: no ordinary pair.
    """
    if not pairs.ordinary:
        raise DataError(
            pairs.source, None, "holds no pair that is not a boundary pair, so there is no effect to measure."
        )

    def count(what: str) -> Count | None:
        return None if progress is None else lambda done: progress(what, done)

    before = margins(model, pairs.pairs, count("pairs"))
    with edit():
        after = margins(model, pairs.pairs, count("pairs"))
    apart = [pair.boundary for pair in pairs]

    def compare(boundary: bool) -> Comparison:
        chosen = [place for place, one in enumerate(apart) if one == boundary]
        return _compare([pairs[place] for place in chosen], before[chosen], after[chosen], seed)

    return Evaluation(
        compare(False),
        compare(True) if any(apart) else None,
        NeutralScorer(model, neutral).divergence(edit, count("neutral")),
        {
            name: change_under(model, pairs.ordinary, scorer, edit, seed=seed, progress=count("scores"))
            for name, scorer in (scorers or {}).items()
        },
        None if judge is None else _free_replies(model, prompts, judge, edit, seed, count),
        seed,
    )


def _free_replies(
    model: SteerableModel,
    prompts: Sequence[str],
    judge: Judge,
    edit: Edit,
    seed: int,
    count: Callable[[str], Count | None],
) -> FreeReplies:
    replies = Replies.sample(model, prompts, edit, count("replies"))
    degeneration = replies.degeneration(model)
    judgement = replies.judged(judge, degeneration.incoherent, seed=seed, progress=count("judged replies"))
    return FreeReplies(degeneration, judgement, replies)


def change_under(
    model: SteerableModel,
    pairs: PairSet,
    scorer: Scorer,
    edit: Edit,
    *,
    seed: int = 0,
    progress: Count | None = None,
) -> Change:
    """Return how an edit changes a score on pairs, with the interval over scenarios."""
    base = scorer(model, pairs.pairs, progress)
    with edit():
        edited = scorer(model, pairs.pairs, progress)
    return Change.between(base, edited, [pair.scenario for pair in pairs], seed)


def _compare(pairs: Sequence[ContrastPair], before: Tensor, after: Tensor, seed: int) -> Comparison:
    change = Change.between(before, after, [pair.scenario for pair in pairs], seed)
    return Comparison(_preference(before), _preference(after), change)


def _preference(found: Tensor) -> Preference:
    return Preference(float(found.mean()), float((found > 0).double().mean()), len(found))
