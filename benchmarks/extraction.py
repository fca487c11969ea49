"""Extraction of the same pairs by engrain, by a literal two-pass loop, by repeng and by steering-vectors.

    python -m benchmarks.extraction --pairs 100 --dtype float32

The peers run in an environment of their own (``--peers-python``), each in a process that loads the same weights, runs a
warm-up of two pairs and then times the extraction alone, as often as ours. Rounds alternate.
"""

import argparse
import itertools
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import alternate, show, spread, write
from engrain.core.blocks import block_output
from engrain.core.contrast import ContrastPair
from engrain.core.extract import encode_pair, extract
from engrain.core.model import SteerableModel
from engrain.loading import load
from engrain.plugins.manager import build_manager
from engrain.plugins.sources import find_demo

HERE = Path(__file__).parent
PEERS = ("repeng", "steering_vectors")


def shipped_pairs(count: int) -> list[ContrastPair]:
    """Return pairs of the three behaviors in turn, none of them boundary pairs."""
    sets = [behavior.pairs().ordinary.pairs for behavior, _ in build_manager().behaviors().values()]
    mixed = [pair for row in itertools.zip_longest(*sets) for pair in row if pair is not None]
    return mixed[:count]


def literal_loop(model: SteerableModel, pairs: list[ContrastPair]) -> dict[int, torch.Tensor]:
    """The definition: one full forward pass for each reply, float64 means of means."""
    totals = {layer: torch.zeros(model.width, dtype=torch.float64) for layer in range(len(model.blocks))}
    for pair in pairs:
        for sign, sequence in zip((1, -1), encode_pair(model, pair), strict=True):
            states: list[torch.Tensor] = []
            hooks = [
                block.register_forward_hook(lambda *seen, states=states: states.append(block_output(seen[2])))
                for block in model.blocks
            ]
            with torch.no_grad():
                model.hf(torch.tensor([sequence.prompt + sequence.reply]), use_cache=False)
            for hook in hooks:
                hook.remove()
            for layer, state in enumerate(states):
                totals[layer] += sign * state[0, len(sequence.prompt) :].double().mean(dim=0) / len(pairs)
    return totals


class Peer:
    """A peer in a process of its own, told when to run by a line on its standard input."""

    def __init__(self, name: str, python: str, task: Path) -> None:
        command = [python, str(HERE / f"peer_{name}.py"), str(task)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.name = name
        self.said = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        while line and not line.startswith("{"):
            line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            reason = self.process.stderr.read().strip().splitlines()
            return {"error": reason[-1] if reason else "ended without a word"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self) -> float:
        """Extract once and return the seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return float(self._read()["seconds"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch-size", type=int, default=8, help="of the peers; ours packs tokens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers-python", default=str(HERE / ".venv-peers" / "bin" / "python"))
    options = parser.parse_args()

    pairs = shipped_pairs(options.pairs)
    model = load("demo", dtype=options.dtype)
    sides = [encode_pair(model, pair) for pair in pairs]
    prompts = [model.tokenizer.decode(list(both[0].prompt)) for both in sides]
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task.json"
        demo = find_demo("demo")
        assert demo is not None
        task.write_text(
            json.dumps(
                {
                    "model": str(demo.folder),
                    "dtype": options.dtype,
                    "batch_size": options.batch_size,
                    "layers": len(model.blocks),
                    "pairs": [
                        [prompt, pair.positive, pair.negative] for prompt, pair in zip(prompts, pairs, strict=True)
                    ],
                }
            )
        )
        extract(model, pairs[:2])

        def ours() -> float:
            start = time.perf_counter()
            extract(model, pairs)
            return time.perf_counter() - start

        def loop() -> float:
            start = time.perf_counter()
            literal_loop(model, pairs)
            return time.perf_counter() - start

        runs = {"engrain": ours}
        if options.dtype == "float32":
            runs["literal loop"] = loop
        refused: dict[str, str] = {}
        versions: dict[str, Any] = {}
        for name in PEERS:
            if not Path(options.peers_python).exists():
                refused[name] = "no environment: make benchmarks/.venv-peers"
                continue
            peer = Peer(name, options.peers_python, task)
            if "error" in peer.said:
                refused[name] = peer.said["error"]
            else:
                runs[name], versions[name] = peer.run, peer.said
        seconds = alternate(runs, options.repeats)

    ratios = {
        name: spread([theirs / own for theirs, own in zip(found, seconds["engrain"], strict=True)])
        for name, found in seconds.items()
    }
    rows: list[list[object]] = [["side", "median s", "min", "max", "over engrain"]]
    for name, found in seconds.items():
        rows.append([name, *spread(found).values(), ratios[name]["median"]])
    show(rows)
    for name, reason in refused.items():
        print(f"{name}: does not run here: {reason}")

    vector = extract(model, pairs)
    exact = load("demo") if options.dtype != "float32" else model
    reference = literal_loop(exact, pairs)
    error = max(float((vector.at(i) - reference[i]).norm() / reference[i].norm()) for i in vector.layers)
    cosine = min(float(torch.cosine_similarity(vector.at(i).double(), reference[i], dim=0)) for i in vector.layers)
    print(f"against the float32 loop, worst block: relative error {error:.2e}, cosine {cosine:.7f}")
    write(
        f"extraction-{options.dtype}",
        {
            "pairs": len(pairs),
            "batch_size": options.batch_size,
            "seconds": {name: spread(found) for name, found in seconds.items()},
            "over_engrain": ratios,
            "not_run": refused,
            "versions": versions,
            "worst_relative_error": error,
            "worst_cosine": cosine,
        },
    )


if __name__ == "__main__":
    main()
