"""Several processes that publish to one name and move one alias at once: 8 of them, 100 times each.

python -m benchmarks.registry_writers
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import engrain.registry.store
from benchmarks.measure import write
from engrain.core.errors import EngrainError
from engrain.registry.alias import move_alias
from engrain.registry.audit import audit
from engrain.registry.journal import read_chain
from engrain.registry.reference import Reference
from engrain.registry.repair import repair
from engrain.registry.rollback import roll_back
from engrain.registry.store import Store

ALIAS = Reference("vector", "brevity", alias="canary")


class NoLock:
    """What stands in for the lock where it does not work."""

    def __init__(self, path: Path) -> None:
        del path

    def acquire(self, poll_interval: float) -> "AbstractContextManager[None]":
        """Let everybody in."""
        del poll_interval
        return nullcontext()


def work(root: Path, me: int, publishes: int) -> dict[str, Any]:
    """Publish, and move or roll back now and then; return the numbers by turn, and how often somebody was refused."""
    store, refused = Store(root), 0
    published: dict[int, int] = {}
    for turn in range(publishes):
        config = {"me": me, "turn": turn}
        try:
            published[turn] = store.publish("vector", "brevity", config=config, files={"x": b"same"}).number
            if turn % 3 == 0:
                ref = store.ref(ALIAS)
                if ref is not None and turn % 6 == 3:
                    roll_back(store, ALIAS)
                else:
                    move_alias(store, ALIAS, published[turn], expect=0 if ref is None else ref.target.number)
        except EngrainError:  # a ConflictError, or nothing to go back to
            refused += 1
    return {"me": me, "published": published, "refused": refused}


def run(root: Path, processes: int, publishes: int) -> Iterator[dict[str, Any]]:
    """Yield what each process did."""
    readers = []
    for me in range(processes):
        reader, writer = os.pipe()
        if os.fork() == 0:
            try:
                with open(writer, "w") as stream:
                    json.dump(work(root, me, publishes), stream)
                os._exit(0)
            finally:
                os._exit(1)
        os.close(writer)
        readers.append(reader)
    for reader in readers:
        with open(reader) as stream:
            text = stream.read()
        yield json.loads(text) if text else {"me": None, "published": {}, "refused": 0}


def check(store: Store, done: list[dict[str, Any]], everything: int | None) -> Iterator[str]:
    """Yield what is wrong: a process that failed, a number with other content than was published under it, a gap."""
    yield from ("a process failed" for one in done if one["me"] is None)
    for one in done:
        for turn, number in one["published"].items():
            found = store.resolve(Reference("vector", "brevity", number)).config
            if found != {"me": one["me"], "turn": int(turn)}:
                yield f"version {number} is {found}"
    numbers = [line.number for line in store.history("vector", "brevity").lines()]
    if numbers != list(range(1, (everything or len(numbers)) + 1)):
        yield "versions with a gap or a duplicate"
    if everything is None:
        # A move that was refused may have left its alias moved; that is found and set right.
        repair(store, audit(store).problems, None)
    yield from map(str, audit(store).problems)


def main() -> None:
    """Run, check and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--publishes", type=int, default=100)
    parser.add_argument("--no-lock", action="store_true", help="As if the lock did not work: refused, but not lost.")
    parser.add_argument("--dry", action="store_true", help="Do not write the result, and do not wait for the disk.")
    options = parser.parse_args()
    if options.dry:
        os.fsync = lambda fd: None
    if options.no_lock:
        setattr(engrain.registry.store, "FileLock", NoLock)  # noqa: B010 - mypy sees the class, not the name
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.publish("vector", "brevity", config={"me": -1}, files={})
        start = time.perf_counter()
        done = list(run(store.root, options.processes, options.publishes))
        seconds = time.perf_counter() - start
        everything = None if options.no_lock else options.processes * options.publishes + 1
        problems = list(check(store, done, everything))
        acts = [event.act for event in read_chain(store.root / "journal").settled]
    result = {
        "versions": sum(len(one["published"]) for one in done),
        "moves": acts.count("alias") + acts.count("rollback"),
        "refused": sum(one["refused"] for one in done),
        "seconds": round(seconds, 3),
        "problems": problems,
        "bar": {"problems": []}
        if options.no_lock
        else {"versions": options.processes * options.publishes, "problems": []},
    }
    print(json.dumps(result))
    if not options.dry:
        write("registry-writers-no-lock" if options.no_lock else "registry-writers", result)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
