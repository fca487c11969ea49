"""What all measurements share: the machine's line, medians and spread, a table, a JSON file."""

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer

RESULTS = Path(__file__).parent / "results"


class SideError(Exception):
    """A side of a comparison that does not run here; the message is the reason, in one line."""


def state_bytes(optimizer: "Optimizer") -> int:
    """Return the bytes of every tensor that an optimizer keeps."""
    import torch

    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def alternate(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run each side in turn, ``repeats`` times: whatever else the machine does falls on all of them alike.

    Every other round runs backwards, so that none always comes after the same one. A side that ends with ``SideError``
    is named in a line and left out.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in list(found) if turn % 2 == 0 else list(reversed(found)):
            try:
                found[name].append(sides[name]())
            except SideError as error:
                print(error)
                del found[name]
    return found


def show(rows: Sequence[Sequence[object]]) -> None:
    """Print rows as a table; the first is its head."""
    texts = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    for row in texts:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def command() -> str:
    """Return the command that runs, as somebody would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return shlex.join(["python", "-m", "unknown" if spec is None else spec.name, *sys.argv[1:]])


def write(name: str, result: dict[str, Any]) -> None:
    """Write a result as JSON, with the machine and the command."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), "command": command()} | result, indent=2, sort_keys=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
