"""Output tokens a second in vLLM on the demo model: idle and all-steered in turn in one process; the operator alone.

.venv-vllm/bin/python -m benchmarks.vllm_speed [--compiled]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import alternate, show, spread, write
from benchmarks.vllm_engine import ask, engine, one_process
from benchmarks.vllm_parity import LAYERS, TOPIC, random_vector
from engrain.core.composition import Active
from engrain.core.model import SteerableModel
from engrain.loading import find, load
from engrain.plugins.manager import build_manager
from engrain.plugins.vllm.settings import Settings
from engrain.registry.store import Store
from engrain.registry.vectors import publish_vector

BATCHES = (1, 16)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiled", action="store_true", help="Let vLLM compile its graph.")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=9, help="In one process; 0 for none.")
    parser.add_argument("--processes", type=int, default=5, help="Pairs with and without the plugin; 0 for none.")
    parser.add_argument("--only", choices=["absent", "present"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    one_process()
    if options.only is not None:
        print(*(f"{rate:.3f}" for rate in one_side(options.only == "present", options)))
        return
    mode = "compiled" if options.compiled else "eager"
    if options.repeats:
        write(f"vllm-speed-{mode}", inside_one_process(options))
    if options.processes:
        sides = in_turn(options)
        found = {
            f"batch {batch}": {f"plugin {side}": spread([rate[place] for rate in sides[side]]) for side in sides}
            for place, batch in enumerate(BATCHES)
        }
        for batch, own in found.items():
            show([[batch, "tokens/s", "min", "max"], *([side, *one.values()] for side, one in own.items())])
        write(f"vllm-processes-{mode}", {"processes": options.processes, "tokens": options.tokens, **found})


def in_turn(options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Return the rates of processes with the plugin and without, each started in turn."""
    sides: dict[str, list[list[float]]] = {"absent": [], "present": []}
    for turn in range(options.processes):
        for side in sorted(sides, reverse=turn % 2 == 1):
            command = [sys.executable, "-m", "benchmarks.vllm_speed", "--only", side, "--tokens", str(options.tokens)]
            command += ["--compiled"] * options.compiled
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            sides[side].append([float(rate) for rate in done.stdout.splitlines()[-1].split()])
    return sides


def inside_one_process(options: argparse.Namespace) -> dict[str, Any]:
    """Return the rates of idle and steered requests in turn, and the cost of the operator."""
    model = load("demo")
    prompts = different_prompts(model)
    operator = operator_cost(model.width)
    result: dict[str, Any] = {"tokens": options.tokens, "armed_layers": len(LAYERS), "operator_us": operator}
    with tempfile.TemporaryDirectory() as home:
        os.environ["ENGRAIN_HOME"] = home
        for seed, name in enumerate("ab"):
            publish_vector(Store(Path(home)), name, random_vector(name, seed, model.width))
        folder = find("demo", build_manager()).folder
        with engine(folder, settings=Settings(layers=LAYERS), **sizes(options)) as llm:
            for batch in BATCHES:
                found = compare(llm, prompts[:batch], batch, options)
                step = 1e6 * batch / found["idle"]["median"]
                share = operator[f"{batch} rows, steered"] * len(LAYERS) / step
                result[f"batch {batch}"] = {**found, "operator's share of a step": share}
                print(f"the operator at {len(LAYERS)} layers is {share:.2%} of a step of {step / 1e3:.1f} ms")
    return result


def compare(llm: Any, prompts: list[list[int]], batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the rates of a batch, idle and with a combination of its own for each row, in turn."""
    steered = [
        {"engrain": {f"v{layer}{name}": term(name, layer, 0.01 * (row + 1)) for layer in LAYERS for name in "ab"}}
        for row in range(batch)
    ]
    sides: dict[str, list[Any]] = {"idle": [None] * batch, "steered": steered}

    def rate(side: str) -> float:
        start = time.perf_counter()
        ask(llm, prompts, sides[side], options.tokens)
        seconds = time.perf_counter() - start
        return float(batch * options.tokens / seconds)

    for side in sides:
        rate(side)
    rates = alternate({side: partial(rate, side) for side in sides}, options.repeats)
    found: dict[str, Any] = {side: spread(values) for side, values in rates.items()}
    show([["side", "tokens/s", "min", "max"], *([side, *one.values()] for side, one in found.items())])
    ratio = found["steered"]["median"] / found["idle"]["median"]
    print(f"batch {batch}: steered over idle {ratio:.3f}")
    return {**found, "steered over idle": ratio}


def different_prompts(model: SteerableModel) -> list[list[int]]:
    """Return prompts that share no blocks: unsteered requests would share them, steered ones not."""
    return [list(model.render(f"{row} of {max(BATCHES)}. {TOPIC}")) for row in range(max(BATCHES))]


def term(name: str, layer: int, strength: float) -> dict[str, Any]:
    """Return one vector of a request."""
    return {"vector": name, "layer": layer, "strength": strength}


def operator_cost(width: int) -> dict[str, float]:
    """Return microseconds of a call, without a plan and with every row steered by a combination of its own."""
    from engrain.plugins.vllm.bank import Bank, Scheduled
    from engrain.plugins.vllm.combination import Combination
    from engrain.plugins.vllm.operator import set_plan

    found = {}
    for rows in BATCHES:
        hidden, residual = torch.zeros(rows, width), torch.zeros(rows, width)
        bank = Bank(rows, LAYERS, torch.device("cpu"))
        batch = []
        for row in range(rows):
            active = Active(random_vector("a", row, width), LAYERS, 0.01)
            combination = Combination({"a": active})
            batch.append(Scheduled(combination.wire, 5, 1, 3))
        for name, plan in (("idle", None), ("steered", bank.plan(batch))):
            set_plan(plan)
            times = []
            for _ in range(20):
                start = time.perf_counter()
                for _ in range(200):
                    torch.ops.engrain.steer(hidden, residual, LAYERS[0])
                times.append((time.perf_counter() - start) / 200 * 1e6)
            found[f"{rows} rows, {name}"] = sorted(times)[len(times) // 2]
            set_plan(None)
    return found


def one_side(present: bool, options: argparse.Namespace) -> list[float]:
    """Return the rates of this process, at each size of batch, without steering anything."""
    model = load("demo")
    prompts = different_prompts(model)
    rates = []
    with engine(
        find("demo", build_manager()).folder, settings=Settings(layers=LAYERS) if present else None, **sizes(options)
    ) as llm:
        for batch in BATCHES:
            found = []
            for _ in range(4):
                start = time.perf_counter()
                ask(llm, prompts[:batch], [None] * batch, options.tokens)
                found.append(batch * options.tokens / (time.perf_counter() - start))
            rates.append(sorted(found[1:])[1])
    return rates


def sizes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of an engine."""
    return {
        "max_model_len": 512,
        "max_num_seqs": 16,
        "enforce_eager": not options.compiled,
        "kv_cache_memory_bytes": 1 << 29,
    }


if __name__ == "__main__":
    main()
