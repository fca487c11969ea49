"""The registry at 10,000 versions: roll back, and `engrain registry list` with the start of its process.

python -m benchmarks.registry_speed
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import show, spread, write
from engrain.registry.alias import move_alias
from engrain.registry.reference import Reference
from engrain.registry.rollback import roll_back
from engrain.registry.store import Store

ALIAS = Reference("vector", "brevity", alias="canary")
BACK_BAR, LIST_BAR = 50.0, 300.0  # ms: p99 of a roll back, every listing; hashing a few bytes takes none of it


def build(store: Store, versions: int, names: int) -> None:
    """Publish ``versions`` versions, a tenth of them to one name and the rest spread over the others."""
    real, os.fsync = os.fsync, lambda fd: None
    for number in range(versions):
        name = "brevity" if number % 10 == 0 else f"other{number % names}"
        store.publish("vector", name, config={"number": number}, files={"x": b"same"})
    os.fsync = real


def rollbacks(store: Store, repeats: int, *, rehash: bool) -> list[float]:
    """Return the milliseconds that a roll back takes, synced to the disk; each is followed by a move forward."""
    highest = store.resolve("vector/brevity").number
    move_alias(store, ALIAS, highest - 1)
    found = []
    for _ in range(repeats):
        move_alias(store, ALIAS, highest)
        start = time.perf_counter()
        moved = roll_back(store, ALIAS, rehash=rehash)
        found.append((time.perf_counter() - start) * 1000)
        assert moved.after.number == highest - 1
    return found


def listings(root: Path, repeats: int) -> list[float]:
    """Return the milliseconds from the start of the process to its end."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        command = [sys.executable, "-m", "engrain", "registry", "list"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"ENGRAIN_HOME": str(root)})
        found.append((time.perf_counter() - start) * 1000)
    return found


def p99(values: list[float]) -> float:
    """Return what 99 of 100 values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--names", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--dry", action="store_true", help="Do not write the result.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        build(store, options.versions, options.names)
        back = rollbacks(store, options.repeats, rehash=False)
        hashed = rollbacks(store, options.repeats, rehash=True)
        listed = listings(store.root, 10)
    show(
        [
            ["", "median ms", "min", "max", "p99", "bar"],
            ["roll back", *spread(back).values(), p99(back), f"p99 <= {BACK_BAR:g}"],
            ["roll back, hashed", *spread(hashed).values(), p99(hashed), f"p99 <= {BACK_BAR:g}"],
            ["list", *spread(listed).values(), "", f"max <= {LIST_BAR:g}"],
        ]
    )
    if not options.dry:
        result: dict[str, Any] = {"versions": options.versions, "names": options.names, "repeats": options.repeats}
        result |= {"rollback_p99_ms": p99(back), "rollback_hashed_p99_ms": p99(hashed), "rollback_bar_ms": BACK_BAR}
        spreads = {"rollback_ms": spread(back), "rollback_hashed_ms": spread(hashed), "list_ms": spread(listed)}
        write("registry-speed", result | spreads | {"list_bar_ms": LIST_BAR})


if __name__ == "__main__":
    main()
