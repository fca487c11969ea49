"""What is trained: the deltas, their optimizer, how far it is, and the best of what was seen on held-out texts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engrain.core.compile.checkpoint import Checkpoint, pack_optimizer, unpack_optimizer
from engrain.core.compile.delta import TrainableDelta
from engrain.core.compile.lesson import Lesson
from engrain.core.compile.measure import Measure
from engrain.core.compile.ranks import dealt, rank, sum_up, summed
from engrain.core.compile.recipe import Recipe

# Steps between two looks at the held-out texts, and how many in a row may be no better than the best.
LOOK, PATIENCE = 10, 3
_CLIP = 1.0
# By how much the deltas are scaled up at a time, and how often at most.
_RUNG, _UPWARD = 0.05, 10


class Student:
    """Deltas in training. Its state is whole after every look: saved there and restored, it ends the same to the bit.

    Args:
        delta: what is trained.
        recipe: how.
        seed: of the optimizer and of the order of the packs.

    Attributes:
        step: how many steps were taken.
        curve: what each look saw: step, loss (the mean since the last look), and closeness.
        stopped: why it ended before its last step, or None.

    Raises:
        InputError: the optimizer projects none of the matrices.
    """

    def __init__(self, delta: TrainableDelta, recipe: Recipe, seed: int) -> None:
        self.delta = delta
        self.step = 0
        self.curve: list[dict[str, Any]] = []
        self.stopped: str | None = None
        self._recipe = recipe
        self._seed = seed
        self._parameters = list(delta.parameters.values())
        self._optimizer = recipe.build(self._parameters, seed)
        self._losses: list[float] = []
        self._best: dict[str, Tensor] = {}

    @property
    def goes_on(self) -> bool:
        """Whether there is another step to take."""
        return self.stopped is None and self.step < self._recipe.steps

    @property
    def best(self) -> dict[str, Any]:
        """What the best look saw."""
        return min(self.curve, key=lambda look: float(look["short"]))

    def learn(self, lessons: Sequence[Lesson]) -> None:
        """Take one step; none where the loss or its gradient is no number, which ends the training."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.rate_at(self.step)
        self._optimizer.zero_grad(set_to_none=True)
        drawn = [(lesson, *one) for lesson in lessons for one in lesson.draw(self.step, self._recipe.packs, self._seed)]
        loss = 0.0
        for lesson, number, share in dealt(drawn):
            recorded = lesson.course[number]
            with self.delta.active():
                loss += share * lesson.objective.descend(recorded, share)
        loss = summed(loss)
        sum_up([parameter.grad for parameter in self._parameters if parameter.grad is not None])
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, _CLIP))
        if not math.isfinite(loss + norm):
            self.stopped = f"the loss was {loss} and its gradient {norm} at step {self.step + 1}"
            return
        self._optimizer.step()
        self._losses.append(loss)
        self.step += 1

    def look(self, measure: Measure, *, faithful: bool = False) -> None:
        """See how close it is on the held-out texts, keep it if it is the best, and end where it no longer gets closer.

        Args:
            measure: of the held-out texts.
            faithful: leave the drift out of what is best.
        """
        seen = measure.closeness(self.delta.active)
        short = 1 - seen.kl_recovered if faithful else seen.loss
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses = []
        look = {"step": self.step, "loss": loss, "kl_recovered": seen.kl_recovered, "drift": seen.drift, "short": short}
        self.curve.append(look)
        if self.best is look:
            self._best = {name: delta.detach().clone() for name, delta in self.delta.parameters.items()}
        elif len(self.curve) - 1 - self.curve.index(self.best) >= PATIENCE and self.goes_on:
            self.stopped = f"no closer to the teacher since step {self.best['step']}"

    def turn_up(self, measure: Measure, allowed: float) -> dict[str, float]:
        """Put the deltas to those of the best look, scaled up as long as that brings them closer in scope.

        Whatever is fitted with a ridge, and to leave other texts alone, falls short: it points where it should and is
        too small.

        Args:
            measure: of the held-out texts.
            allowed: the drift that scaling may lead to.

        Returns:
            The scale, and how close the deltas are.
        """
        chosen = {"scale": 1.0} | {name: self.best[name] for name in ("kl_recovered", "drift")}
        for step in range(1, _UPWARD + 1):
            scale = 1 + step * _RUNG
            self._take_best(scale)
            seen = measure.closeness(self.delta.active)
            if seen.drift > allowed or seen.kl_recovered <= chosen["kl_recovered"]:
                break
            chosen = {"scale": scale, "kl_recovered": seen.kl_recovered, "drift": seen.drift}
        self._take_best(chosen["scale"])
        return chosen

    @torch.no_grad()
    def _take_best(self, scale: float) -> None:
        for name, delta in self.delta.parameters.items():
            delta.copy_(scale * self._best[name])

    def save(self, folder: Path, key: str) -> None:
        """Write a checkpoint; the one before stays when this one cannot be written. Of several processes, one does.

        Raises:
            InputError: the folder cannot be written to.
        """
        if rank():
            return
        moments, plain = pack_optimizer(self._optimizer)
        parts: dict[str, Mapping[str, Tensor]] = {
            "delta": self.delta.parameters,
            "best": self._best,
            "optimizer": moments,
        }
        tensors = {f"{part}/{name}": tensor.detach() for part, own in parts.items() for name, tensor in own.items()}
        state = {"step": self.step, "curve": self.curve, "stopped": self.stopped, "optimizer": plain}
        Checkpoint(tensors, state).save(folder, key)

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to what ``save`` wrote."""
        parts: dict[str, dict[str, Tensor]] = {"delta": {}, "best": {}, "optimizer": {}}
        for path, tensor in checkpoint.tensors.items():
            part, _, name = path.partition("/")
            parts[part][name] = tensor
        for name, delta in self.delta.parameters.items():
            delta.copy_(parts["delta"][name])
        self._best = parts["best"]
        self.step, self.curve = checkpoint.state["step"], checkpoint.state["curve"]
        self.stopped = checkpoint.state["stopped"]
        unpack_optimizer(self._optimizer, parts["optimizer"], checkpoint.state["optimizer"])
