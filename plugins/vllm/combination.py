"""What a request is steered by: resolved to its numbers, named by their digest, and frozen when it is admitted."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch

from engrain.core.composition import Active
from engrain.core.vector import SteeringVector

# Positions whose meaning depends on where the prompt of a request ends.
_BOUNDED = ("prompt", "generated")


@dataclass(frozen=True)
class Combination:
    """The active vectors of one request.

    It crosses process borders as plain data (`to_wire`), directions included, so that a worker needs no registry and
    an alias that moves later changes nothing of it. Two requests share their cached blocks and their sums exactly when
    their digests are equal; the order of the vectors is no part of it.

    Attributes:
        actives: by name; those of strength 0 are left out.
    """

    actives: Mapping[str, Active]

    @classmethod
    def of(cls, actives: Mapping[str, Active]) -> Self | None:
        """Return the combination, or None when nothing acts."""
        acting = {name: active for name, active in sorted(actives.items()) if active.strength != 0}
        return cls(acting) if acting else None

    @property
    def names(self) -> str:
        """What acts, as the vectors call themselves and without the doses: ``listening+not_rushing``."""
        return "+".join(sorted({active.vector.name for active in self.actives.values()}))

    @property
    def layers(self) -> set[int]:
        """Every decoder block at which something acts."""
        return {layer for active in self.actives.values() for layer in active.layers}

    @cached_property
    def digest(self) -> str:
        """Digest of everything that the result depends on, 64 hex digits."""
        parts = []
        for active in self.actives.values():
            hasher = hashlib.sha256(json.dumps(active.to_json(), sort_keys=True).encode())
            for layer in active.layers:
                hasher.update(active.vector.at(layer).numpy().tobytes())
            parts.append(hasher.hexdigest())
        return hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()

    @cached_property
    def wire(self) -> dict[str, Any]:
        """The combination as numbers, text and bytes; ``from_wire`` of it is equal to it."""
        terms = [
            active.to_json()
            | {"name": name, "directions": [active.vector.at(layer).numpy().tobytes() for layer in active.layers]}
            for name, active in self.actives.items()
        ]
        return {"digest": self.digest, "terms": terms}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """Read what ``wire`` gave."""
        actives = {}
        for term in wire["terms"]:
            directions = {
                layer: torch.from_numpy(np.frombuffer(numbers, dtype=np.float32).copy())
                for layer, numbers in zip(term["layers"], term["directions"], strict=True)
            }
            actives[term["name"]] = Active(
                SteeringVector(directions, term["name"]),
                tuple(term["layers"]),
                term["strength"],
                term["positions"],
                term["operation"],
                term["preserve_norm"],
            )
        return cls(actives)


def block_keys(wire: Mapping[str, Any], start: int, end: int, prompt: int) -> list[tuple[str, str]]:
    """Return what the hash of a cached block has to hold besides its tokens.

    A block depends on the combination from the first steered token on, which may lie behind it: generation-only
    steering shares the blocks of its prompt with unsteered requests. Where the meaning of the positions depends on the
    end of the prompt, so does a block that reaches over it.

    Args:
        wire: of the combination.
        start: place of the block's first token in the sequence.
        end: place after its last.
        prompt: tokens of the prompt.
    """
    kinds = {str(term["positions"]) for term in wire["terms"]}
    if end <= min(_first(kind, prompt) for kind in kinds):
        return []
    if end > prompt and not kinds.isdisjoint(_BOUNDED):
        return [("engrain", f"{wire['digest']}/{prompt}")]
    return [("engrain", str(wire["digest"]))]


def _first(positions: str, prompt: int) -> int:
    if positions == "generated":
        return prompt
    return int(positions.removeprefix("from:")) if positions.startswith("from:") else 0
