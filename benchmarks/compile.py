"""Every backend and optimizer that compiles a verified vector, side by side on its test split.

engrain verify BEHAVIOR && python -m benchmarks.compile BEHAVIOR --seeds 0 1 2

With one seed all learn from the same gathered texts; another seed samples other replies. Recovered, KL and drift are
those of the proof: shares of what the vector does. Seconds are of the backend alone, state is what the optimizer keeps.
The curve is effect against neutral KL at several scales; that of the bias is the vector's own. Attention is the share
that replies pay to the user's last turn. APOLLO, the default, is run with every seed, the others with the first.
The result is written after every run.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from typing import Any

from rich.progress import Progress

from benchmarks.measure import show, spread, state_bytes, write
from engrain.core.compile.compiler import Order, Spec
from engrain.core.compile.corpus import Corpus
from engrain.core.compile.prove import prove
from engrain.core.compile.recipe import OPTIMIZERS, Recipe
from engrain.gathering import gather_corpus
from engrain.loading import load
from engrain.plugins.manager import Plugins, build_manager
from engrain.registry.store import Store
from engrain.source import find_source
from engrain.verifying import JUDGE, held_out

# The last matrix of a block's attention and of its MLP, in the demo model, and what queries are made by; six blocks.
WRITERS, QUERIES = [(576, 576), (576, 1536)] * 6, [(576, 576)] * 6
HEADLINE = "distill, apollo"
# Only what the blocks attend with is trained.
ATTENDING = "distill, q_proj"
COLUMNS = ("recovered", "kl_recovered", "drift_raw", "drift_chat", "state_bytes", "seconds")
SIDES = ("bias", "rank1", *(f"distill, {name}" for name in OPTIMIZERS), ATTENDING)


def kept_bytes(recipe: Recipe, matrices: list[tuple[int, int]]) -> int:
    """Return the bytes that an optimizer keeps of matrices of these shapes."""
    import torch

    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in matrices]
    optimizer = recipe.build(parameters, 0)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return state_bytes(optimizer)


def measure(
    plugins: Plugins, behavior: str, sides: list[str], seeds: list[int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each side with what a seed gave."""
    store, model = Store(), load("demo", plugins=plugins)
    source = find_source(plugins, store, behavior)
    active = source.activate(model)

    @cache
    def corpus(seed: int) -> Corpus:
        with Progress() as bar:
            return gather_corpus(model, [source.subject], [active], seed=seed, bar=bar, say=print)

    held = held_out(model, source.subject, plugins, JUDGE)
    for side in sides:
        backend, _, how = side.partition(", ")
        spec: Spec = plugins.spec_of(backend)
        recipe = Recipe(how) if how in OPTIMIZERS else Recipe()
        target = "q_proj" if side == ATTENDING else None
        for seed in seeds if side == HEADLINE else seeds[:1]:
            order = Order(behavior, (active,), spec, corpus(seed), target, seed=seed, recipe=recipe)
            start = time.perf_counter()
            made = plugins.compiler(backend)(model, order, lambda what, done: None)
            seconds = time.perf_counter() - start
            proof = prove(model, [active], made, held, seed=seed)
            row = {
                "recovered": proof.compiled.recovered.value,
                "recovered_ci95": proof.compiled.recovered.ci95,
                "kl_recovered": proof.compiled.kl_recovered.value,
                **{f"drift_{kind}": drift.ratio for kind, drift in proof.compiled.drift.items()},
                "state_bytes": kept_bytes(recipe, WRITERS if target is None else QUERIES)
                if backend == "distill"
                else 0,
                "seconds": seconds,
                "scale": made.origin.get("scale", 1.0),
                "seed": seed,
                "attention": dict(proof.attention),
                "curve": [asdict(point) for point in proof.scales],
            }
            yield side, row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("behavior", nargs="?", default="listening")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    for side, row in measure(build_manager(), options.behavior, options.sides, options.seeds):
        print(side, row, flush=True)
        runs.setdefault(side, []).append(row)
        medians = {
            one: {column: spread([row[column] for row in own]) for column in COLUMNS} for one, own in runs.items()
        }
        write(f"compile-{options.behavior}", {"behavior": options.behavior, "sides": medians, "runs": runs})
    show([["side", *COLUMNS], *([one, *(of["median"] for of in own.values())] for one, own in medians.items())])


if __name__ == "__main__":
    main()
