"""Every measurement, one after the other: two torch processes at once would slow each other down.

The behavior that is compiled is verified first, in a registry of its own, ``benchmarks/.registry``, which is kept.
"""

import os
import subprocess
import sys
from pathlib import Path

# The parts called vllm_... run in vLLM's environment.
VLLM = ".venv-vllm/bin/python"
PARTS = (
    ("extraction", "--dtype", "float32", "--default-batches"),
    ("extraction", "--dtype", "bfloat16", "--repeats", "1"),
    ("memory",),
    ("overhead",),
    ("startup",),
    ("calibration",),
    ("random_directions", "listening"),
    ("compile", "listening"),
    ("apollo",),
    ("registry_speed",),
    ("registry_switch",),
    ("registry_writers",),
    ("registry_faults", "kill"),
    ("registry_faults", "flip"),
    ("growth",),
    ("vllm_parity",),
    ("vllm_parity", "--compiled"),
    ("vllm_speed",),
    ("vllm_speed", "--compiled", "--processes", "0"),
    ("vllm_server", "switch"),
    ("vllm_server", "fuzz"),
    ("vllm_server", "soak"),
    ("page",),
)


def main() -> None:
    """Run all parts; one that fails does not keep the others from running."""
    os.environ["ENGRAIN_HOME"] = str(Path(__file__).parent / ".registry")
    failed = []
    if subprocess.run([sys.executable, "-m", "engrain", "verify", "listening"]).returncode:
        failed.append("verify listening")
    for part, *options in PARTS:
        python = VLLM if part.startswith("vllm_") else sys.executable
        print(f"\n== {part} {' '.join(options)}", flush=True)
        if subprocess.run([python, "-m", f"benchmarks.{part}", *options]).returncode:
            failed.append(part)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
