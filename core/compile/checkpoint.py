"""Where training stands, in one file: written whole or not at all, so that it goes on from there after any end."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engrain.core.errors import DataError
from engrain.core.files import parse_object, write_atomically

SCHEMA = "engrain.checkpoint/1"
FILE = "checkpoint.safetensors"
_KEY = "engrain"


@dataclass(frozen=True)
class Checkpoint:
    """Where training stands.

    Attributes:
        tensors: by name.
        state: everything else; plain JSON.
    """

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]

    def save(self, folder: Path, key: str) -> None:
        """Write it in the place of the one before, which stays when this one cannot be written.

        Args:
            folder: where.
            key: what the training depends on.

        Raises:
            InputError: the folder cannot be written to.
        """
        whole = json.dumps({"schema": SCHEMA, "key": key, "state": dict(self.state)}, sort_keys=True)
        data = save({name: tensor.contiguous() for name, tensor in self.tensors.items()}, {_KEY: whole})
        write_atomically(folder / FILE, data, force=True)

    @classmethod
    def load(cls, folder: Path, key: str) -> "Checkpoint | None":
        """Return what was saved for the same ``key``; None where there is none, or one that cannot be read."""
        try:
            with safe_open(folder / FILE, "pt") as file:
                found = parse_object((file.metadata() or {}).get(_KEY, "").encode(), folder / FILE, None)
                if found.get("schema") != SCHEMA or found.get("key") != key or not isinstance(found.get("state"), dict):
                    return None
                return cls({name: file.get_tensor(name) for name in file.keys()}, found["state"])  # noqa: SIM118
        except (OSError, SafetensorError, DataError):
            # Only a way to save time: what cannot be read is trained again.
            return None


def forget(folder: Path) -> None:
    """Take the checkpoint away: the training is finished and its result stands elsewhere."""
    (folder / FILE).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's state as tensors by name, and the plain values as JSON."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            (tensors if isinstance(value, Tensor) else plain)[f"{number}.{name}"] = value
    return tensors, plain


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Put back what ``pack_optimizer`` returned; the groups stay as they are."""
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for path, value in {**tensors, **plain}.items():
        number, _, name = path.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**whole, "state": state})
