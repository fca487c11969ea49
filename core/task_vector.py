"""A task vector: what is added to the weights of one model, with what is known of its making."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from engrain.core.errors import FingerprintError, StrengthError, VectorError
from engrain.core.files import folder_atomically, parse_object
from engrain.core.fingerprint import Fingerprint
from engrain.core.header import MAX_HEADER, read_header
from engrain.core.names import MANIFEST
from engrain.core.number import finite

SCHEMA = "engrain.task-vector/1"
DELTA = "delta.safetensors"
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)+")
_MAX_NAME, _MAX_TENSORS, _MAX_DIMENSIONS = 256, 10_000, 3
_MAX_MANIFEST = 64 << 20


@dataclass(frozen=True)
class TaskVector:
    """The difference between a compiled model and its base: ``W_compiled - W_base``, for the tensors that differ.

    Law: ``load`` of what ``save`` wrote is this task vector, to the bit.

    Attributes:
        name: what the behavior is called.
        tensors: name of a parameter of the base to what is added to it, float32, of the parameter's shape. The bias of
            a linear module that has none in the base may be among them, [d_out].
        fingerprint: the base.
        origin: how it was made (source vector and its digest, spec, backend ...); plain JSON.

    Raises:
        VectorError: no tensor, a name that no parameter can have, or NaN or infinity.
    """

    name: str
    tensors: Mapping[str, Tensor]
    fingerprint: Fingerprint
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tensors:
            raise VectorError(f"Task vector '{self.name}' changes nothing; it needs at least one tensor.")
        for name in self.tensors:
            _check_tensor_name(name, f"Task vector '{self.name}'")
        ordered = {name: self.tensors[name].detach().to(torch.float32) for name in sorted(self.tensors)}
        for name, delta in ordered.items():
            if not torch.isfinite(delta).all():
                raise VectorError(f"Task vector '{self.name}' holds NaN or infinity in '{name}'; compile it again.")
        object.__setattr__(self, "tensors", ordered)

    @property
    def layers(self) -> tuple[int, ...]:
        """The decoder blocks that it changes, ascending."""
        return tuple(sorted({layer for layer in map(layer_of, self.tensors) if layer is not None}))

    def norm(self) -> float:
        """Return the Euclidean norm of all the numbers in it."""
        return math.sqrt(sum(_dot(delta, delta) for delta in self.tensors.values()))

    def cosine(self, other: "TaskVector") -> dict[int, float]:
        """Return the cosine with another task vector at each block that both change; 0 where one is all zeros.

        A tensor that only one of them has counts as zeros in the other; tensors outside of the blocks are left out.

        Raises:
            FingerprintError: the other one is for another base.
        """
        self._check_base(other)
        sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for name in {**self.tensors, **other.tensors}:
            layer = layer_of(name)
            if layer is None:
                continue
            one, another = self.tensors.get(name), other.tensors.get(name)
            for place, (left, right) in enumerate(((one, another), (one, one), (another, another))):
                if left is not None and right is not None:
                    sums[layer][place] += _dot(left, right)
        shared = set(self.layers) & set(other.layers)
        return {
            layer: sums[layer][0] / math.sqrt(sums[layer][1] * sums[layer][2]) if all(sums[layer][1:]) else 0.0
            for layer in sorted(shared)
        }

    def __add__(self, other: "TaskVector") -> "TaskVector":
        """Both changes at once; a tensor that only one has is taken as it is.

        Raises:
            FingerprintError: the other one is for another base.
            VectorError: a tensor of another shape.
        """
        return replace(weighted_sum([(self, 1.0), (other, 1.0)]), name=f"{self.name}+{other.name}")

    def __mul__(self, scale: float) -> Self:
        """Scale the change."""
        return replace(self, tensors={name: delta * scale for name, delta in self.tensors.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Self:
        """The opposite change."""
        return self * -1.0

    def manifest(self) -> dict[str, Any]:
        """Return what is known of it besides its numbers; plain JSON."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "base": self.fingerprint.to_json(),
            "tensors": {name: list(delta.shape) for name, delta in self.tensors.items()},
            "origin": dict(self.origin),
        }

    def save(self, folder: Path | str, *, force: bool = False) -> None:
        """Write a folder of ``delta.safetensors`` and ``manifest.json``, whole or not at all.

        The same numbers give the same bytes: the safetensors file has no metadata.

        Raises:
            OutputExistsError: the folder exists and ``force`` is false.
            InputError: it cannot be written, or is no folder of a task vector.
        """
        manifest = json.dumps(self.manifest(), indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"
        with folder_atomically(Path(folder), MANIFEST, force=force) as draft:
            self.write_delta(draft / DELTA)
            (draft / MANIFEST).write_bytes(manifest)

    def write_delta(self, path: Path) -> None:
        """Write the tensors alone, as safetensors without metadata."""
        save_file({name: delta.contiguous() for name, delta in self.tensors.items()}, path)
        path.chmod(0o644)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a folder that ``save`` wrote.

        Raises:
            VectorError: it holds no task vector, or one whose files are torn or do not fit each other.
            DataError: its manifest is not JSON.
        """
        where = Path(folder) / MANIFEST
        try:
            if where.stat().st_size > _MAX_MANIFEST:
                raise VectorError(f"'{where}' has {where.stat().st_size} bytes, more than a manifest needs.")
            raw = where.read_bytes()
        except OSError as error:
            raise VectorError(
                f"'{folder}' is not the folder of a task vector: {MANIFEST} cannot be read ({error.strerror or error})."
            ) from error
        return cls.read(Path(folder) / DELTA, parse_object(raw, where, None), source=str(folder))

    @classmethod
    def read(cls, delta: Path, manifest: Mapping[str, Any], *, source: str) -> Self:
        """Read a task vector from the file of its tensors and its parsed manifest.

        Raises:
            VectorError: the file is no whole safetensors file of float32 parameters, or the manifest does not fit it.
        """
        shapes = _check_delta(delta, source)
        if manifest.get("schema") != SCHEMA:
            raise VectorError(
                f"The manifest of '{source}' has the schema {manifest.get('schema')!r}, this engrain reads '{SCHEMA}'."
            )
        if manifest.get("tensors") != shapes:
            raise VectorError(f"The manifest of '{source}' does not name the tensors and shapes that '{delta}' holds.")
        name, base, origin = manifest.get("name"), manifest.get("base"), manifest.get("origin", {})
        if not isinstance(name, str) or not name or not isinstance(base, dict) or not isinstance(origin, dict):
            raise VectorError(f"The manifest of '{source}': 'name', 'base' or 'origin' is missing or of a wrong type.")
        try:
            return cls(name, load_file(delta), Fingerprint.from_json(base), origin)
        except SafetensorError as error:
            raise VectorError(f"'{delta}' is not a whole safetensors file ({error}).") from error
        except ValueError as error:
            raise VectorError(f"The manifest of '{source}' does not fit: {error}.") from error

    def _check_base(self, other: "TaskVector") -> None:
        differences = self.fingerprint.differences(other.fingerprint)
        if differences:
            raise FingerprintError(
                f"Task vectors '{self.name}' and '{other.name}' were made on different bases, "
                f"'{self.fingerprint.source}' and '{other.fingerprint.source}': {', '.join(differences)} differ. "
                f"Compile one of them again on the other's base."
            )


def weighted_sum(parts: Sequence[tuple[TaskVector, float]]) -> TaskVector:
    """Return the sum of scale * delta over task vectors of one base, named as the first; its origin is empty.

    A tensor that one of them has not counts as zeros there. Each sum is made in float64 and rounded once.

    Raises:
        FingerprintError: two are for different bases.
        VectorError: two change a tensor with different shapes, no parts, or a sum beyond float32.
        StrengthError: a scale is not finite.
    """
    if not parts:
        raise VectorError("No task vectors to add; give at least one.")
    first = parts[0][0]
    where: dict[str, list[tuple[TaskVector, float]]] = defaultdict(list)
    for one, scale in parts:
        if not finite(scale):
            raise StrengthError(f"The scale of '{one.name}' is {scale}; it must be a finite number.")
        first._check_base(one)
        for name in one.tensors:
            where[name].append((one, scale))
    return replace(first, tensors={name: _sum(name, having) for name, having in where.items()}, origin={})


def _sum(name: str, parts: Sequence[tuple[TaskVector, float]]) -> Tensor:
    first = parts[0][0]
    total = torch.zeros_like(first.tensors[name], dtype=torch.float64)
    for one, scale in parts:
        delta = one.tensors[name]
        if delta.shape != total.shape:
            raise VectorError(
                f"Task vectors '{first.name}' and '{one.name}' change '{name}' with the shapes {list(total.shape)} and "
                f"{list(delta.shape)}, so they cannot be added. Leave one of them out, or compile it again."
            )
        total += scale * delta.double()
    return total.float()


def layer_of(name: str) -> int | None:
    """Return the decoder block that a parameter belongs to, or None for one outside of the blocks."""
    # Families name the list of blocks differently (layers, h, blocks); a number is first met right behind its name.
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.flatten().double(), other.flatten().double()))


def _check_tensor_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise VectorError(
            f"{where} holds the tensor {name[:60]!r}; tensors are named as the base's parameters, "
            f"'model.layers.3.mlp.down_proj.weight'."
        )


def _check_delta(path: Path, source: str) -> dict[str, list[int]]:
    """Return the shapes that the file's header announces.

    Raises:
        VectorError: it is missing, no safetensors file, or holds what is no float32 parameter.
    """
    try:
        with path.open("rb") as file:
            start, size = file.read(8 + MAX_HEADER), path.stat().st_size
    except OSError as error:
        raise VectorError(f"'{source}' is not a task vector: {path.name} cannot be read ({error.strerror}).") from error
    header = read_header(start, size, str(path))
    if not 0 < len(header) <= _MAX_TENSORS:
        raise VectorError(f"'{path}' holds {len(header)} tensors; a task vector has 1 to {_MAX_TENSORS}.")
    shapes: dict[str, list[int]] = {}
    for name, entry in header.items():
        _check_tensor_name(name, f"'{path}'")
        shape, dtype = (entry.get("shape"), entry.get("dtype")) if isinstance(entry, dict) else (None, None)
        whole = isinstance(shape, list) and 0 < len(shape) <= _MAX_DIMENSIONS
        if dtype != "F32" or not whole or not all(type(size) is int and size > 0 for size in shape or ()):
            raise VectorError(
                f"'{path}' holds '{name}' as {dtype} {shape}; a delta is float32 of its parameter's shape."
            )
        shapes[name] = list(shape or ())
    return shapes
