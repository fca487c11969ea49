"""How a version was made: configuration, seeds, data, packages, plugins, hardware; a statement beside the version.

It has a time and a machine, so it is no part of the version's digest: the same content made twice is the same version,
with the statement of the first time. Shaped as an in-toto statement, whose subject is the manifest, so that it can be
signed as it is.
"""

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from engrain.registry.journal import now
from engrain.registry.manifest import canonical

_PACKAGES = (
    "engrain",
    "numpy",
    "omegaconf",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Provenance:
    """What only the caller knows about how something was made.

    Attributes:
        act: extract, calibrate, verify, compile.
        config: everything that was decided, resolved, as JSON data.
        seeds: by what they are for.
        data: digests of the data, by role.
    """

    act: str
    config: Mapping[str, Any]
    seeds: Mapping[str, int] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)

    def statement(self, reference: str, digest: str) -> bytes:
        """Return the statement on a version, with what this process and this machine are.

        Args:
            reference: of the name.
            digest: of the manifest.

        Raises:
            InputError: the configuration is not JSON data.
        """
        predicate = {
            "act": self.act,
            "config": dict(self.config),
            "seeds": dict(self.seeds),
            "data": dict(self.data),
            "packages": _packages(),
            "plugins": _plugins(),
            "hardware": _hardware(),
            "finished": now(),
        }
        subject = [{"name": reference, "digest": {"sha256": digest.removeprefix("sha256:")}}]
        statement = {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": subject,
            "predicateType": "urn:engrain:provenance:1",
            "predicate": predicate,
        }
        return canonical(statement, f"the provenance of {reference}")


def _packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _plugins() -> dict[str, str]:
    """Return the distributions that plugins come from, with their versions."""
    entries = entry_points(group="engrain")
    return {entry.dist.name: entry.dist.version for entry in entries if entry.dist is not None}


def _hardware() -> dict[str, Any]:
    found: dict[str, Any] = {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count() or 0}
    # Looked at only where the work has loaded it: a verdict on data alone needs no torch.
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        found["deterministic"] = torch.are_deterministic_algorithms_enabled()
        found["cuda"] = torch.version.cuda
        found["devices"] = [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
