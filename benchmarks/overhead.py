"""Time of a steered generation over an unsteered one: 64 tokens, eight vectors on every block.

python -m benchmarks.overhead
"""

import argparse
import time

import torch

from benchmarks.measure import alternate, show, spread, write
from engrain.core.composition import activate
from engrain.core.vector import SteeringVector
from engrain.loading import load


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--vectors", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    model = load("demo")
    generator = torch.Generator().manual_seed(0)
    vectors = [
        SteeringVector({layer: torch.randn(model.width, generator=generator) for layer in range(len(model.blocks))})
        for _ in range(options.vectors)
    ]
    inputs = torch.tensor([model.render("Write a short story about a lighthouse.")])

    def generate() -> None:
        with torch.inference_mode():
            model.hf.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=options.tokens,
                min_new_tokens=options.tokens,
                do_sample=False,
                pad_token_id=0,
            )

    def unsteered() -> float:
        start = time.perf_counter()
        generate()
        return time.perf_counter() - start

    def steered() -> float:
        start = time.perf_counter()
        # Small strengths: what is measured is the time, not what a broken text would stop it at.
        with model.steer(*(activate(vector, "all", 0.01) for vector in vectors)):
            generate()
        return time.perf_counter() - start

    unsteered(), steered()
    seconds = alternate({"unsteered": unsteered, "steered": steered}, options.repeats)
    ratio = spread([after / before for after, before in zip(seconds["steered"], seconds["unsteered"], strict=True)])
    show([["side", "median s", "min", "max"], *([name, *spread(found).values()] for name, found in seconds.items())])
    medians = spread(seconds["steered"])["median"] / spread(seconds["unsteered"])["median"]
    print(f"steered over unsteered: {medians:.3f} (medians); pair by pair {ratio['median']:.3f}")
    write(
        "overhead",
        {
            "vectors": options.vectors,
            "tokens": options.tokens,
            "seconds": {name: spread(found) for name, found in seconds.items()},
            "ratio_of_medians": medians,
            "ratio_pair_by_pair": ratio,
        },
    )


if __name__ == "__main__":
    main()
