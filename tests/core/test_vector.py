"""Vectors: arithmetic, files, and what is refused of both."""

import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from engrain.core.errors import EngrainError, LayerError, OutputExistsError, VectorError, WidthError
from engrain.core.fingerprint import Fingerprint
from engrain.core.vector import Calibration, SteeringVector

PRINT = Fingerprint("here", "Tiny", "sha256:a", "sha256:b", "sha256:c", "sha256:d", "float32")


def make(width: int = 4, layers: tuple[int, ...] = (0, 2), seed: int = 0) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector({layer: torch.randn(width, generator=generator) for layer in layers}, "brevity")


def same(one: SteeringVector, other: SteeringVector) -> bool:
    return one.layers == other.layers and all(torch.equal(one.at(layer), other.at(layer)) for layer in one.layers)


def test_saving_and_loading_is_identity(tmp_path: Path) -> None:
    vector = replace(make(), fingerprint=PRINT, origin={"method": "mean-difference"}).calibrated(
        Calibration(2, 1.5, "generated", "ablate")
    )
    vector.save(tmp_path / "v.safetensors")
    loaded = SteeringVector.load(tmp_path / "v.safetensors")
    assert same(vector, loaded)
    assert (loaded.fingerprint, loaded.calibration, loaded.origin, loaded.name) == (
        vector.fingerprint,
        vector.calibration,
        vector.origin,
        vector.name,
    )


def test_the_same_directions_give_the_same_bytes() -> None:
    forwards = make(layers=tuple(range(12)))
    backwards = SteeringVector(dict(reversed(list(forwards.directions.items()))))
    assert forwards.to_safetensors() == backwards.to_safetensors()


def test_a_file_without_a_manifest_is_a_vector_of_an_unknown_model(tmp_path: Path) -> None:
    save_file({"layer.3": torch.ones(5)}, tmp_path / "bare.safetensors")
    vector = SteeringVector.load(tmp_path / "bare.safetensors")
    assert (vector.layers, vector.width, vector.fingerprint, vector.calibration) == ((3,), 5, None, None)


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    save_file({"layer.0": torch.tensor([1.5, 2.5], dtype=torch.bfloat16)}, tmp_path / "half.safetensors")
    assert SteeringVector.load(tmp_path / "half.safetensors").at(0).dtype == torch.float32


def test_arithmetic_is_that_of_the_directions() -> None:
    one, other = make(seed=1), make(seed=2)
    assert torch.equal((one + other).at(2), one.at(2) + other.at(2))
    assert same(one + other - other, one) or torch.allclose((one + other - other).at(0), one.at(0))
    opposite = -one
    assert same(-opposite, one)
    assert torch.equal((2 * one).at(0), one.at(0) * 2)
    assert one.cosine(one * 3.0)[0] == pytest.approx(1)
    assert one.cosine(-one)[2] == pytest.approx(-1)
    assert one.norms()[0] == pytest.approx(float(one.at(0).norm()))


def test_scaling_drops_the_calibration_whose_strength_was_for_the_old_length() -> None:
    assert (make().calibrated(Calibration(0, 1.0)) * 2).calibration is None


def test_vectors_of_other_widths_or_models_are_not_combined() -> None:
    with pytest.raises(WidthError):
        make(4) + make(5)
    with pytest.raises(VectorError, match="different models"):
        replace(make(), fingerprint=PRINT) + replace(make(), fingerprint=replace(PRINT, weights="sha256:e"))
    with pytest.raises(LayerError, match="no layer in common"):
        make(layers=(0,)) + make(layers=(1,))


def test_a_layer_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(LayerError, match=r"no direction at layer 7; it has 0-3"):
        make(layers=(0, 1, 2, 3)).at(7)


def test_directions_that_are_not_finite_are_refused() -> None:
    with pytest.raises(VectorError, match="NaN or infinity at layer 1"):
        SteeringVector({1: torch.tensor([1.0, float("nan")])})


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "boom",))

    torch.save({"layer.0": torch.ones(2)}, tmp_path / "v.pt")
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(Bomb()))
    for name in ("v.pt", "v.pkl"):
        with pytest.raises(VectorError, match="can run code"):
            SteeringVector.load(tmp_path / name)
    assert not (tmp_path / "boom").exists()


