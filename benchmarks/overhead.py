"""Time of a steered generation over an unsteered one, 64 tokens: one vector and eight, on one block and on all.

    python -m benchmarks.overhead

engrain, repeng and steering-vectors with the same directions, each over its own unsteered generation in one process.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.measure import SideError, alternate, show, spread, write
from benchmarks.peer import DEFAULT_PYTHON, PEERS, Peer
from engrain.core.composition import activate
from engrain.core.model import SteerableModel
from engrain.core.vector import SteeringVector
from engrain.loading import load
from engrain.plugins.sources import find_demo

# Small, so that the text goes on: what is measured is the time.
STRENGTH = 0.01
COUNTS = (1, 8)


def write_task(folder: Path, model: SteerableModel, directions: Tensor, tokens: int) -> Path:
    """Write what the peers are to do, and the directions, [vectors, blocks, d_model]."""
    demo = find_demo("demo")
    assert demo is not None
    save_file({"vectors": directions}, folder / "vectors.safetensors")
    task = {
        "model": str(demo.folder),
        "threads": torch.get_num_threads(),
        "vectors": str(folder / "vectors.safetensors"),
        "prompt": list(_prompt(model)),
        "tokens": tokens,
    }
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    return folder / "task.json"


def generating(model: SteerableModel, directions: Tensor, tokens: int) -> Callable[[int, list[int]], float]:
    """Return what generates with some of the vectors on some blocks, and returns the seconds."""
    vectors = [SteeringVector(dict(enumerate(own))) for own in directions]
    inputs = torch.tensor([_prompt(model)])

    def generate(count: int, layers: list[int]) -> float:
        start = time.perf_counter()
        chosen = [activate(vector, "all" if len(layers) > 1 else layers[0], 1.0) for vector in vectors[:count]]
        with torch.inference_mode(), model.steer(*chosen) if chosen else nullcontext():
            model.hf.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return time.perf_counter() - start

    generate(1, [0])
    return generate


def _prompt(model: SteerableModel) -> tuple[int, ...]:
    return model.render("Write a short story about a lighthouse.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--peers-python", default=DEFAULT_PYTHON)
    options = parser.parse_args()
    model = load("demo")
    blocks = len(model.blocks)
    generator = torch.Generator().manual_seed(0)
    directions = STRENGTH * torch.randn(max(COUNTS), blocks, model.width, generator=generator)
    kinds = {
        f"{count} on {what}": (count, layers)
        for count in COUNTS
        for what, layers in (("one block", [blocks // 2]), ("every block", list(range(blocks))))
    }
    kinds["unsteered"] = (0, [])

    with tempfile.TemporaryDirectory() as folder:
        task = write_task(Path(folder), model, directions, options.tokens)
        sides: dict[str, Callable[[int, list[int]], float]] = {"engrain": generating(model, directions, options.tokens)}
        peers: dict[str, Peer] = {}
        for name in PEERS:
            try:
                peers[name] = Peer("steering", options.peers_python, task, name)
                sides[name] = lambda count, layers, peer=peers[name]: peer.run(count=count, layers=layers)  # type: ignore[misc]
            except SideError as error:
                print(error)
        runs = {f"{side} {kind}": partial(generate, *kinds[kind]) for side, generate in sides.items() for kind in kinds}
        seconds = alternate(runs, options.repeats)
        for peer in peers.values():
            peer.close()

    found: dict[str, Any] = {}
    rows: list[list[object]] = [["side", "what", "median s", "over unsteered", "min", "max"]]
    for side, kind in itertools.product(sides, kinds):
        taken, without = (seconds.get(f"{side} {one}") for one in (kind, "unsteered"))
        if taken and without:
            ratio = spread([own / unsteered for own, unsteered in zip(taken, without, strict=True)])
            found.setdefault(side, {})[kind] = {"seconds": spread(taken), "over_unsteered": ratio}
            rows.append([side, kind, spread(taken)["median"], *ratio.values()])
    show(rows)
    versions = {name: peer.versions for name, peer in peers.items()}
    write("overhead", {"tokens": options.tokens, "sides": found, "versions": versions})


if __name__ == "__main__":
    main()
