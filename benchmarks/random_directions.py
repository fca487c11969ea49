"""How many of 20 random directions, as long as a calibrated vector, get a passing verdict: one in twenty at most.

engrain calibrate BEHAVIOR && python -m benchmarks.random_directions BEHAVIOR

A verdict passes when every gate does. All are put through the two gates that cost least, the effect and the controls,
with the pairs, the random rivals and the bootstrap of ``engrain verify``; only what passes both goes through the rest.
"""

import argparse
from dataclasses import replace

import numpy as np

from benchmarks.measure import show, write
from engrain.core.capability import read_questions
from engrain.core.controls import RANDOM, random_controls
from engrain.core.neutral import read_neutral
from engrain.core.scoring import bootstrap_interval, margins, margins_under
from engrain.core.training import Training
from engrain.core.verify import HeldOut, verify
from engrain.loading import load
from engrain.plugins.manager import build_manager
from engrain.registry.store import Store
from engrain.registry.vectors import read_vector
from engrain.subject import find_subject

# Not the seed of the rivals: those would be the same directions.
SEED = 20_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("behavior", nargs="?", default="listening")
    parser.add_argument("--directions", type=int, default=20)
    options = parser.parse_args()
    store = Store()
    subject = find_subject(build_manager(), store, options.behavior)
    assert subject.test is not None
    model = load("demo")
    active = model.activate(read_vector(store, options.behavior))
    ordinary = subject.test.ordinary
    scenarios = [pair.scenario for pair in ordinary]
    tried = random_controls(active, options.directions, SEED)
    rivals = random_controls(active, RANDOM, 0)
    base = margins(model, ordinary.pairs)
    effects = (margins_under(model, ordinary.pairs, [*tried, *rivals]) - base).numpy()
    best = max(effects[len(tried) :], key=np.mean)
    held_out = HeldOut(subject.test, read_neutral(model, split="test"), subject.prompts[:24], read_questions())
    rows = []
    for number, (one, effect) in enumerate(zip(tried, effects, strict=False)):
        above = [bootstrap_interval(values, scenarios)[0] > 0 for values in (effect, effect - best)]
        passed = all(above)
        if passed:
            named = replace(one, vector=replace(one.vector, name=f"direction-{number}"))
            passed = verify(model, named, held_out, Training(subject.train, subject.positions)).passed
        rows.append({"effect": float(effect.mean()), "above_0": above[0], "above_controls": above[1], "passed": passed})
    show([["direction", *rows[0]], *([number, *row.values()] for number, row in enumerate(rows))])
    count = sum(row["passed"] is True for row in rows)
    print(f"{count} of {len(rows)} random directions pass (best rival {float(best.mean()):+.3f})")
    write("random-directions", {"behavior": options.behavior, "directions": rows, "passed": count})


if __name__ == "__main__":
    main()
