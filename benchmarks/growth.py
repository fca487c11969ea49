"""How the cost grows with the work: pairs, blocks, width, active vectors, versions; the slope on double logarithms.

    python -m benchmarks.growth [--part pairs]

Slope 1 doubles the seconds with the work, 0 leaves them as they are.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.extraction import shipped_pairs
from benchmarks.measure import alternate, show, spread, write
from benchmarks.memory import many_pairs
from benchmarks.registry_speed import build, listings, rollbacks
from engrain.core.composition import activate
from engrain.core.extract import extract
from engrain.core.model import SteerableModel
from engrain.core.vector import SteeringVector
from engrain.loading import load
from engrain.registry.store import Store

# Pairs are run up to this block alone, so that 3,000 take minutes and not an hour.
SHALLOW = 2
TOKENS = 32

Run = Callable[[], float]


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pairs(model: SteerableModel) -> dict[int, Run]:
    """Return extractions from more and more pairs of the same lengths, at one early block."""
    return {
        count: lambda count=count: timed(lambda: extract(model, many_pairs(count), layers=[SHALLOW]))  # type: ignore[misc]
        for count in (10, 30, 100, 300, 1000, 3000)
    }


def blocks(model: SteerableModel) -> dict[int, Run]:
    """Return extractions at more and more blocks, the first ones of the model."""
    few = shipped_pairs(30)
    return {
        count: lambda count=count: timed(lambda: extract(model, few, layers=range(count)))  # type: ignore[misc]
        for count in (2, 4, 8, 15, 30)
    }


def width(model: SteerableModel) -> dict[int, Run]:
    """Return extractions from random models of four blocks, wider and wider; the demo model lends the tokenizer."""
    few = shipped_pairs(30)
    found: dict[int, Run] = {}
    for d_model in (192, 384, 768, 1536):
        wide = random_llama(model, d_model)
        found[d_model] = lambda wide=wide: timed(lambda: extract(wide, few))  # type: ignore[misc]
    return found


def random_llama(model: SteerableModel, d_model: int) -> SteerableModel:
    """Return a random model of four blocks of the demo model's shape, and its vocabulary."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=model.hf.config.vocab_size,
        hidden_size=d_model,
        intermediate_size=d_model * 8 // 3,
        num_hidden_layers=4,
        num_attention_heads=d_model // 64,
        num_key_value_heads=d_model // 64,
    )
    return SteerableModel(AutoModelForCausalLM.from_config(config), model.tokenizer, f"random of width {d_model}")


def vectors(model: SteerableModel) -> dict[int, Run]:
    """Return generations with more and more vectors on every block."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.tensor([model.render("Write a short story about a lighthouse.")])
    every = range(len(model.blocks))
    drawn = [
        SteeringVector({layer: torch.randn(model.width, generator=generator) for layer in every}) for _ in range(64)
    ]

    def run(count: int) -> float:
        with model.steer(*(activate(vector, "all", 0.001) for vector in drawn[:count])):
            return timed(lambda: generate(model, inputs))

    return {count: lambda count=count: run(count) for count in (1, 2, 4, 8, 16, 32, 64)}  # type: ignore[misc]


def generate(model: SteerableModel, inputs: Tensor) -> None:
    """Generate a fixed number of tokens."""
    with torch.inference_mode():
        model.hf.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=0,
        )


def versions(root: Path, of: Callable[[Store], float]) -> dict[int, Run]:
    """Return what a command takes in registries of more and more versions."""
    found: dict[int, Run] = {}
    for count in (10, 100, 1000, 10_000):
        store = Store(root / str(count))
        # One name has a tenth of the versions; it needs two to roll back.
        build(store, max(count, 20), min(count, 100))
        found[count] = lambda store=store: of(store)  # type: ignore[misc]
    return found


def slope(points: dict[int, float]) -> float:
    """Return the slope of the least-squares line through the logarithms of size and seconds."""
    x, y = ([math.log(one) for one in side] for side in (points, points.values()))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((one - mean_x) * (other - mean_y) for one, other in zip(x, y, strict=True))
    return above / sum((one - mean_x) ** 2 for one in x)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("pairs", "blocks", "width", "vectors", "list", "rollback")
    parser.add_argument("--part", action="append", choices=parts, help="Only this one; may be given again.")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    wanted: Sequence[str] = options.part or parts
    model = load("demo")
    extract(model, shipped_pairs(2))
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, Callable[[], dict[int, Run]]] = {
            "pairs": lambda: pairs(model),
            "blocks": lambda: blocks(model),
            "width": lambda: width(model),
            "vectors": lambda: vectors(model),
            "list": lambda: versions(Path(folder), lambda store: listings(store.root, 1)[0] / 1000),
            "rollback": lambda: versions(
                Path(folder), lambda store: spread(rollbacks(store, 20, rehash=False))["median"] / 1000
            ),
        }
        for part in wanted:
            sizes = made[part]()
            found = alternate({str(size): run for size, run in sizes.items()}, options.repeats)
            seconds = {size: spread(taken) for size, taken in found.items()}
            steep = slope({int(size): one["median"] for size, one in seconds.items()})
            show([[part, "median s", "min", "max"], *([size, *one.values()] for size, one in seconds.items())])
            print(f"{part}: slope {steep:.2f}\n", flush=True)
            result[part] = {"seconds": seconds, "slope": steep}
    if wanted == parts:
        write("growth", {"parts": result})


if __name__ == "__main__":
    main()
