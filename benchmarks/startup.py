"""``import engrain``, and process start to first token: ``engrain generate`` beside a plain transformers script.

python -m benchmarks.startup
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import alternate, show, spread, write
from engrain.plugins.sources import find_demo

HEAVY = ("numpy", "omegaconf", "peft", "rich", "safetensors", "sklearn", "torch", "transformers")
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


def import_engrain() -> tuple[float, list[str]]:
    """Return the seconds that ``import engrain`` takes in a fresh process, and the modules it brings in."""
    code = (
        "import json, sys, time; known = set(sys.modules); start = time.perf_counter(); import engrain; "
        "seconds = time.perf_counter() - start; print(json.dumps([seconds, sorted(sys.modules.keys() - known)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    seconds, modules = json.loads(done.stdout)
    return seconds, modules


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    imported = [import_engrain() for _ in range(options.repeats)]
    imports = spread([seconds for seconds, _ in imported])
    modules = imported[0][1]
    heavy = [name for name in HEAVY if name in modules]
    named = ", ".join(heavy) or "none"
    print(f"import engrain: {imports['median']:.3f} s, {len(modules)} modules, heavy ones: {named}")
    demo = find_demo("demo")
    assert demo is not None
    ours = [sys.executable, "-m", "engrain", "generate", PROMPT, "--max-new-tokens", "1"]
    plain = [sys.executable, str(Path(__file__).parent / "plain_generate.py"), str(demo.folder), PROMPT]
    first_byte(ours), first_byte(plain)
    seconds = alternate({"engrain": lambda: first_byte(ours), "plain": lambda: first_byte(plain)}, options.repeats)
    show([["side", "median s", "min", "max"], *([name, *spread(found).values()] for name, found in seconds.items())])
    ratio = spread([own / theirs for own, theirs in zip(seconds["engrain"], seconds["plain"], strict=True)])
    print(f"engrain over plain, pair by pair: {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})")
    write(
        "startup",
        {
            "import_seconds": imports,
            "imported_modules": modules,
            "imported_heavy": heavy,
            "first_token_seconds": {name: spread(found) for name, found in seconds.items()},
            "engrain_over_plain": ratio,
        },
    )


if __name__ == "__main__":
    main()
