"""``import engrain``, and process start to first token: ``engrain generate`` beside a plain transformers script.

python -m benchmarks.startup
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import alternate, show, spread, write
from engrain.plugins.sources import find_demo

PROMPT = "Name three rivers in Spain."


def first_byte(command: list[str]) -> float:
    """Return the seconds from the start of a process to the first byte on its standard output."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise SystemExit(f"{command[:3]} printed nothing")
        seconds = time.perf_counter() - start
        process.stdout.read()
    return seconds


def import_seconds(module: str) -> float:
    """Return the seconds that one import takes in a fresh process."""
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    imports = [import_seconds("engrain") for _ in range(options.repeats)]
    print(f"import engrain: {statistics.median(imports):.3f} s")
    demo = find_demo("demo")
    assert demo is not None
    ours = [sys.executable, "-m", "engrain", "generate", PROMPT, "--max-new-tokens", "8"]
    plain = [sys.executable, str(Path(__file__).parent / "plain_generate.py"), str(demo.folder), PROMPT]
    first_byte(ours), first_byte(plain)
    seconds = alternate({"engrain": lambda: first_byte(ours), "plain": lambda: first_byte(plain)}, options.repeats)
    show([["side", "median s", "min", "max"], *([name, *spread(found).values()] for name, found in seconds.items())])
    ratio = spread([own / theirs for own, theirs in zip(seconds["engrain"], seconds["plain"], strict=True)])
    print(f"engrain over plain, pair by pair: {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})")
    write(
        "startup",
        {
            "import_seconds": spread(imports),
            "first_token_seconds": {name: spread(found) for name, found in seconds.items()},
            "engrain_over_plain": ratio,
        },
    )


if __name__ == "__main__":
    main()
