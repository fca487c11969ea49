"""What a student is trained on: the teacher's hidden states and distributions in scope, the base's elsewhere."""

from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from engrain.core.compile.measure import kl_sum
from engrain.core.compile.passes import Course, Recorded, next_token_logits
from engrain.core.edit import Edit
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.scoring import CHUNK

# Packs on which it is measured how far base and teacher are from each other: some two thousand tokens.
_MEASURED = 8


@dataclass(frozen=True)
class Unit:
    """How far base and steered model are from each other, by which a student's distance is divided.

    Attributes:
        shift: mean squared distance of hidden states, by layer.
        kl: mean divergence of the next-token distributions, nats.
    """

    shift: dict[int, float]
    kl: float


class Objective:
    """The loss of a student on the packs of one course, without a unit, so that it compares across layers and models.

    With s the student, t what the course's teacher says, and S the compared layers::

        KL(t || s) / K + hidden * mean over l in S of |s_l - t_l|^2 / D_l

    where K is KL(t || o) and D_l is E|t_l - o_l|^2, with o the other one: the base where the course is steered, the
    steered model where the course is the base's. So the loss is about 1 + hidden for a student that is o.

    Args:
        model: the base.
        course: packs under the teacher.
        other: makes a context in which the model is what the teacher is not.
        hidden: weight of the hidden states.

    Raises:
        InputError: both are the same on these texts.
    """

    def __init__(self, model: SteerableModel, course: Course, other: Edit = nullcontext, hidden: float = 1.0) -> None:
        self._model = model
        self._course = course
        self._hidden = hidden
        self._last = len(model.blocks) - 1
        self.unit = self._measure(other)

    def descend(self, recorded: Recorded, factor: float) -> float:
        """Add ``factor`` times the gradient of a pack's loss to what is trained, and return the loss.

        The head's part is done in chunks on detached states, so that the logits of a pack are never there at once.
        """
        states = self._course.states(recorded)
        hidden = (
            self._hidden
            * torch.stack(
                [
                    (states[layer] - recorded.targets[layer]).float().square().sum(-1).mean() / self.unit.shift[layer]
                    for layer in self._course.layers
                ]
            ).mean()
        )
        leaf = states[self._last].detach().requires_grad_()
        kl = self._divergence(leaf, recorded.targets[self._last], factor / self.unit.kl / len(leaf))
        torch.autograd.backward([states[self._last], factor * hidden], [leaf.grad, torch.ones_like(hidden)])
        return float(hidden.detach()) + kl / factor

    def _divergence(self, leaf: Tensor, target: Tensor, factor: float) -> float:
        """Add the gradient of ``factor`` times the summed divergence to the leaf, and return it."""
        total = 0.0
        for start in range(0, len(leaf), CHUNK):
            with torch.no_grad():
                wanted = next_token_logits(self._model, target[start : start + CHUNK]).log_softmax(-1)
            found = next_token_logits(self._model, leaf[start : start + CHUNK]).log_softmax(-1)
            loss = factor * (wanted.exp() * (wanted - found)).sum()
            loss.backward()
            total += float(loss.detach())
        return total

    def _measure(self, other: Edit) -> Unit:
        shift: dict[int, float] = defaultdict(float)
        kl, places = 0.0, 0
        for recorded in islice(self._course, _MEASURED):
            with torch.no_grad(), other():
                found = self._course.states(recorded)
            for layer, states in found.items():
                shift[layer] += float((states - recorded.targets[layer]).float().square().sum())
            kl += kl_sum(self._model, recorded.targets[self._last], found[self._last])
            places += len(recorded.places)
        if kl <= 0 or min(shift.values()) <= 0:
            raise InputError("Steering changes nothing on the texts to compile from; there is nothing to learn.")
        return Unit({layer: total / places for layer, total in shift.items()}, kl / places)
