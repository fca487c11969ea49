"""A score of the base and of the edited model on the same items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engrain.core.scoring import bootstrap_interval

Values = Sequence[float] | Tensor | NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """What an edit does to a score.

    Attributes:
        base: mean of the unedited model.
        edited: mean of the edited model.
        effect: the mean of edited minus base.
        ci95: its 95 % paired bootstrap interval over groups, or None with fewer than two groups.
        n: number of items.
    """

    base: float
    edited: float
    effect: float
    ci95: tuple[float, float] | None
    n: int

    @classmethod
    def between(cls, base: Values, edited: Values, groups: Sequence[str], seed: int = 0) -> "Change":
        """Return the change of a score.

        Args:
            base: one number per item.
            edited: the same of the edited model.
            groups: which items are drawn together in the bootstrap.
            seed: of the bootstrap.
        """
        before, after = (np.asarray(side, dtype=np.float64) for side in (base, edited))
        interval = bootstrap_interval(after - before, groups, seed=seed) if len(set(groups)) > 1 else None
        return cls(float(before.mean()), float(after.mean()), float((after - before).mean()), interval, len(before))

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Change":
        """Return what ``to_json`` wrote."""
        return cls(**{**found, "ci95": found["ci95"] and tuple(found["ci95"])})

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return vars(self) | {"ci95": None if self.ci95 is None else list(self.ci95)}
