"""What a scorer is, and the one that is made of the preference margin."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from engrain.core.contrast import ContrastPair
from engrain.core.model import SteerableModel
from engrain.core.progress import Count
from engrain.core.scoring import margins


class Scorer(Protocol):
    """Scores a model, with whatever edit is on it, on contrast pairs: more is more of the behavior."""

    def __call__(self, model: SteerableModel, pairs: Sequence[ContrastPair], progress: Count | None = None) -> Tensor:
        """Return one finite number per pair, float64 [pairs].

        Args:
            model: the model.
            pairs: contrast pairs.
            progress: called with the number of pairs done since the last call.
        """


def wins(model: SteerableModel, pairs: Sequence[ContrastPair], progress: Count | None = None) -> Tensor:
    """Return 1 for each pair whose positive reply the model prefers, else 0."""
    return (margins(model, pairs, progress) > 0).double()
