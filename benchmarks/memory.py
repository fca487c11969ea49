"""Peak memory of an extraction above the loaded model, for 100 and for 1,000 pairs. Linux only.

Each count is measured in several processes, and medians are compared: what the allocator keeps of freed memory differs
from process to process by more than what is to be measured.

python -m benchmarks.memory
"""

import argparse
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.measure import show, write

if TYPE_CHECKING:
    from engrain.core.contrast import ContrastPair

COUNTS = (100, 1000)
PROCESS = Path("/proc/self")


def many_pairs(count: int) -> list["ContrastPair"]:
    """Return the same 100 pairs again and again, each time behind another first word so that no two share their tokens.

    Other pairs would be longer and shorter ones, and it is the longest that decides what a pass needs.
    """
    from benchmarks.extraction import shipped_pairs

    shipped = shipped_pairs(COUNTS[0])
    turns = -(-count // len(shipped))
    return [
        replace(pair, positive=f"{turn} {pair.positive}", negative=f"{turn} {pair.negative}")
        for turn in range(turns)
        for pair in shipped
    ][:count]


def resident(which: str) -> int:
    """Return a line of the process's status in bytes: VmRSS is now, VmHWM the most since it was last reset."""
    found = re.search(rf"^{which}:\s+(\d+) kB$", (PROCESS / "status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def child(count: int) -> None:
    """Print what the loaded model holds and the peak of an extraction from ``count`` pairs, in bytes."""
    from engrain.core.extract import extract
    from engrain.loading import load

    pairs = many_pairs(count)
    model = load("demo")
    # Weights are mapped from the file and come in when first read, an embedding when its token first appears: all of
    # them are part of the loaded model.
    for weight in model.hf.parameters():
        weight.sum()
    extract(model, pairs[:1])
    loaded = resident("VmRSS")
    # Loading peaks above what it leaves; without a reset that peak would hide the extraction's.
    (PROCESS / "clear_refs").write_text("5")
    extract(model, pairs)
    print(loaded, resident("VmHWM"))


def main() -> None:
    """Measure each count in a process of its own and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs=2, default=COUNTS, metavar=("FEW", "MANY"))
    parser.add_argument("--repeats", type=int, default=5, help="processes for each count")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child)
        return
    found: dict[int, list[dict[str, int]]] = {count: [] for count in options.counts}
    for _ in range(options.repeats):
        for count, runs in found.items():
            command = [sys.executable, "-m", "benchmarks.memory", "--child", str(count)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            loaded, peak = map(int, done.stdout.split())
            runs.append({"loaded": loaded, "peak": peak, "above": peak - loaded})
    rows: list[list[object]] = [["pairs", "loaded MiB", "peak MiB", "above MiB", "least", "most"]]
    middle = {
        count: {name: median(run[name] for run in runs) for name in ("loaded", "peak", "above")}
        for count, runs in found.items()
    }
    for count, runs in found.items():
        above = [run["above"] for run in runs]
        rows.append([count, *(size / 2**20 for size in (*middle[count].values(), min(above), max(above)))])
    show(rows)
    few, many = (middle[count] for count in options.counts)
    growth = {name: many[name] / few[name] - 1 for name in ("above", "peak")}
    print(f"above the loaded model it grows by {growth['above']:.1%}, in all by {growth['peak']:.1%} (medians)")
    write("memory", {"bytes": {str(count): runs for count, runs in found.items()}, "growth": growth})


if __name__ == "__main__":
    main()
