"""Arithmetic on published task vectors: several, each scaled, become one version with all of them as its parents."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from engrain.core.task_vector import TaskVector, weighted_sum
from engrain.registry.provenance import Provenance
from engrain.registry.store import Parent, Store, Version
from engrain.registry.task_vectors import publish_task_vector, read_task_vector
from engrain.registry.vectors import parse_item


@dataclass(frozen=True)
class Interference:
    """How much two parts ask of the same weights.

    Attributes:
        first, second: references of the parts.
        cosines: at each decoder block that both change; 0 is none, 1 the same change, -1 the opposite one.
    """

    first: str
    second: str
    cosines: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        cosines = {str(layer): cosine for layer, cosine in self.cosines.items()}
        return {"first": self.first, "second": self.second, "cosines": cosines}


@dataclass(frozen=True)
class Combination:
    """What `combine` published.

    Attributes:
        version: the sum.
        parts: references of the parts with their scales, in the order in which they were given.
        interference: of every two parts.
    """

    version: Version
    parts: tuple[tuple[str, float], ...]
    interference: tuple[Interference, ...]


def parse_part(text: str) -> tuple[str, float]:
    """Read ``REF[=SCALE]``, split at the last ``=``; the scale is 1 when none is given.

    Raises:
        InputError: the reference or the scale is empty.
        StrengthError: the scale is not a finite number.
    """
    where, scale = parse_item(text, "scale")
    return where, 1.0 if scale is None else scale


def combine(store: Store, parts: Sequence[tuple[str, float]], name: str) -> Combination:
    """Publish the weighted sum of task vectors, scale 1 the change as compiled, negative its opposite.

    The order of the parts changes nothing, to the bit: the same parts and scales are the same version.

    Args:
        store: where they are, and where the sum is published.
        parts: references (a name alone means the kind ``task-vector``) and scales.
        name: of the sum.

    Raises:
        UnknownNameError: nothing is called so.
        FingerprintError: two parts are for different bases.
        VectorError: two parts change a tensor with different shapes, or there are no parts.
        StrengthError: a scale is not finite.
        InputError: a part is no task vector.
    """
    read = [(*_read(store, where), float(scale)) for where, scale in parts]
    ordered = sorted(read, key=lambda part: (part[0].digest, part[2]))
    total = weighted_sum([(task_vector, scale) for _, task_vector, scale in ordered])
    origin = {"backend": "combine", "parts": [{"digest": one.digest, "scale": scale} for one, _, scale in ordered]}
    version = publish_task_vector(
        store,
        name,
        replace(total, name=name, origin=origin),
        [Parent("task-vector", one.digest) for one, _, _ in ordered],
        Provenance(
            "combine",
            {"parts": [{"reference": one.reference, "scale": scale} for one, _, scale in ordered]},
            data={one.reference: one.digest for one, _, _ in ordered},
        ),
    )
    interference = [
        Interference(one.name, other.name, one.cosine(other)) for (_, one, _), (_, other, _) in combinations(read, 2)
    ]
    return Combination(version, tuple((one.reference, scale) for one, _, scale in read), tuple(interference))


def _read(store: Store, where: str) -> tuple[Version, TaskVector]:
    version = store.resolve(where, default_kind="task-vector")
    # Called by its reference, so that what is said of two versions of one name tells them apart.
    return version, replace(read_task_vector(store, version.reference), name=version.reference)
