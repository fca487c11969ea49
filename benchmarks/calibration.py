"""The layer sweep and dose search over every block, against one evaluation for each block and strength.

python -m benchmarks.calibration
"""

import argparse
import time
from itertools import product

from benchmarks.measure import show, write
from engrain.core.budget import Budget
from engrain.core.calibrate import calibrate
from engrain.core.composition import activate
from engrain.core.contrast import PairSet
from engrain.core.evaluate import Evaluation, evaluate
from engrain.core.extract import extract
from engrain.core.neutral import read_neutral
from engrain.loading import load

# As somebody would choose who does not know what a strength of 1 does.
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", default="behaviors/listening/pairs.jsonl")
    parser.add_argument("--calibration-pairs", type=int, default=16)
    parser.add_argument("--texts", type=int, default=8)
    options = parser.parse_args()
    model = load("demo")
    pairs = PairSet.read(options.pairs)
    vector = extract(model, pairs.split("train"))
    few = PairSet(pairs.split("calibration").ordinary.pairs[: options.calibration_pairs])
    neutral, blocks = read_neutral(model, split="calibration")[: options.texts], range(len(model.blocks))
    budget = Budget()

    def naive() -> tuple[int, float, float]:
        found: dict[tuple[int, float], Evaluation] = {}
        for layer, strength in product(blocks, STRENGTHS):
            active = activate(vector, layer, strength)
            found[layer, strength] = evaluate(model, few, neutral, lambda active=active: model.steer(active))  # type: ignore[misc]
        within = {dose: one for dose, one in found.items() if not budget.faults(one.neutral)}
        best = max(within, key=lambda dose: _low(within[dose]))
        return *best, _low(within[best])

    def ours() -> tuple[int, float, float]:
        calibrated, doses = calibrate(model, vector, few, neutral, blocks, budget=budget)
        chosen = calibrated.calibration
        assert chosen is not None
        low = next(dose.effect_low for dose in doses if (dose.layer, dose.strength) == (chosen.layer, chosen.strength))
        return chosen.layer, chosen.strength, low

    sides = {"engrain": ours, "one evaluation a dose": naive}
    results = {}
    for name, side in sides.items():
        start = time.perf_counter()
        layer, strength, low = side()
        results[name] = {
            "seconds": time.perf_counter() - start,
            "layer": layer,
            "strength": strength,
            "effect_low": low,
        }
    show(
        [
            ["side", "seconds", "layer", "strength", "effect at least"],
            *([name, *found.values()] for name, found in results.items()),
        ]
    )
    ratio = results["one evaluation a dose"]["seconds"] / results["engrain"]["seconds"]
    print(f"one evaluation a dose over engrain: {ratio:.2f}")
    write("calibration", {"sides": results, "ratio": ratio, "strengths": list(STRENGTHS), "pairs": len(few)})


def _low(found: Evaluation) -> float:
    interval = found.ordinary.change.ci95
    assert interval is not None
    return interval[0]


if __name__ == "__main__":
    main()
