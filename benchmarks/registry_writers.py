"""Several processes that publish to one name and move one alias at once: 8 of them, 100 times each.

python -m benchmarks.registry_writers
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from benchmarks.measure import write
from engrain.core.errors import InputError
from engrain.registry.alias import move_alias
from engrain.registry.audit import audit
from engrain.registry.journal import read_chain
from engrain.registry.reference import Reference
from engrain.registry.rollback import roll_back
from engrain.registry.store import Store

ALIAS = Reference("vector", "brevity", alias="canary")


def work(root: Path, me: int, publishes: int) -> int:
    """Publish, and move or roll back now and then; return how many moves were refused."""
    store, lost = Store(root), 0
    for turn in range(publishes):
        version = store.publish("vector", "brevity", config={"me": me, "turn": turn}, files={"x": b"same"})
        if turn % 3 == 0:
            ref = store.ref(ALIAS)
            try:
                if ref is not None and turn % 6 == 3:
                    roll_back(store, ALIAS)
                else:
                    move_alias(store, ALIAS, version.number, expect=0 if ref is None else ref.target.number)
            except InputError:  # a ConflictError, or nothing to go back to
                lost += 1
    return lost


def main() -> None:
    """Run, check and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--publishes", type=int, default=100)
    parser.add_argument("--dry", action="store_true", help="Do not write the result, and do not wait for the disk.")
    options = parser.parse_args()
    if options.dry:
        os.fsync = lambda fd: None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = Store(root)
        start = time.perf_counter()
        children = {}
        for me in range(options.processes):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    os.write(writer, str(work(root, me, options.publishes)).encode())
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
            os.close(writer)
            children[child] = reader
        failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
        seconds = time.perf_counter() - start
        lost = sum(int(os.read(reader, 20) or 0) for reader in children.values())
        numbers = [line.number for line in store.history("vector", "brevity").lines()]
        report = audit(store)
        acts = [event.act for event in read_chain(root / "journal").settled]
        result = {
            "versions": len(numbers),
            "moves": acts.count("alias") + acts.count("rollback"),
            "refused": lost,
            "seconds": round(seconds, 3),
            "problems": [str(problem) for problem in report.problems] + [f"process {child} failed" for child in failed],
        }
        if numbers != list(range(1, options.processes * options.publishes + 1)):
            result["problems"] = [*report.problems, "versions with a gap or a duplicate"]
    print(json.dumps(result))
    if not options.dry:
        write("registry-writers", result)
    sys.exit(1 if result["problems"] else 0)


if __name__ == "__main__":
    main()
