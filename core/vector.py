"""A steering vector: one direction in the residual stream per decoder block, with what is known of its making."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from engrain.core.errors import InputError, LayerError, OutputExistsError, VectorError, WidthError
from engrain.core.files import parse_object, write_atomically
from engrain.core.fingerprint import Fingerprint
from engrain.core.header import MAX_HEADER, read_header
from engrain.core.number import finite, whole
from engrain.core.positions import OPERATIONS, check_positions

SCHEMA = "engrain.vector/1"
_MAX_LAYERS = 10_000
_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Calibration:
    """The dose that was chosen for a vector.

    Attributes:
        layer: decoder block, counted from 0.
        strength: factor on the direction as stored, above 0.
        positions: which tokens are steered.
        operation: add, ablate or clamp.
    """

    layer: int
    strength: float
    positions: str = "all"
    operation: str = "add"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as the manifest holds them."""
        return {
            "layer": self.layer,
            "strength": self.strength,
            "positions": self.positions,
            "operation": self.operation,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: a field is missing or out of its range.
        """
        layer, strength = fields.get("layer"), fields.get("strength")
        if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
            raise ValueError("the calibration's 'layer' is not a block number")
        if not finite(strength) or strength <= 0:
            raise ValueError("the calibration's 'strength' is not a number above 0")
        positions, operation = fields.get("positions", "all"), fields.get("operation", "add")
        if operation not in OPERATIONS:
            raise ValueError(f"the calibration's 'operation' is not one of {', '.join(OPERATIONS)}")
        if not isinstance(positions, str):
            raise ValueError("the calibration's 'positions' is not text")
        try:
            return cls(layer, float(strength), check_positions(positions), operation)
        except InputError as error:
            raise ValueError("the calibration's 'positions' is not all, prompt, generated or from:N") from error


@dataclass(frozen=True)
class SteeringVector:
    """One direction per decoder block, in the residual stream at the block's output.

    Attributes:
        directions: block number, counted from 0, to direction, float32 [d_model]; not normalised.
        name: what the behavior is called.
        fingerprint: the model it was made on, or None when that is not known.
        calibration: the chosen dose, or None.
        origin: how it was made (method, positions, digest of the pairs ...); plain JSON.
    """

    directions: Mapping[int, Tensor]
    name: str = "vector"
    fingerprint: Fingerprint | None = None
    calibration: Calibration | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.directions:
            raise VectorError(f"Vector '{self.name}' has no direction at any layer.")
        widths = {tuple(direction.shape) for direction in self.directions.values()}
        if len(widths) != 1 or len(next(iter(widths))) != 1:
            raise VectorError(
                f"Vector '{self.name}' has directions of the shapes {sorted(widths)}; all must be [d_model]."
            )
        ordered = {layer: self.directions[layer].detach().to(torch.float32) for layer in sorted(self.directions)}
        for layer, direction in ordered.items():
            if not torch.isfinite(direction).all():
                raise VectorError(f"Vector '{self.name}' holds NaN or infinity at layer {layer}; extract it again.")
        object.__setattr__(self, "directions", ordered)

    @property
    def layers(self) -> tuple[int, ...]:
        """The decoder blocks that the vector has a direction for, ascending."""
        return tuple(self.directions)

    @property
    def width(self) -> int:
        """d_model of the model it was made for."""
        return next(iter(self.directions.values())).shape[0]

    def at(self, layer: int) -> Tensor:
        """Return the direction at one block, float32 [d_model].

        Raises:
            LayerError: the vector has no direction there.
        """
        if layer not in self.directions:
            raise LayerError(
                f"Vector '{self.name}' has no direction at layer {layer}; it has {_ranges(self.layers)}. "
                f"Choose one of these, or extract again with --layers."
            )
        return self.directions[layer]

    def norms(self) -> dict[int, float]:
        """Return the Euclidean norm of the direction at each block."""
        return {layer: float(direction.norm()) for layer, direction in self.directions.items()}

    def cosine(self, other: "SteeringVector") -> dict[int, float]:
        """Return the cosine with another vector at each block that both have.

        Raises:
            WidthError: the other vector is for another model width.
        """
        self._check_width(other)
        return {
            layer: float(torch.cosine_similarity(self.directions[layer], other.directions[layer], dim=0))
            for layer in self.layers
            if layer in other.directions
        }

    def calibrated(self, calibration: Calibration) -> Self:
        """Return the same directions with a chosen dose.

        Raises:
            LayerError: the vector has no direction at the dose's layer.
        """
        self.at(calibration.layer)
        return replace(self, calibration=calibration)

    def __add__(self, other: "SteeringVector") -> Self:
        """Sum at the blocks that both have; a dose chosen for either says nothing of the sum and is dropped."""
        return self._combine(other, torch.add, "+")

    def __sub__(self, other: "SteeringVector") -> Self:
        """Difference at the blocks that both have."""
        return self._combine(other, torch.sub, "-")

    def __mul__(self, factor: float) -> Self:
        """Scale every direction; the calibration is dropped, its strength was for the old length."""
        scaled = {layer: direction * factor for layer, direction in self.directions.items()}
        return replace(self, directions=scaled, calibration=None)

    __rmul__ = __mul__

    def __neg__(self) -> Self:
        """The opposite direction at every block."""
        return self * -1.0

    def _combine(self, other: "SteeringVector", operation: Callable[[Tensor, Tensor], Tensor], sign: str) -> Self:
        self._check_width(other)
        shared = [layer for layer in self.layers if layer in other.directions]
        if not shared:
            raise LayerError(f"Vectors '{self.name}' and '{other.name}' have no layer in common.")
        if self.fingerprint and other.fingerprint and self.fingerprint.differences(other.fingerprint):
            raise VectorError(f"Vectors '{self.name}' and '{other.name}' were made on different models.")
        return replace(
            self,
            directions={layer: operation(self.directions[layer], other.directions[layer]) for layer in shared},
            name=f"{self.name}{sign}{other.name}",
            fingerprint=self.fingerprint or other.fingerprint,
            calibration=None,
            origin={},
        )

    def _check_width(self, other: "SteeringVector") -> None:
        if self.width != other.width:
            raise WidthError(
                f"Vector '{self.name}' has width {self.width}, '{other.name}' has {other.width}; "
                f"only vectors of one model can be combined."
            )

    def to_safetensors(self) -> bytes:
        """Return the directions as safetensors without metadata: the same directions give the same bytes."""
        return save_safetensors({f"layer.{layer}": value.contiguous() for layer, value in self.directions.items()})

    def manifest(self) -> dict[str, Any]:
        """Return what is known of the vector besides its numbers; plain JSON."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "d_model": self.width,
            "layers": list(self.layers),
            "model": None if self.fingerprint is None else self.fingerprint.to_json(),
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "origin": dict(self.origin),
        }

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write ``x.safetensors`` and its manifest ``x.json`` beside it; ``load`` of it is this vector.

        Raises:
            OutputExistsError: a file is in the way and ``force`` is false.
            VectorError: the path does not end in .safetensors.
            InputError: the folder cannot be written to.
        """
        path = Path(path)
        check_out(path, force=force)
        manifest = json.dumps(self.manifest(), indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"
        # The manifest first: a vector file alone would be read as one of an unknown model.
        write_atomically(path.with_suffix(".json"), manifest, force=force)
        write_atomically(path, self.to_safetensors(), force=force)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a vector file and, where there is one, the manifest beside it.

        Raises:
            VectorError: not a safetensors file of ``layer.<i>`` tensors, a manifest that does not fit it, or one of
                the two cannot be read.
            DataError: the file's header or the manifest is no JSON object.
        """
        path = Path(path)
        beside = path.with_suffix(".json")
        data = _read(path)
        manifest = parse_object(_read(beside), beside, None) if beside.is_file() else None
        return cls.from_bytes(data, manifest, source=str(path), name=path.stem)

    @classmethod
    def from_bytes(cls, data: bytes, manifest: Mapping[str, Any] | None, *, source: str, name: str = "vector") -> Self:
        """Read a vector from the bytes of its file and its parsed manifest, or None where there is none.

        Raises:
            VectorError, DataError: as ``load``.
        """
        check_header(data, source)
        try:
            tensors = load_safetensors(data)
        except (SafetensorError, ValueError, RuntimeError) as error:
            raise VectorError(f"'{source}' is not a whole safetensors file ({error}).") from error
        vector = cls({int(key.removeprefix("layer.")): value for key, value in tensors.items()}, name=name)
        return vector if manifest is None else vector._with_manifest(manifest, source)

    def _with_manifest(self, manifest: Mapping[str, Any], source: str) -> Self:
        def wrong(problem: str) -> VectorError:
            return VectorError(f"The manifest of '{source}' does not fit: {problem}.")

        if manifest.get("schema") != SCHEMA:
            raise wrong(f"schema {manifest.get('schema')!r}, this engrain reads '{SCHEMA}'")
        if manifest.get("d_model") != self.width or manifest.get("layers") != list(self.layers):
            raise wrong("width or layers are not those of the tensors")
        name, model = manifest.get("name"), manifest.get("model")
        calibration, origin = manifest.get("calibration"), manifest.get("origin", {})
        if not isinstance(name, str) or not name or not isinstance(origin, dict):
            raise wrong("'name' or 'origin' is missing or of the wrong type")
        try:
            vector = replace(
                self,
                name=name,
                fingerprint=None if model is None else Fingerprint.from_json(model),
                origin=origin,
            )
            return vector if calibration is None else vector.calibrated(Calibration.from_json(calibration))
        except (ValueError, AttributeError, LayerError) as error:
            raise wrong(str(error)) from error


