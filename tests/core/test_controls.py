"""A random direction in a vector's place: used alike, as long, and pointing elsewhere."""

import pytest
import torch

from engrain.core.composition import activate
from engrain.core.controls import random_like
from engrain.core.vector import SteeringVector


def test_a_random_twin_is_used_alike_and_as_long_and_points_elsewhere() -> None:
    own = SteeringVector({0: 3 * torch.ones(32), 2: torch.arange(32.0)}, "own")
    active = activate(own, "all", 2.0, "generated")
    found = random_like(active, seed=1)
    assert (found.layers, found.strength, found.positions) == (active.layers, 2.0, "generated")
    for layer in active.layers:
        assert found.vector.at(layer).norm() == pytest.approx(float(own.at(layer).norm()), rel=1e-6)
        assert abs(float(torch.cosine_similarity(found.vector.at(layer), own.at(layer), dim=0))) < 0.6
    again, other = random_like(active, seed=1), random_like(active, seed=2)
    assert torch.equal(found.vector.at(0), again.vector.at(0))
    assert not torch.equal(found.vector.at(0), other.vector.at(0))
