"""Every measurement, one after the other: two torch processes at once would slow each other down."""

import subprocess
import sys

PARTS = (
    ["extraction", "--dtype", "float32", "--default-batches"],
    ["extraction", "--dtype", "bfloat16", "--repeats", "1"],
    ["memory"],
    ["overhead"],
    ["startup"],
    ["calibration"],
    ["random_directions", "listening"],
    ["apollo"],
    ["registry_speed"],
    ["registry_switch"],
    ["registry_writers"],
    ["registry_faults", "kill"],
    ["registry_faults", "flip"],
    ["growth"],
    ["page"],
)


def main() -> None:
    """Run all parts; one that fails does not keep the others from running."""
    failed = []
    for part, *options in PARTS:
        print(f"\n== {part} {' '.join(options)}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{part}", *options]).returncode:
            failed.append(part)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
