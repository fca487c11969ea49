"""Extraction of the same pairs by engrain, by a literal two-pass loop, by repeng and by steering-vectors.

    python -m benchmarks.extraction --pairs 100 --dtype float32

The peers run in an environment of their own (``--peers-python``), each in a process that loads the same weights, runs a
warm-up of two pairs and then times the extraction alone, as often as ours. Rounds alternate.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.measure import SideError, alternate, show, spread, write
from benchmarks.peer import DEFAULT_PYTHON, PEERS, Peer
from engrain.core.blocks import block_output
from engrain.core.contrast import ContrastPair
from engrain.core.extract import extract
from engrain.core.model import SteerableModel
from engrain.loading import load
from engrain.plugins.manager import build_manager
from engrain.plugins.sources import find_demo


def shipped_pairs(count: int) -> list[ContrastPair]:
    """Return pairs of the three behaviors in turn, none of them boundary pairs."""
    sets = [behavior.pairs().ordinary.pairs for behavior, _ in build_manager().behaviors().values()]
    mixed = [pair for row in itertools.zip_longest(*sets) for pair in row if pair is not None]
    return mixed[:count]


def literal_loop(model: SteerableModel, pairs: list[ContrastPair]) -> dict[int, Tensor]:
    """The definition: one full forward pass for each reply, float64 means of means; [d_model] by block."""
    totals = {layer: torch.zeros(model.width, dtype=torch.float64) for layer in range(len(model.blocks))}
    for pair in pairs:
        for sign, sequence in zip((1, -1), model.encode_pair(pair), strict=True):
            states: list[Tensor] = []
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


class Differences:
    """An estimator that keeps what it is given: the peers' definitions need the differences themselves."""

    def __init__(self, width: int) -> None:
        self._kept: list[Tensor] = []

    def update(self, positive: Tensor, negative: Tensor) -> None:
        """Take in some pairs."""
        self._kept.append((positive - negative).double())

    def direction(self) -> Tensor:
        """Return the mean, which is what steering-vectors computes."""
        return torch.cat(self._kept).mean(dim=0).float()

    def axis(self) -> Tensor:
        """Return the principal axis about the mean, of either sign, which is what repeng computes."""
        differences = torch.cat(self._kept)
        axis: Tensor = torch.linalg.svd(differences - differences.mean(dim=0), full_matrices=False)[2][0]
        return axis


def by_peers_definitions(model: SteerableModel, pairs: list[ContrastPair]) -> dict[str, dict[int, Tensor]]:
    """Return what each peer should find (last token, its own estimator) from engrain's hidden states, by block."""
    made: list[Differences] = []

    def make(width: int) -> Differences:
        made.append(Differences(width))
        return made[-1]

    layers = extract(model, pairs, positions="last", estimator=make).layers
    of_layer = dict(zip(layers, made, strict=True))
    return {
        "repeng": {layer: kept.axis() for layer, kept in of_layer.items()},
        "steering_vectors": {layer: kept.direction() for layer, kept in of_layer.items()},
    }


def cosines(found: Mapping[int, Tensor], reference: Mapping[int, Tensor]) -> list[float]:
    """Return the cosine of two directions at every block of ``found``."""
    return [
        float(torch.cosine_similarity(one.double(), reference[layer].double(), dim=0)) for layer, one in found.items()
    ]


def write_task(folder: Path, model: SteerableModel, pairs: list[ContrastPair], dtype: str, batch_size: int) -> None:
    """Write what the peers are to do: where the model lies, and the pairs as rendered text."""
    demo = find_demo("demo")
    assert demo is not None
    prompts = [model.tokenizer.decode(list(model.encode_pair(pair)[0].prompt)) for pair in pairs]
    task = {
        "model": str(demo.folder),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "layers": len(model.blocks),
        "pairs": [[prompt, pair.positive, pair.negative] for prompt, pair in zip(prompts, pairs, strict=True)],
    }
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")


def vectors_of(folder: Path, peer: str) -> Path:
    """Return where a peer writes the directions of its last run, by block, each [d_model]."""
    return folder / f"{peer}.safetensors"