def header(entries: dict[str, Any], body: bytes = b"") -> bytes:
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw)) + raw + body


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "too few"),
        (struct.pack("<Q", 2**63) + b"{}", "announces a header"),
        (struct.pack("<Q", 2) + b"{}", "holds 0 tensors"),
        (struct.pack("<Q", 4) + b"nope", "not JSON"),
        (header({"embed": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "named 'layer.<i>'"),
        (header({"layer.-1": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "named 'layer.<i>'"),
        (header({"layer.01": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "named 'layer.<i>'"),
        (header({f"layer.{'9' * 5000}": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "named"),
        (header({"layer.0": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}, bytes(4)), "float32"),
        (header({"layer.0": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)), "float32"),
        (header({"layer.0": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, bytes(4)), "whole safetensors"),
        (header({"layer.0": 3}), "float32"),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(EngrainError, match=said) as caught:
        SteeringVector.load(path)
    assert "\n" not in str(caught.value)
    assert "hostile.safetensors" in str(caught.value)


def test_a_file_cut_anywhere_is_refused() -> None:
    whole = make().to_safetensors()
    for end in range(len(whole)):
        with pytest.raises(EngrainError):
            SteeringVector.from_bytes(whole[:end], None, source="cut")


@given(st.integers(0, 400), st.binary(min_size=1, max_size=12))
def test_overwritten_bytes_give_a_vector_or_an_error_of_ours(place: int, noise: bytes) -> None:
    whole = bytearray(save({"layer.0": torch.arange(8.0), "layer.1": torch.arange(8.0)}))
    start = place % len(whole)
    whole[start : start + len(noise)] = noise
    try:
        vector = SteeringVector.from_bytes(bytes(whole), None, source="fuzz")
    except EngrainError:
        return
    assert all(torch.isfinite(direction).all() for direction in vector.directions.values())


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "engrain.vector/9"},
        {"d_model": 5},
        {"layers": [0, 1]},
        {"name": 3},
        {"model": {"weights": "sha256:a"}},
        {"model": "demo"},
        {"calibration": {"layer": 9, "strength": 1}},
        {"calibration": {"layer": 0, "strength": -1}},
        {"calibration": {"layer": 0, "strength": float("1e400")}},
        {"calibration": {"layer": 0, "strength": 10**400}},
        {"calibration": {"layer": 0, "strength": True}},
        {"calibration": {"layer": 0, "strength": 1, "operation": "explode"}},
        {"calibration": {"layer": 0, "strength": 1, "positions": "from:x"}},
        {"calibration": [1]},
        {"origin": 3},
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    vector = make()
    with pytest.raises(VectorError, match="The manifest of 'here' does not fit"):
        SteeringVector.from_bytes(vector.to_safetensors(), vector.manifest() | change, source="here")


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().save(tmp_path / "v.safetensors")
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.suffix == ".json":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(VectorError, match=r"v\.json' cannot be read \(Permission denied\)"):
        SteeringVector.load(tmp_path / "v.safetensors")


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    make(seed=1).save(path)
    with pytest.raises(OutputExistsError):
        make(seed=2).save(path)
    assert same(SteeringVector.load(path), make(seed=1))
    make(seed=2).save(path, force=True)
    assert same(SteeringVector.load(path), make(seed=2))


def test_saving_over_either_file_writes_neither(tmp_path: Path) -> None:
    bare, noted = tmp_path / "bare.safetensors", tmp_path / "noted.json"
    save_file({"layer.3": torch.ones(5)}, bare)
    noted.write_text("mine")
    for path, taken in ((bare, "bare.safetensors"), (noted.with_suffix(".safetensors"), "noted.json")):
        with pytest.raises(OutputExistsError, match=taken):
            make().save(path)
    assert SteeringVector.load(bare).layers == (3,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare.safetensors", "noted.json"]
    with pytest.raises(VectorError, match=r"must end in \.safetensors"):
        make().save(tmp_path / "v.pt")
