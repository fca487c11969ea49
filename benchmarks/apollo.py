"""Apollo beside AdamW on the demo model's matrices: time of a step, bytes of state; and its distance from Algorithm 1.

    python -m benchmarks.apollo

pytorch-optimizer's APOLLO is timed likewise, in the peers' environment. It draws its projection otherwise, so it is
held against Algorithm 1 with the one that it drew.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.measure import SideError, alternate, show, spread, state_bytes, write
from benchmarks.peer import DEFAULT_PYTHON, Peer
from engrain.core.apollo import Apollo

# SmolLM2-135M, per block: query, key, value, output, gate, up, down.
BLOCKS = 30
PEER = "pytorch-optimizer"
MATRICES = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
SHAPES = {"tall": (96, 40), "wide": (40, 96), "square": (64, 64)}
# Of the walks that are compared.
STEPS, RANK, RATE, SCALE = 20, 8, 1e-2, 4.0
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


def distance(shape: tuple[int, int], kind: dict[str, Any]) -> float:
    """Return the largest difference from the literal algorithm after some steps, relative to the largest movement.

    In float64, with weight decay, over two refreshes of the projection.
    """
    from algorithm1 import Algorithm1

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    rank, gap = min(RANK, kind["rank"]), 7
    optimizer = Apollo([weight], lr=RATE, scale=SCALE, update_proj_gap=gap, **kind | {"rank": rank})
    literal = Algorithm1(
        start,
        lr=RATE,
        rank=rank,
        tensor_wise=kind["scale_type"] == "tensor",
        alpha=math.sqrt(SCALE),
        gap=gap,
        weight_decay=1e-2,
    )
    for _ in range(STEPS):
        gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
        weight.grad = gradient
        optimizer.step()
        literal.step(gradient)
    moved = (literal.weight - start).abs().max()
    return ((weight.detach() - literal.weight).abs().max() / moved).item()


def write_task(folder: Path, threads: int) -> Path:
    """Write what the peer is to do, with the gradients that its distance is measured on."""
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(STEPS, *shape, generator=generator).double() for name, shape in SHAPES.items()}
    save_file(drawn, folder / "gradients.safetensors")
    task = {
        "threads": threads,
        "rate": RATE,
        "scale": SCALE,
        "rank": RANK,
        "kinds": KINDS,
        "shapes": MATRICES * BLOCKS,
        "gradients": str(folder / "gradients.safetensors"),
    }
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    return folder / "task.json"


def peer_distances(folder: Path) -> dict[str, dict[str, float]]:
    """Return how far the peer's walks from zero end from Algorithm 1's with its projections, by kind and shape."""
    from algorithm1 import Algorithm1

    class Given(Algorithm1):
        """With a projection that somebody else has drawn."""

        drawn: Tensor

        def draw(self, side: int) -> Tensor:
            return self.drawn

    given, walked = load_file(folder / "gradients.safetensors"), load_file(folder / "walked.safetensors")
    found: dict[str, dict[str, float]] = {}
    for kind, how in KINDS.items():
        for name, path in given.items():
            literal = Given(
                torch.zeros(path.shape[1:]),
                lr=RATE,
                rank=min(RANK, how["rank"]),
                tensor_wise=how["scale_type"] == "tensor",
                alpha=math.sqrt(SCALE),
                gap=STEPS + 1,
                weight_decay=0.0,
            )
            drawn = walked[f"{kind} {name} projection"].double()
            literal.drawn = drawn if drawn.shape[0] == literal.rank else drawn.T
            for gradient in path:
                literal.step(gradient)
            moved = literal.weight.abs().max()
            found.setdefault(kind, {})[name] = float(
                (walked[f"{kind} {name} weight"] - literal.weight).abs().max() / moved
            )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers-python", default=DEFAULT_PYTHON)
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
    held = {name: state_bytes(optimizer) for name, optimizer in optimizers.items()}
    distances = {name: {shape: distance(size, kind) for shape, size in SHAPES.items()} for name, kind in KINDS.items()}
    versions: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            task = write_task(Path(folder), options.threads)
            peer = Peer("apollo", options.peers_python, task, str(Path(folder) / "walked.safetensors"))
        except SideError as error:
            print(error)
        else:
            sides |= {f"{PEER} {kind}": partial(peer.run, kind=kind) for kind in KINDS}
            versions = {PEER: peer.versions}
            held |= {f"{PEER} {kind}": size for kind, size in versions[PEER].pop("state_bytes").items()}
            distances |= {f"{PEER} {kind}": found for kind, found in peer_distances(Path(folder)).items()}
        seconds = alternate(sides, options.repeats)
        if versions:
            peer.close()
    report(parameters, seconds, held, distances, versions)


def report(
    parameters: Sequence[nn.Parameter],
    seconds: Mapping[str, list[float]],
    held: Mapping[str, int],
    distances: Mapping[str, Mapping[str, float]],
    versions: Mapping[str, Any],
) -> None:
    """Print times, states and distances, each over AdamW's, and write them."""
    medians = {name: spread(found)["median"] for name, found in seconds.items()}
    ratios = {
        name: {
            "seconds_of_medians": medians[name] / medians["adamw"],
            "seconds_pair_by_pair": spread([own / other for own, other in zip(own, seconds["adamw"], strict=True)]),
            "state_bytes": held[name] / held["adamw"],
        }
        for name, own in seconds.items()
        if name != "adamw"
    }
    rows: list[list[object]] = [
        ["side", "median s", "min", "max", "over AdamW", "state MB", "over AdamW", "from Algorithm 1"]
    ]
    for name, found in seconds.items():
        far = max(distances[name].values()) if name in distances else ""
        of_adamw = (medians[name] / medians["adamw"], held[name] / 1e6, held[name] / held["adamw"])
        rows.append([name, *spread(found).values(), *of_adamw, far])
    show(rows)
    write(
        "apollo",
        {
            "parameters": sum(parameter.numel() for parameter in parameters),
            "rank": {name: kind["rank"] for name, kind in KINDS.items()},
            "seconds": {name: spread(found) for name, found in seconds.items()},
            "state_bytes": dict(held),
            "over_adamw": ratios,
            "distance_from_algorithm_1": {name: dict(found) for name, found in distances.items()},
            "versions": versions,
        },
    )


if __name__ == "__main__":
    main()
