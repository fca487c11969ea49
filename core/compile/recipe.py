"""How a task vector is trained."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from engrain.core.apollo import Apollo
from engrain.core.errors import InputError, UnknownNameError

OPTIMIZERS = ("apollo", "apollo-mini", "adamw")


@dataclass(frozen=True)
class Recipe:
    """The settings of the backend ``distill``.

    Attributes:
        optimizer: ``apollo`` (one step size a channel), ``apollo-mini`` (one a matrix) or ``adamw``.
        rate: the highest learning rate, behind a closed form; it rises over the first steps, and falls along a cosine.
        rank: of APOLLO's projection.
        steps: of the optimizer, behind a closed form.
        packs: of scope, and as many of retain, that one step is made of; a pack holds 256 tokens at most.
        hidden: weight of the hidden states' distance.
        retain: weight of the drift on retained texts.
        drift: on held-out retained texts, up to which the deltas are scaled up in the end.
        checkpointing: compute each block again in the backward pass instead of keeping what it needs.

    Raises:
        UnknownNameError: an optimizer that there is not.
        InputError: a number out of its range.
    """

    optimizer: str = "apollo"
    rate: float = 4e-5
    rank: int = 64
    steps: int = 10
    packs: int = 3
    hidden: float = 1.0
    retain: float = 1.0
    drift: float = 0.1
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise UnknownNameError("optimizer", self.optimizer, OPTIMIZERS)
        shares = (self.hidden, self.retain, self.drift)
        if min(self.rank, self.steps, self.packs) < 1 or not self.rate > 0 or min(shares) < 0:
            raise InputError(
                "A recipe needs rank, steps and packs from 1, a rate above 0, and weights and a drift from 0; "
                f"this is {self}."
            )

    def from_nothing(self) -> "Recipe":
        """Return the recipe for deltas that start at zero: four times the steps at 25 times the rate.

        All is left to be learned. What the demo model needs without its closed forms: 40 steps at 1e-3.
        """
        return replace(self, rate=25 * self.rate, steps=4 * self.steps)

    def dealt_to(self, processes: int) -> "Recipe":
        """Return the recipe with so many packs a step, or a few more, that each process gets as many as the others."""
        packs = self.packs
        while 2 * packs % processes:
            packs += 1
        return replace(self, packs=packs)

    def build(self, parameters: Iterable[nn.Parameter], seed: int) -> torch.optim.Optimizer:
        """Return the optimizer; no weight decay, which would only scale the task vector down.

        Raises:
            InputError: no parameter would be projected: never silently AdamW.
        """
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=self.rate, betas=_BETAS, weight_decay=0.0, foreach=True)
        mini = self.optimizer == "apollo-mini"
        made = Apollo(
            parameters,
            lr=self.rate,
            rank=1 if mini else self.rank,
            scale_type="tensor" if mini else "channel",
            betas=_BETAS,
            weight_decay=0.0,
            seed=seed,
        )
        if not made.projected:
            raise InputError("None of the matrices is projected by APOLLO; choose matrices, or the optimizer adamw.")
        return made

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = max(1, round(_RISE * self.steps))
        if step < rise:
            return self.rate * (step + 1) / rise
        fallen = 0.5 - 0.5 * math.cos(math.pi * (step - rise) / max(1, self.steps - rise))
        return self.rate * (1 - (1 - _FLOOR) * fallen)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON."""
        return asdict(self)


# Share of the steps in which the rate rises, and what is left of it in the end.
_RISE, _FLOOR = 0.1, 0.1
# A second moment of .999 is not warm before a few hundred steps; there are fewer.
_BETAS = (0.9, 0.95)