def start_peers(python: str, task: Path) -> dict[str, Peer]:
    """Return the peers that run here; one that does not says why in a line."""
    peers = {}
    for name in PEERS:
        try:
            peers[name] = Peer(name, python, task / "task.json", str(vectors_of(task, name)))
        except SideError as error:
            print(error)
    return peers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch-size", type=int, default=8, help="of the peers; ours packs tokens")
    parser.add_argument("--default-batches", action="store_true", help="also time each peer once at its own default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every side")
    parser.add_argument("--peers-python", default=DEFAULT_PYTHON)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    pairs = shipped_pairs(options.pairs)
    model = load("demo", dtype=options.dtype)
    extract(model, pairs[:2])
    found: dict[str, Mapping[int, Tensor]] = {}

    def ours() -> float:
        start = time.perf_counter()
        vector = extract(model, pairs)
        seconds = time.perf_counter() - start
        found["engrain"] = {layer: vector.at(layer) for layer in vector.layers}
        return seconds

    def loop() -> float:
        start = time.perf_counter()
        found["literal loop"] = literal_loop(model, pairs)
        return time.perf_counter() - start

    sides: dict[str, Callable[[], float]] = {"engrain": ours}
    if options.dtype == "float32":
        sides["literal loop"] = loop
    defaults: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder), model, pairs, options.dtype, options.batch_size)
        peers = start_peers(options.peers_python, Path(folder))
        sides |= {name: partial(peer.run, batch_size=options.batch_size) for name, peer in peers.items()}
        seconds = alternate(sides, options.repeats)
        for name, peer in peers.items():
            if name in seconds:
                read = load_file(vectors_of(Path(folder), name))
                found[name] = {int(layer): direction for layer, direction in read.items()}
                if options.default_batches:
                    defaults[name] = peer.run(batch_size=None)
            peer.close()

    report(options, seconds, defaults, found, model, pairs, {name: peer.versions for name, peer in peers.items()})


def report(
    options: argparse.Namespace,
    seconds: Mapping[str, list[float]],
    defaults: Mapping[str, float],
    found: Mapping[str, Mapping[int, Tensor]],
    model: SteerableModel,
    pairs: list[ContrastPair],
    versions: Mapping[str, Any],
) -> None:
    """Print times, ratios and how far the directions agree, and write them."""
    ratios = {
        name: spread([theirs / own for theirs, own in zip(taken, seconds["engrain"], strict=True)])
        for name, taken in seconds.items()
    }
    rows: list[list[object]] = [["side", "median s", "min", "max", "over engrain"]]
    for name, taken in seconds.items():
        rows.append([name, *spread(taken).values(), ratios[name]["median"]])
    for name, once in defaults.items():
        rows.append([f"{name}, its default batch", once, once, once, once / spread(seconds["engrain"])["median"]])
    show(rows)

    reference = found.get("literal loop") or literal_loop(load("demo", dtype="float32"), pairs)
    errors = [
        float((one.double() - reference[layer]).norm() / reference[layer].norm())
        for layer, one in found["engrain"].items()
    ]
    worst = min(cosines(found["engrain"], reference))
    print(f"against the float32 loop, worst block: relative error {max(errors):.2e}, cosine {worst:.7f}")
    expected = by_peers_definitions(model, pairs) if versions else {}
    agreement = {
        name: spread([abs(one) for one in cosines(found[name], expected[name])]) for name in PEERS if name in found
    }
    for name, cosine in agreement.items():
        print(
            f"{name} against its definition on engrain's hidden states: cosine {cosine['median']:.5f}, "
            f"worst block {cosine['min']:.5f}"
        )
    write(
        f"extraction-{options.dtype}",
        {
            "pairs": len(pairs),
            "batch_size": options.batch_size,
            "seconds": {name: spread(taken) for name, taken in seconds.items()},
            "over_engrain": ratios,
            "seconds_at_default_batch": defaults,
            "not_run": [name for name in PEERS if name not in seconds],
            "versions": versions,
            "worst_relative_error": max(errors),
            "worst_cosine": worst,
            "peer_cosine_to_its_definition": agreement,
        },
    )


if __name__ == "__main__":
    main()
