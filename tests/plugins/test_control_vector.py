"""Control vectors of llama.cpp and repeng."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from damage import overwrite
from engrain.core.errors import OutputExistsError, VectorError
from engrain.core.fingerprint import Fingerprint
from engrain.core.vector import Calibration, SteeringVector
from engrain.plugins.control_vector import read_control_vector, write_control_vector

PRINT = Fingerprint("here", "LlamaForCausalLM", "sha256:a", "sha256:b", "sha256:c", "sha256:d", "float32")


def make(*layers: int) -> SteeringVector:
    generator = torch.Generator().manual_seed(0)
    return SteeringVector({layer: torch.randn(8, generator=generator) for layer in layers or (0, 1, 2, 11)}, "happy")


def foreign(path: Path, tensors: dict[str, Any], architecture: str = "controlvector") -> Path:
    """Write a file as repeng and llama.cpp's generator do."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, values in tensors.items():
        writer.add_tensor(name, np.asarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_writing_and_reading_keeps_every_layer_but_the_first(tmp_path: Path) -> None:
    vector = make()
    said = write_control_vector(vector, tmp_path / "v.gguf")
    found = read_control_vector(tmp_path / "v.gguf", "again")
    assert said["layers"] == [1, 2, 11]
    assert found.layers == (1, 2, 11)
    assert all(torch.equal(found.at(layer), vector.at(layer)) for layer in found.layers)
    assert (found.name, found.fingerprint, found.calibration) == ("again", None, None)


def test_the_file_is_what_llama_cpp_looks_for(tmp_path: Path) -> None:
    write_control_vector(replace(make(), fingerprint=PRINT), tmp_path / "v.gguf")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    architecture, count = (reader.get_field(key) for key in ("general.architecture", "controlvector.layer_count"))
    assert architecture is not None
    assert count is not None
    assert bytes(architecture.parts[-1]) == b"controlvector"
    assert int(count.parts[-1][0]) == 3
    assert {tensor.name for tensor in reader.tensors} == {"direction.1", "direction.2", "direction.11"}
    assert all(tensor.tensor_type == gguf.GGMLQuantizationType.F32 for tensor in reader.tensors)
    assert all(list(tensor.shape) == [8] for tensor in reader.tensors)


def test_a_calibrated_vector_is_written_as_it_is_used(tmp_path: Path) -> None:
    vector = make().calibrated(Calibration(2, 1.5))
    assert write_control_vector(vector, tmp_path / "v.gguf") == {"layers": [2], "strength": 1.5}
    found = read_control_vector(tmp_path / "v.gguf", "again")
    assert torch.equal(found.at(2), vector.at(2) * 1.5)


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        (make(0), "at layer 0"),
        (make().calibrated(Calibration(0, 1.0)), "at layer 0"),
        (make().calibrated(Calibration(2, 1.0, operation="ablate")), "to ablate on all tokens"),
        (make().calibrated(Calibration(2, 1.0, positions="generated")), "to add on generated tokens"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(tmp_path: Path, vector: SteeringVector, said: str) -> None:
    with pytest.raises(VectorError, match=said):
        write_control_vector(vector, tmp_path / "v.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_repeng_is_read_with_its_hint(tmp_path: Path) -> None:
    path = foreign(tmp_path / "r.gguf", {"direction.5": np.ones(4, np.float32), "direction.0": np.zeros(4, np.float32)})
    vector = read_control_vector(path, "happy")
    assert vector.layers == (0, 5)
    assert vector.origin["imported"]["model_hint"] == "mistral"
    assert vector.origin["imported"]["digest"].startswith("sha256:")
    assert str(tmp_path) not in str(vector.manifest())


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"direction.x": np.ones(4, np.float32)}, "named direction.N"),
        ({"direction.01": np.ones(4, np.float32)}, "named direction.N"),
        ({"direction." + "9" * 5000: np.ones(4, np.float32)}, "named direction.N"),
        ({"output.weight": np.ones(4, np.float32)}, "named direction.N"),
        ({"direction.1": np.ones((2, 4), np.float32)}, "another form"),
        ({"direction.1": np.ones(4, np.float16)}, "another form"),
        ({"direction.1": np.array([1, np.nan], np.float32)}, "NaN"),
        ({"direction.1": np.ones(4, np.float32), "direction.2": np.ones(5, np.float32)}, "shapes"),
        ({}, "no direction"),
    ],
)
def test_a_file_that_is_no_vector_is_refused(tmp_path: Path, tensors: dict[str, Any], said: str) -> None:
    with pytest.raises(VectorError, match=said):
        read_control_vector(foreign(tmp_path / "bad.gguf", tensors), "happy")


def test_a_model_is_no_control_vector(tmp_path: Path) -> None:
    path = foreign(tmp_path / "m.gguf", {"token_embd.weight": np.ones(4, np.float32)}, architecture="llama")
    with pytest.raises(VectorError, match="architecture 'llama'"):
        read_control_vector(path, "happy")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"PK\x03\x04 and so on",
        struct.pack("<IIQQ", 0x46554747, 3, 2**60, 0),
        struct.pack("<IIQQ", 0x46554747, 3, 0, 2**60),
        # An array that announces more numbers than there are atoms in the file.
        struct.pack("<IIQQQ1sIIQ", 0x46554747, 3, 0, 1, 1, b"a", 9, 4, 2**60),
        struct.pack("<IIQQQ1sI", 0x46554747, 3, 0, 1, 1, b"a", 77),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(VectorError, match=r"bad\.gguf") as caught:
        read_control_vector(path, "happy")
    assert "\n" not in str(caught.value)


def test_a_missing_or_giant_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="cannot be read"):
        read_control_vector(tmp_path / "nowhere.gguf", "happy")
    with (tmp_path / "giant.gguf").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(VectorError, match="is it a model"):
        read_control_vector(tmp_path / "giant.gguf", "happy")


@given(st.integers(0, 600), st.binary(min_size=1, max_size=12))
def test_overwritten_bytes_give_a_vector_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, place: int, noise: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "overwritten.gguf"
    write_control_vector(make(), path, force=True)
    overwrite(path, place, noise)
    try:
        found = read_control_vector(path, "happy")
    except VectorError:
        return
    assert all(torch.isfinite(direction).all() for direction in found.directions.values())


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    write_control_vector(make(), tmp_path / "v.gguf")
    with pytest.raises(OutputExistsError):
        write_control_vector(make(3), tmp_path / "v.gguf")
    write_control_vector(make(3), tmp_path / "v.gguf", force=True)
    assert read_control_vector(tmp_path / "v.gguf", "again").layers == (3,)
