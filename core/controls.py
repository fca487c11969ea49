"""Directions that should do nothing: what a vector's effect must stand out from."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engrain.core.composition import Active
from engrain.core.contrast import ContrastPair
from engrain.core.errors import InputError
from engrain.core.extract import pair_differences
from engrain.core.gradient import margin_gradient
from engrain.core.model import SteerableModel
from engrain.core.progress import Count
from engrain.core.vector import SteeringVector

RANDOM = 19


def random_controls(active: Active, count: int = RANDOM, seed: int = 0) -> list[Active]:
    """Return the same use of random directions, normal and of the same length as the vector's own.

    Args:
        active: the vector in use, at one block.
        count: how many. With 19, the best of them bounds chance at 1 in 20.
        seed: of the drawing.
    """
    layer = _layer(active)
    generator = torch.Generator().manual_seed(seed)
    own = active.vector.at(layer)
    drawn = [torch.randn(len(own), generator=generator) for _ in range(count)]
    return [_instead(active, layer, direction, f"random-{number}") for number, direction in enumerate(drawn)]


def random_like(active: Active, seed: int = 0) -> Active:
    """Return the same use of random directions, at every block that the vector is used at, of the same lengths.

    Args:
        active: the vector in use.
        seed: of the drawing.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = {}
    for layer in active.layers:
        own = active.vector.at(layer).float()
        drawn = torch.randn(len(own), generator=generator)
        directions[layer] = drawn * (own.norm() / drawn.norm())
    return replace(active, vector=SteeringVector(directions, "random", active.vector.fingerprint))


def shuffled_control(
    model: SteerableModel,
    active: Active,
    pairs: Sequence[ContrastPair],
    *,
    positions: str = "response-mean",
    gradients: bool = False,
    seed: int = 0,
    progress: Count | None = None,
) -> Active:
    """Return the same use of the direction from pairs half of which have their replies exchanged.

    It has everything of the data but the labels, and the length of the vector's own.

    Args:
        model: the model, unsteered.
        active: the vector in use, at one block.
        pairs: what the vector was made from.
        positions: what stands for a reply, as in extraction.
        gradients: whether the vector was made from gradients.
        seed: which half.
        progress: called with the number of pairs done since the last call.

    Raises:
        InputError: fewer than two pairs.
    """
    layer = _layer(active)
    ordinary = [pair for pair in pairs if not pair.boundary]
    if len(ordinary) < 2:
        raise InputError(f"A label-shuffled control needs two pairs at least, there are {len(ordinary)}; add pairs.")
    # Exactly half: a chance surplus of right labels would leave some of the direction in.
    order = torch.randperm(len(ordinary), generator=torch.Generator().manual_seed(seed))
    signs = torch.ones(len(ordinary))
    signs[order[: len(ordinary) // 2]] = -1
    if gradients:
        direction = margin_gradient(model, ordinary, [layer], signs, progress)[0]
    else:
        direction = signs @ pair_differences(model, ordinary, layer, positions, progress)
    return _instead(active, layer, direction, "label-shuffled")


def _layer(active: Active) -> int:
    if len(active.layers) != 1:
        raise InputError(
            f"Controls are made for a vector at one block; '{active.vector.name}' acts at {active.layers}."
        )
    return active.layers[0]


def _instead(active: Active, layer: int, direction: Tensor, name: str) -> Active:
    length = active.vector.at(layer).norm()
    vector = SteeringVector({layer: direction * (length / direction.norm())}, name)
    return replace(active, vector=vector)
