"""Every measurement, one after the other: two torch processes at once would slow each other down.

The behavior that is compiled is verified first, in a registry of its own, ``benchmarks/.registry``, which is kept.
"""

import os
import subprocess
import sys
from pathlib import Path

ENGRAIN, VLLM = (sys.executable,), (".venv-vllm/bin/python",)
PARTS = (
    (*ENGRAIN, "extraction", "--dtype", "float32", "--default-batches"),
    (*ENGRAIN, "extraction", "--dtype", "bfloat16", "--repeats", "1"),
    (*ENGRAIN, "memory"),
    (*ENGRAIN, "overhead"),
    (*ENGRAIN, "startup"),
    (*ENGRAIN, "calibration"),
    (*ENGRAIN, "random_directions", "listening"),
    (*ENGRAIN, "compile", "listening"),
    (*ENGRAIN, "apollo"),
    (*ENGRAIN, "registry_speed"),
    (*ENGRAIN, "registry_switch"),
    (*ENGRAIN, "registry_writers"),
    (*ENGRAIN, "registry_faults", "kill"),
    (*ENGRAIN, "registry_faults", "flip"),
    (*ENGRAIN, "growth"),
    (*VLLM, "vllm_parity"),
    (*VLLM, "vllm_parity", "--compiled"),
    (*VLLM, "vllm_speed"),
    (*VLLM, "vllm_speed", "--compiled", "--processes", "0"),
    (*VLLM, "vllm_server", "switch"),
    (*VLLM, "vllm_server", "fuzz"),
    (*VLLM, "vllm_server", "soak"),
    (*ENGRAIN, "page"),
)


def main() -> None:
    """Run all parts; one that fails does not keep the others from running."""
    os.environ["ENGRAIN_HOME"] = str(Path(__file__).parent / ".registry")
    failed = []
    if subprocess.run([sys.executable, "-m", "engrain", "verify", "listening"]).returncode:
        failed.append("verify listening")
    for python, part, *options in PARTS:
        print(f"\n== {part} {' '.join(options)}", flush=True)
        if subprocess.run([python, "-m", f"benchmarks.{part}", *options]).returncode:
            failed.append(part)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
