"""Apollo beside AdamW on the demo model's matrices: time of a step, bytes of state; and its distance from Algorithm 1.

python -m benchmarks.apollo
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import alternate, show, spread, write
from engrain.core.apollo import Apollo

# SmolLM2-135M, per block: query, key, value, output, gate, up, down.
BLOCKS = 30
MATRICES = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
SHAPES = {"tall": (96, 40), "wide": (40, 96), "square": (64, 64)}
KINDS: dict[str, dict[str, Any]] = {
    "channel": {"rank": 64, "scale_type": "channel"},
    "mini": {"rank": 1, "scale_type": "tensor"},
}


def matrices() -> list[nn.Parameter]:
    """Return weights and gradients as large as the demo model's."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator) / 50) for shape in MATRICES * BLOCKS]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator) / 1000
    return parameters


def stepper(optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    """Return what takes one step and returns its seconds."""

    def step() -> float:
        start = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - start

    return step


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of every tensor that the optimizer keeps."""
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def distance(shape: tuple[int, int], kind: dict[str, Any], steps: int = 20) -> float:
    """Return the largest difference from the literal algorithm after some steps, relative to the largest movement.

    In float64, with weight decay, over two refreshes of the projection.
    """
    from algorithm1 import Algorithm1

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    rank, gap, scale = min(8, kind["rank"]), 7, 4.0
    optimizer = Apollo([weight], lr=1e-2, scale=scale, update_proj_gap=gap, **kind | {"rank": rank})
    literal = Algorithm1(
        start,
        lr=1e-2,
        rank=rank,
        tensor_wise=kind["scale_type"] == "tensor",
        alpha=math.sqrt(scale),
        gap=gap,
        weight_decay=1e-2,
    )
    for _ in range(steps):
        gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
        weight.grad = gradient
        optimizer.step()
        literal.step(gradient)
    moved = (literal.weight - start).abs().max()
    return ((weight.detach() - literal.weight).abs().max() / moved).item()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    # The literal algorithm is the tests'.
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    torch.set_num_threads(options.threads)
    parameters = matrices()
    optimizers = {
        "adamw": torch.optim.AdamW(parameters, foreach=True),
        **{name: Apollo(parameters, **kind) for name, kind in KINDS.items()},
    }
    sides = {name: stepper(optimizer) for name, optimizer in optimizers.items()}
    for step in sides.values():
        step()
    seconds = alternate(sides, options.repeats)
    medians = {name: spread(found)["median"] for name, found in seconds.items()}
    held = {name: state_bytes(optimizer) for name, optimizer in optimizers.items()}
    ratios = {
        name: {
            "seconds_of_medians": medians[name] / medians["adamw"],
            "seconds_pair_by_pair": spread(
                [own / other for own, other in zip(seconds[name], seconds["adamw"], strict=True)]
            ),
            "state_bytes": held[name] / held["adamw"],
        }
        for name in KINDS
    }
    distances = {name: {shape: distance(size, kind) for shape, size in SHAPES.items()} for name, kind in KINDS.items()}
    show(
        [
            ["side", "median s", "min", "max", "over AdamW", "state MB", "over AdamW", "from Algorithm 1"],
            *(
                [
                    name,
                    *spread(seconds[name]).values(),
                    medians[name] / medians["adamw"],
                    held[name] / 1e6,
                    held[name] / held["adamw"],
                    max(distances[name].values()) if name in distances else "",
                ]
                for name in optimizers
            ),
        ]
    )
    write(
        "apollo",
        {
            "parameters": sum(parameter.numel() for parameter in parameters),
            "rank": {name: kind["rank"] for name, kind in KINDS.items()},
            "seconds": {name: spread(found) for name, found in seconds.items()},
            "state_bytes": held,
            "over_adamw": ratios,
            "distance_from_algorithm_1": distances,
        },
    )


if __name__ == "__main__":
    main()
