"""The worker's side of task vectors: written into vLLM's weights, and taken off by loading what the checkpoint has."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from engrain.core.edit import edited
from engrain.core.errors import FingerprintError, InputError, UnknownNameError, VectorError
from engrain.core.task_vector import TaskVector
from engrain.registry.store import Store
from engrain.registry.task_vectors import read_task_vector

# Written for each: {"name", "where", "digest", "scale"}. Plain data, so that it crosses process borders.
WireEdit = Mapping[str, Any]


class Weights:
    """The task vectors on the weights of one worker.

    vLLM packs weights after loading, so they are not changed in place but loaded again: only those that a task vector
    changes or changed, with whatever is fused with them. The originals are the checkpoint's own files, so taking
    everything off gives the base to the bit.

    Args:
        worker: of vLLM.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._edits: list[WireEdit] = []
        self._changed: set[str] = set()

    @property
    def edits(self) -> list[WireEdit]:
        """What is on."""
        return list(self._edits)

    def put_on(self, edits: Sequence[WireEdit]) -> None:
        """Put exactly these task vectors on the weights. No request may run meanwhile, and cached blocks are void.

        Raises:
            IntegrityError, VectorError: a task vector that is not what it was said to be.
            UnknownNameError: it changes what the checkpoint has no tensor for.
            InputError: the model does not lie in a folder of safetensors.
        """
        if not edits and not self._changed:
            return
        files = self._files()
        deltas: dict[str, list[tuple[float, Tensor]]] = defaultdict(list)
        for edit in sorted(edits, key=lambda one: str(one["name"])):
            for name, delta in _read(edit).tensors.items():
                self._check(name, delta, files)
                deltas[name].append((float(edit["scale"]), delta))
        names = self._with_fused(self._changed | deltas.keys(), files)
        # Should loading end half-way, what it has changed is known, and the next call sets it right.
        self._changed |= deltas.keys()
        self._worker.reload_weights(weights_iterator=self._load(names, files, deltas))
        self._edits, self._changed = list(edits), set(deltas)

    def _files(self) -> dict[str, Path]:
        """Return the file of each tensor of the checkpoint."""
        folder = Path(self._worker.vllm_config.model_config.model)
        found: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        if not found:
            raise InputError(
                f"'{folder}' is no folder of safetensors; task vectors are served on a model that lies in one."
            )
        return found

    def _check(self, name: str, delta: Tensor, files: Mapping[str, Path]) -> None:
        if name not in files:
            raise UnknownNameError("tensor of the checkpoint called", name, files)
        with safe_open(files[name], framework="pt") as file:
            shape = file.get_slice(name).get_shape()
        if list(delta.shape) != list(shape):
            raise VectorError(f"'{name}' is changed as {list(delta.shape)}, the checkpoint has it as {list(shape)}.")

    def _with_fused(self, names: set[str], files: Mapping[str, Path]) -> list[str]:
        """Add what vLLM keeps in one tensor with these, as q, k and v: its loader takes all of it together."""
        found = set(names)
        for parts in getattr(self._worker.model_runner.get_model(), "packed_modules_mapping", {}).values():
            for name in names:
                path = name.split(".")
                places = [place for place, step in enumerate(path) if step in parts]
                for place in places:
                    siblings = {".".join([*path[:place], part, *path[place + 1 :]]) for part in parts}
                    found |= siblings & files.keys()
        return sorted(found)

    def _load(
        self, names: Sequence[str], files: Mapping[str, Path], deltas: Mapping[str, list[tuple[float, Tensor]]]
    ) -> Iterator[tuple[str, Tensor]]:
        dtype: torch.dtype = self._worker.vllm_config.model_config.dtype
        for name in names:
            with safe_open(files[name], framework="pt") as file:
                base = file.get_tensor(name).to(dtype)
            yield name, edited(base, deltas[name]).to(dtype) if name in deltas else base


def _read(edit: WireEdit) -> TaskVector:
    """Return a task vector, when it is still the one that was meant."""
    if edit["digest"] is not None:
        version = Store().resolve(str(edit["where"]))
        if version.digest != edit["digest"]:
            raise FingerprintError(f"'{edit['where']}' is {version.digest} on a worker, {edit['digest']} was meant.")
    return read_task_vector(Store(), str(edit["where"]))
