"""What an edit may cost on text that it should leave alone."""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engrain.core.scoring import Divergence


@dataclass(frozen=True)
class Budget:
    """Bounds on the side effects of an edit.

    Attributes:
        kl_mean: mean KL(base || edited) on neutral text, nats.
        kl_p95: its 95th percentile over positions, nats.
        perplexity: how many times the perplexity of neutral text may become.
    """

    kl_mean: float = 0.2
    kl_p95: float = 1.0
    perplexity: float = 1.15

    def load(self, found: "Divergence") -> float:
        """Return which share of the budget is used by the side effect that uses most of it; above 1 breaks it.

        Each of them grows about with the square of a small strength.
        """
        loss = math.log(max(found.perplexity_ratio, 1.0)) / math.log(self.perplexity)
        return max(found.kl_mean / self.kl_mean, found.kl_p95 / self.kl_p95, loss)

    def faults(self, found: "Divergence") -> list[str]:
        """Return which bounds are broken, one phrase each."""
        bounds = (
            ("neutral KL", found.kl_mean, self.kl_mean),
            ("neutral KL at the 95th percentile", found.kl_p95, self.kl_p95),
            ("perplexity ratio on neutral text", found.perplexity_ratio, self.perplexity),
        )
        return [f"{what} {value:.3g} is above {bound:g}" for what, value, bound in bounds if not value <= bound]

    def looser(self) -> list[str]:
        """Return in what it allows more than the default, one phrase each."""
        default = Budget()
        bounds = [(one.name, getattr(self, one.name), getattr(default, one.name)) for one in fields(self)]
        return [f"{name} up to {own:g} instead of {usual:g}" for name, own, usual in bounds if own > usual]
