"""Base against edited on pairs and on neutral text."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engrain.core.contrast import ContrastPair, PairSet
from engrain.core.errors import DataError
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.scoring import Divergence, NeutralScorer, bootstrap_interval, margins

Edit = Callable[[], AbstractContextManager[object]]
Progress = Callable[[str, int], None]


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
        effect: edited margin minus base margin, nats.
        effect_ci95: its 95 % paired bootstrap interval over scenarios, or None with fewer than two scenarios.
    """

    base: Preference
    edited: Preference
    effect: float
    effect_ci95: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return {
            "base": self.base.to_json(),
            "edited": self.edited.to_json(),
            "effect": self.effect,
            "effect_ci95": None if self.effect_ci95 is None else list(self.effect_ci95),
        }


@dataclass(frozen=True)
class Evaluation:
    """What an edit does.

    Attributes:
        ordinary: on the pairs that are not boundary pairs.
        boundary: on the boundary pairs, or None when there is none.
        neutral: on neutral text.
        seed: of the bootstrap.
    """

    ordinary: Comparison
    boundary: Comparison | None
    neutral: Divergence
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``engrain evaluate --json`` prints."""
        return {
            **self.ordinary.to_json(),
            "boundary": None if self.boundary is None else self.boundary.to_json(),
            "neutral": self.neutral.to_json(),
            "seed": self.seed,
        }


def evaluate(
    model: SteerableModel,
    pairs: PairSet,
    neutral: Sequence[Encoded],
    edit: Edit,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a model with an edit of it.

    Args:
        model: the model, unedited.
        pairs: pairs that the edit was not made from.
        neutral: texts that the edit should leave alone.
        edit: makes a context in which the model is edited.
        seed: of the bootstrap.
        progress: called with "pairs" or "neutral" and the number of them done since the last call; each pair counts
            twice, once for either model.

    Raises:
        DataError: no ordinary pair.
    """
    if not pairs.ordinary:
        raise DataError(
            pairs.source, None, "holds no pair that is not a boundary pair, so there is no effect to measure."
        )

    def count(what: str) -> Callable[[int], None] | None:
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
        seed,
    )


def _compare(pairs: Sequence[ContrastPair], before: Tensor, after: Tensor, seed: int) -> Comparison:
    scenarios = [pair.scenario for pair in pairs]
    interval = bootstrap_interval(after - before, scenarios, seed=seed) if len(set(scenarios)) > 1 else None
    return Comparison(_preference(before), _preference(after), float((after - before).mean()), interval)


def _preference(found: Tensor) -> Preference:
    return Preference(float(found.mean()), float((found > 0).double().mean()), len(found))
