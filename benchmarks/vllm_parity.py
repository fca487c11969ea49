"""The same requests in transformers and in vLLM on the demo model, and every order of them on one cached prompt.

.venv-vllm/bin/python -m benchmarks.vllm_parity [--compiled]
"""

import argparse
import os
import tempfile
from itertools import permutations
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import show, write
from benchmarks.vllm_engine import ask, difference, engine, logprobs, one_process
from engrain.core.composition import Active
from engrain.core.vector import Calibration, SteeringVector
from engrain.loading import find, load
from engrain.plugins.manager import build_manager
from engrain.registry.store import Store
from engrain.registry.vectors import publish_vector

TOPIC = "We sort the bookshelf by color. Start with red, and say what comes after it. "
LAYERS = (8, 12, 16, 20, 24)


def random_vector(name: str, seed: int, width: int) -> SteeringVector:
    """Return a direction of length 3 at five blocks: in the range of what calibration chooses on this model."""
    generator = torch.Generator().manual_seed(seed)
    directions = {
        layer: torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0) * 3 for layer in LAYERS
    }
    return SteeringVector(directions, name).calibrated(Calibration(16, 1.0))


def specifications(a: SteeringVector, b: SteeringVector) -> list[tuple[str, dict[str, Any] | None, list[Active]]]:
    """Return six requests: what they are, what they say, and the same for transformers."""
    both = {
        "x": {"vector": "a", "layer": 12, "strength": 2.0},
        "y": {"vector": "b", "layer": 20, "strength": -1.0},
        "z": {"vector": "b", "layer": 12, "strength": 0.5},
    }
    late = {"engrain": "b=3", "engrain_positions": "generated"}
    ablated = {"x": {"vector": "a", "operation": "ablate", "strength": 1.0}, "y": {"vector": "b", "strength": 1.0}}
    three = [Active(a, (12,), 2.0), Active(b, (20,), -1.0), Active(b, (12,), 0.5)]
    return [
        ("unsteered", None, []),
        ("a", {"engrain": "a=2"}, [Active(a, (16,), 2.0)]),
        ("a and b, three terms", {"engrain": both}, three),
        ("a at another strength", {"engrain": "a=4"}, [Active(a, (16,), 4.0)]),
        ("b, generated only", late, [Active(b, (16,), 3.0, "generated")]),
        ("a out, b added", {"engrain": ablated}, [Active(a, (16,), 1.0, operation="ablate"), Active(b, (16,), 1.0)]),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--compiled", action="store_true", help="Let vLLM compile its graph.")
    options = parser.parse_args()
    one_process()
    model = load("demo")
    a, b = (random_vector(name, seed, model.width) for seed, name in enumerate("ab"))
    with tempfile.TemporaryDirectory() as home:
        os.environ["ENGRAIN_HOME"] = home
        for vector in (a, b):
            publish_vector(Store(Path(home)), vector.name, vector)
        cases = specifications(a, b)
        prompt, long = list(model.render(TOPIC)), list(model.render(TOPIC * 18))
        with engine(
            find("demo", build_manager()).folder, max_model_len=1024, enforce_eager=not options.compiled
        ) as llm:
            outputs = ask(llm, [prompt] * len(cases), [one for _, one, _ in cases], options.tokens)
            rows = [
                (name, *difference(model, output, prompt, actives))
                for (name, _, actives), output in zip(cases, outputs, strict=True)
            ]
            orders, cached, worst = cached_orders(llm, long, [one for _, one, _ in cases[:5]])
    show([["request (all in one batch)", "max |difference of log-probabilities|", "greedy tokens that differ"], *rows])
    print(f"a prompt of {len(long)} tokens, {orders} orders of 5 requests, {cached} tokens from the prefix cache:")
    print(f"max difference to the uncached answers {worst:.2e}")
    write(
        f"vllm-parity-{'compiled' if options.compiled else 'eager'}",
        {
            "tokens": options.tokens,
            "requests": {name: {"max_difference": found, "differing_tokens": count} for name, found, count in rows},
            "cached": {"orders": orders, "prompt_tokens": len(long), "cached_tokens": cached, "max_difference": worst},
        },
    )


def cached_orders(llm: Any, prompt: list[int], specs: list[Any]) -> tuple[int, int, float]:
    """Return how many orders of requests on one prompt were tried, the tokens that came from the cache, and the largest
    difference to the uncached answers."""
    alone = []
    for spec in specs:
        llm.reset_prefix_cache()
        alone.append(logprobs(ask(llm, [prompt], [spec], 4)[0]))
    worst, cached, orders = 0.0, 0, 0
    for order in permutations(range(len(specs))):
        llm.reset_prefix_cache()
        orders += 1
        for place in order:
            (output,) = ask(llm, [prompt], [specs[place]], 4)
            found = logprobs(output)
            cached += output.num_cached_tokens
            for one, other in zip(found, alone[place], strict=True):
                same = one.keys() & other.keys()
                worst = max(worst, *(abs(one[token] - other[token]) for token in same))
                # A token among the likeliest on one side only: far off, whatever its number.
                worst = worst if len(same) >= len(other) - 1 else float("inf")
    return orders, cached, worst


if __name__ == "__main__":
    main()
