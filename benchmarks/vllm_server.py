"""A real server on the demo model: versions switched under load, specifications fuzzed, a soak.

.venv-vllm/bin/python -m benchmarks.vllm_server switch|fuzz|soak
"""

import argparse
import json
import os
import random
import socket
import string
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.measure import spread, write
from benchmarks.vllm_http import http
from benchmarks.vllm_parity import random_vector
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector
from engrain.loading import load
from engrain.registry.alias import move_alias
from engrain.registry.reference import Reference
from engrain.registry.store import Store
from engrain.registry.task_vectors import publish_task_vector
from engrain.registry.vectors import publish_vector

ALIAS = Reference.parse("task-vector/made:live")
PROMPT = "We sort the bookshelf by color. Start with red, and say what comes after it."
NEAR = ["a", "b=1", "a=nan", "a=1e999", "none", "vector/a@1", "vector/a@99", "profile/x", "a=0.1,b=-0.2"]
PROFILE = "behaviors:\n  a: {vector: vector/a}\n  made: {task_vector: 'task-vector/made:live'}\n"


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    store: Store
    process: psutil.Process

    def http(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Return status and text of an answer."""
        return http(method, self.url + path, body)

    def ask(self, xargs: Any, tokens: int = 16) -> tuple[int, str]:
        """Generate greedily."""
        body = {"model": "demo", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "logprobs": 1}
        body |= {"ignore_eos": True} | ({} if xargs is None else {"vllm_xargs": xargs})
        return self.http("POST", "/v1/completions", body)

    def stream(self, tokens: int) -> list[float]:
        """Generate without steering; return when each token came.

        Raises:
            OSError: the request failed.
        """
        body = {"model": "demo", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "stream": True}
        body |= {"ignore_eos": True, "vllm_xargs": {"engrain": "none"}}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + "/v1/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return [time.perf_counter() for line in answer if line.startswith(b"data: {")]

    @property
    def on(self) -> int:
        """The version on the weights."""
        (edit,) = json.loads(self.http("GET", "/v1/engrain/active")[1])["weights"]["on"]
        return int(edit["where"].partition("@")[2])

    def memory(self) -> float:
        """Return the resident MB of all its processes."""
        processes = [self.process, *self.process.children(recursive=True)]
        return float(sum(one.memory_full_info().uss for one in processes)) / 1e6


@contextmanager
def serve(model: SteerableModel, version: int = 1) -> Iterator[Server]:
    """Run a server that follows an alias of a task vector with two versions."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = Store(root / "home")
        for seed, name in enumerate("abc"):
            publish_vector(store, name, random_vector(name, seed, model.width))
        parameters = dict(model.hf.named_parameters())
        names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (13, 14, 15, 16)]
        names += ["model.layers.16.self_attn.q_proj.weight"]
        for size in (0.002, 0.004):
            generator = torch.Generator().manual_seed(1)
            changes = {name: torch.randn(parameters[name].shape, generator=generator) * size for name in names}
            publish_task_vector(store, "made", TaskVector("made", changes, model.fingerprint))
        move_alias(store, ALIAS, version)
        (root / "profile.yaml").write_text(PROFILE, encoding="utf-8")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "engrain", "serve", "--profile", str(root / "profile.yaml"), "--layers", "all"]
        command += ["--port", str(port), "--host", "127.0.0.1", "--enforce-eager", "--max-model-len", "512"]
        command += ["--max-num-seqs", "16", "--kv-cache-memory-bytes", str(1 << 29)]
        environment = os.environ | {"ENGRAIN_HOME": str(root / "home"), "OMP_NUM_THREADS": "1"}
        with (root / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            server = Server(f"http://127.0.0.1:{port}", store, psutil.Process(process.pid))
            try:
                while True:
                    try:
                        if server.http("GET", "/health")[0] == 200:
                            break
                    except OSError:
                        time.sleep(0.5)
                    if process.poll() is not None:
                        raise SystemExit((root / "log").read_text(errors="replace")[-3000:])
                yield server
            finally:
                process.terminate()
                process.wait(60)


def switch(model: SteerableModel, rounds: int) -> dict[str, Any]:
    """Return how long switches held requests up, and whether what came after equals a fresh server's."""
    with serve(model, 2) as server:
        fresh = server.ask(None)[1]
    came: list[float] = []
    requests = failed = 0
    with serve(model, 1) as server:
        stop = threading.Event()

        def load_it() -> tuple[int, int]:
            made = lost = 0
            while not stop.is_set():
                try:
                    came.extend(server.stream(8))
                except OSError:
                    lost += 1
                made += 1
            return made, lost

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(load_it) for _ in range(4)]
            for turn in range(rounds):
                time.sleep(3)
                wanted = 2 if turn % 2 == 0 else 1
                move_alias(server.store, ALIAS, wanted)
                while server.on != wanted:
                    time.sleep(0.02)
                time.sleep(2)
            stop.set()
            for made, lost in (client.result() for client in clients):
                requests, failed = requests + made, failed + lost
        # From the last token of what ran before a switch to the first after it: the longest gaps of the run.
        gaps = sorted((later - earlier for earlier, later in pairwise(sorted(came))), reverse=True)
        held, usual = gaps[:rounds], gaps[len(gaps) // 2]
        move_alias(server.store, ALIAS, 2)
        while server.on != 2:
            time.sleep(0.02)
        after = server.ask(None)[1]
    same = json.loads(fresh)["choices"] == json.loads(after)["choices"]
    print(f"{rounds} switches, {requests} requests of 8 tokens by 4 clients, {failed} failed")
    print(f"seconds without a token around a switch: {', '.join(f'{one:.2f}' for one in held)}; usual {usual:.2f}")
    print(f"answers after a switch equal a fresh server's: {same}")
    return {"requests": requests, "failed": failed, "gap_seconds": spread(held), "usual_gap": usual, "equal": same}


def fuzz(model: SteerableModel, count: int) -> dict[str, Any]:
    """Return what became of made-up specifications."""
    drawn = random.Random(0)
    found: Counter[int] = Counter()
    with serve(model) as server:
        right = server.ask({"engrain": "a=0.5"}, 1)[1]
        before = server.memory()
        with ThreadPoolExecutor(4) as pool:
            for status, _ in pool.map(lambda spec: server.ask(spec, 1), [made_up(drawn) for _ in range(count)]):
                found[status] += 1
        memory = server.memory()
        alive = json.loads(server.ask({"engrain": "a=0.5"}, 1)[1])["choices"] == json.loads(right)["choices"]
    print(f"{count} specifications: {dict(sorted(found.items()))}; alive and right after: {alive}")
    print(f"memory {before:.0f} MB before, {memory:.0f} MB after")
    return {"statuses": {str(key): value for key, value in found.items()}, "alive": alive, "mb": [before, memory]}


def made_up(drawn: random.Random) -> Any:
    """Return extra arguments that nobody would write."""

    def value(depth: int) -> Any:
        kinds: list[Any] = [
            lambda: drawn.choice([0, -1, 1.5, 1e308, -1e-308, 2**62, 10**12]),
            lambda: "".join(drawn.choices(string.printable + "é\u202e\U0001f600", k=drawn.randrange(20))),
            lambda: drawn.choice(NEAR),
            lambda: [value(depth + 1) for _ in range(drawn.randrange(4))] if depth < 6 else 0,
            lambda: json.dumps({drawn.choice("xyz"): entry(depth) for _ in range(drawn.randrange(3))}),
            lambda: "x" * drawn.choice([1000, 20_000, 200_000]) if drawn.random() < 0.05 else "x",
            lambda: "[" * drawn.randrange(3000),
            lambda: "from:" + drawn.choice(["0", "5", "-1", "9" * 9, "9" * 10, "9" * 20, "9" * 5000]),
        ]
        return drawn.choice(kinds)()

    def entry(depth: int) -> Any:
        keys = ["vector", "strength", "layer", "positions", "operation", "enabled", "scale", "task_vector", "nope"]
        return {drawn.choice(keys): value(depth + 1) for _ in range(drawn.randrange(5))}

    chosen = {"engrain": value(0)}
    if drawn.random() < 0.2:
        chosen["engrain_positions"] = value(0)
    return chosen


def soak(model: SteerableModel, minutes: float) -> dict[str, Any]:
    """Return memory over time under mixed requests and changes of the profile."""
    drawn = random.Random(1)
    found: Counter[int] = Counter()
    curve: list[tuple[float, float]] = []
    with serve(model) as server:
        begin = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            while (passed := time.monotonic() - begin) < minutes * 60:
                specs = [
                    {"engrain": f"{name}={drawn.uniform(-1, 1):.4f}"} if name != "none" else {"engrain": "none"}
                    for name in drawn.choices(["a", "b", "c", "none"], k=16)
                ]
                for status, _ in pool.map(lambda spec: server.ask(spec, 8), specs):
                    found[status] += 1
                found[server.http("PUT", "/v1/engrain/profile", {"gain": drawn.uniform(0, 1)})[0]] += 1
                if not curve or passed - curve[-1][0] > 15:
                    curve.append((passed, server.memory()))
    settled = [used for passed, used in curve if passed > min(300, minutes * 30)]
    growth = max(settled) / settled[0] - 1
    print(f"{minutes:g} minutes, {sum(found.values())} requests: {dict(found)}")
    print(f"memory {settled[0]:.0f} to {max(settled):.0f} MB, {growth:+.2%}")
    statuses = {str(key): value for key, value in found.items()}
    return {"minutes": minutes, "statuses": statuses, "growth": growth, "curve": curve}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["switch", "fuzz", "soak"])
    parser.add_argument("--count", type=int, default=10_000, help="Specifications to make up.")
    parser.add_argument("--rounds", type=int, default=6, help="Switches.")
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args()
    model = load("demo")
    if options.part == "switch":
        result = switch(model, options.rounds)
    elif options.part == "fuzz":
        result = fuzz(model, options.count)
    else:
        result = soak(model, options.minutes)
    write(f"vllm-{options.part}", result)


if __name__ == "__main__":
    main()
