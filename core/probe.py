"""A direction as the weights of a logistic probe."""

import torch
from torch import Tensor

from engrain.core.errors import InputError


class LogisticProbe:
    """Normal of the plane that a logistic regression puts between the two sides (Li et al., arXiv 2306.03341).

    The length is the mean projection of the differences, so that its strength reads as a mean difference's does.
    Unlike the other estimators it has to see all pairs at once: 8 * pairs * d_model bytes for each layer.
    """

    def __init__(self, width: int) -> None:
        try:
            import sklearn.linear_model  # noqa: F401  (an optional dependency, missed before any work is done)
        except ImportError as error:
            raise InputError("The probe needs scikit-learn: pip install 'engrain[probe]'.") from error
        self._width = width
        self._positive: list[Tensor] = []
        self._negative: list[Tensor] = []

    def update(self, positive: Tensor, negative: Tensor) -> None:
        """Take in some pairs, both [pairs, d_model]."""
        self._positive.append(positive)
        self._negative.append(negative)

    def direction(self) -> Tensor:
        """Return the normal, [d_model], pointing to the positive side."""
        from sklearn.linear_model import LogisticRegression

        positive, negative = torch.cat(self._positive).double(), torch.cat(self._negative).double()
        states = torch.cat([positive, negative])
        mean, spread = states.mean(dim=0), states.std(dim=0).clamp_min(1e-12)
        sides = [1] * len(positive) + [0] * len(negative)
        fitted = LogisticRegression(C=0.1, max_iter=2000).fit(((states - mean) / spread).numpy(), sides)
        # Back from standardised coordinates to the residual stream's own.
        normal = torch.from_numpy(fitted.coef_[0]) / spread
        normal = normal / normal.norm()
        direction: Tensor = normal * (normal @ (positive - negative).mean(dim=0))
        return direction.float()
