"""How close a student is to its teacher in scope, and to the base elsewhere."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from engrain.core.compile.passes import Course, next_token_logits
from engrain.core.edit import Edit
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.scoring import CHUNK


@dataclass(frozen=True)
class Closeness:
    """A student on text that it was not made from.

    Attributes:
        kl_recovered: 1 - KL(teacher || student) / KL(teacher || base) where the teacher is steered.
        drift: KL(base || student) / KL(base || steered) everywhere else.
    """

    kl_recovered: float
    drift: float

    @property
    def loss(self) -> float:
        """What is missing in scope plus what is too much elsewhere; 1 for the base, 1 for the vector itself."""
        return 1 - self.kl_recovered + self.drift


class Measure:
    """Base and teacher on held-out texts, recorded once, to which students are compared.

    Args:
        model: the base.
        teacher: makes a context in which the model is steered.
        scope: texts on which a student is to be like the teacher.
        retain: texts on which it is to be like the base.
        entry: the first block that may change.

    Raises:
        InputError: the teacher is the base on either of them.
    """

    def __init__(
        self, model: SteerableModel, teacher: Edit, scope: Sequence[Encoded], retain: Sequence[Encoded], entry: int
    ) -> None:
        self._model = model
        self._last = len(model.blocks) - 1
        self._parts = []
        for what, sequences, is_steered in (("scope", scope, True), ("retain", retain, False)):
            course = Course(model, sequences, entry, teacher=teacher if is_steered else None)
            whole = self._distance(course, nullcontext if is_steered else teacher)
            if whole <= 0:
                raise InputError(f"Steering changes nothing on the held-out {what} texts; there is nothing to compare.")
            self._parts.append((course, whole))

    def closeness(self, student: Edit) -> Closeness:
        """Return how close the model is inside of ``student()``."""
        scope, retain = (self._distance(course, student) / whole for course, whole in self._parts)
        return Closeness(1 - scope, retain)

    def _distance(self, course: Course, edit: Edit) -> float:
        total = 0.0
        for one in course:
            with torch.no_grad(), edit():
                found = course.states(one)[self._last]
            total += kl_sum(self._model, one.targets[self._last], found)
        return total


def kl_sum(model: SteerableModel, target: Tensor, states: Tensor) -> float:
    """Return KL(target || states), summed over places, nats; both are outputs of the last block, [places, d_model]."""
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(target), CHUNK):
            sides = (target[start : start + CHUNK], states[start : start + CHUNK])
            wanted, found = (next_token_logits(model, side).log_softmax(-1) for side in sides)
            total += float((wanted.exp() * (wanted - found)).sum())
    return total
