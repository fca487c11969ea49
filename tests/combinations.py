"""Made-up vectors in use."""

import torch

from engrain.core.composition import Active
from engrain.core.vector import SteeringVector
from engrain.plugins.vllm.combination import Combination

WIDTH, LAYERS = 16, (0, 2)


def vector(seed: int, name: str = "made") -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector({layer: torch.randn(WIDTH, generator=generator) for layer in LAYERS}, f"{name}{seed}")


def active(
    seed: int, strength: float = 1.0, positions: str = "all", operation: str = "add", *, keep: bool = False
) -> Active:
    return Active(vector(seed), LAYERS, strength, positions, operation, keep)


def combination(*actives: Active) -> Combination:
    found = Combination.of({f"term{place}": one for place, one in enumerate(actives)})
    assert found is not None
    return found