def check_out(path: Path, *, force: bool = False) -> None:
    """Check that a vector may be written to ``path``, and its manifest beside it.

    Raises:
        OutputExistsError: a file is in the way and ``force`` is false.
        VectorError: the path does not end in .safetensors.
    """
    if path.suffix != ".safetensors":
        raise VectorError(f"'{path}' must end in .safetensors, the only format vectors are written in.")
    for taken in (path, path.with_suffix(".json")):
        if taken.exists() and not force:
            raise OutputExistsError(taken)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VectorError(f"'{path}' cannot be read ({error.strerror or error}).") from error


def check_header(data: bytes, source: str) -> None:
    """Check the header of a vector file before anything is made of it.

    Raises:
        VectorError: a pickle, a torn or oversized header, or tensors that are not ``layer.<i>`` of [d_model].
        DataError: the header is not JSON.
    """
    header = read_header(data[: 8 + MAX_HEADER], len(data), source)
    if not 0 < len(header) <= _MAX_LAYERS:
        raise VectorError(f"'{source}' holds {len(header)} tensors; a vector has one per layer.")
    for key, entry in header.items():
        number = key.removeprefix("layer.")
        if not key.startswith("layer.") or not whole(number) or str(int(number)) != number:
            raise VectorError(f"'{source}' holds the tensor {key[:60]!r}; a vector's tensors are named 'layer.<i>'.")
        shape, dtype = (entry.get("shape"), entry.get("dtype")) if isinstance(entry, dict) else (None, None)
        if dtype not in _DTYPES or not isinstance(shape, list) or len(shape) != 1 or shape[0] == 0:
            raise VectorError(f"'{source}' holds '{key}' as {dtype} {shape}; a direction is float32 [d_model].")


def _ranges(layers: tuple[int, ...]) -> str:
    contiguous = layers == tuple(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if contiguous and len(layers) > 2 else ", ".join(map(str, layers))
