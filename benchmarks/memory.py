"""Peak memory of an extraction above the loaded model, for 100 and for 1,000 pairs.

python -m benchmarks.memory
"""

import resource
import subprocess
import sys
from dataclasses import replace

from benchmarks.measure import show, write

COUNTS = (100, 1000)


def child(count: int) -> None:
    """Extract from ``count`` pairs and print how far the peak rose above the loaded and warmed model, in bytes."""
    from benchmarks.extraction import shipped_pairs
    from engrain.core.extract import extract
    from engrain.loading import load

    some = shipped_pairs(400)
    # More than are shipped: the same again with another first word, so that no two share their tokens.
    pairs = [
        replace(pair, positive=f"{turn} {pair.positive}", negative=f"{turn} {pair.negative}")
        for turn in range(-(-count // len(some)))
        for pair in some
    ][:count]
    model = load("demo")
    extract(model, pairs[:8])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    extract(model, pairs)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, before * 1024)


def main() -> None:
    """Measure each count in a process of its own and print."""
    rows: list[list[object]] = [["pairs", "peak MiB", "above the warmed model, MiB"]]
    peaks: dict[int, int] = {}
    for count in COUNTS:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", str(count)], check=True, capture_output=True, text=True
        )
        above, before = map(int, done.stdout.split())
        peaks[count] = above + before
        rows.append([count, (above + before) / 2**20, above / 2**20])
    show(rows)
    growth = peaks[COUNTS[1]] / peaks[COUNTS[0]] - 1
    print(f"peak memory grows by {growth:.1%}")
    write("memory", {"peak_bytes": {str(count): peak for count, peak in peaks.items()}, "growth": growth})


if __name__ == "__main__":
    child(int(sys.argv[1])) if len(sys.argv) > 1 else main()
