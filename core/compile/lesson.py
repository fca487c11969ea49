"""One half of what is taught: packs, the loss on them, and how much it weighs."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from engrain.core.compile.objective import Objective
from engrain.core.compile.passes import Course
from engrain.core.projection import mix


@dataclass(frozen=True)
class Lesson:
    """Packs in a drawn order, epoch after epoch.

    Attributes:
        course: the packs.
        objective: the loss on them.
        weight: of the loss.
    """

    course: Course
    objective: Objective
    weight: float = 1.0

    def draw(self, step: int, count: int, seed: int) -> Iterator[tuple[int, float]]:
        """Yield the numbers of one step's packs, each with its share in the step's loss: every place weighs the same.

        Args:
            step: which step, from 0; the same step draws the same packs.
            count: how many packs.
            seed: of the order.
        """
        usual = self.course.places / len(self.course)
        for place in range(step * count, (step + 1) * count):
            epoch, at = divmod(place, len(self.course))
            order = torch.randperm(len(self.course), generator=torch.Generator().manual_seed(mix(seed, epoch)))
            number = int(order[at])
            yield number, self.weight * self.course.places_of(number) / usual / count
