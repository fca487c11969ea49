"""Task vectors: arithmetic, folders, and what is refused of both."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from damage import overwrite
from engrain.core.errors import EngrainError, FingerprintError, InputError, OutputExistsError, VectorError
from engrain.core.fingerprint import Fingerprint
from engrain.core.task_vector import TaskVector, layer_of

PRINT = Fingerprint("here", "Tiny", "sha256:a", "sha256:b", "sha256:c", "sha256:d", "float32")
DOWN, OUT, BIAS = (
    "model.layers.2.mlp.down_proj.weight",
    "model.layers.10.self_attn.o_proj.weight",
    "model.layers.2.mlp.down_proj.bias",
)


def make(seed: int = 0, **shapes: tuple[int, ...]) -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    wanted = shapes or {DOWN: (4, 6), OUT: (4, 4), BIAS: (4,)}
    return TaskVector(
        "brevity", {name: torch.randn(shape, generator=generator) for name, shape in wanted.items()}, PRINT
    )


def same(one: TaskVector, other: TaskVector) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(delta, other.tensors[name]) for name, delta in one.tensors.items()
    )


def test_saving_and_loading_is_identity(tmp_path: Path) -> None:
    made = replace(make(), origin={"backend": "distill", "vector": "vector/brevity@3", "spec": {"layers": [2, 10]}})
    made.save(tmp_path / "brevity")
    loaded = TaskVector.load(tmp_path / "brevity")
    assert same(made, loaded)
    assert (loaded.name, loaded.fingerprint, loaded.origin) == (made.name, made.fingerprint, made.origin)
    assert sorted(path.name for path in (tmp_path / "brevity").iterdir()) == ["delta.safetensors", "manifest.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["brevity"]


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    forwards = make()
    backwards = replace(forwards, tensors=dict(reversed(list(forwards.tensors.items()))))
    for place, made in enumerate((forwards, backwards, forwards)):
        made.save(tmp_path / str(place))
    for file in ("delta.safetensors", "manifest.json"):
        assert len({(tmp_path / str(place) / file).read_bytes() for place in range(3)}) == 1


def test_a_transposed_delta_is_saved_as_its_numbers(tmp_path: Path) -> None:
    TaskVector("t", {DOWN: torch.arange(6.0).reshape(2, 3).T}, PRINT).save(tmp_path / "t")
    assert torch.equal(TaskVector.load(tmp_path / "t").tensors[DOWN], torch.arange(6.0).reshape(2, 3).T)


def test_arithmetic_is_that_of_the_tensors() -> None:
    one, other = make(1), make(2)
    assert torch.equal((one + other).tensors[DOWN], one.tensors[DOWN] + other.tensors[DOWN])
    opposite = -one
    assert same(-opposite, one)
    assert same(2 * one, one + one)
    assert (one * -3.0).norm() == pytest.approx(3 * one.norm())
    whole = torch.cat([delta.flatten() for delta in one.tensors.values()])
    assert one.norm() == pytest.approx(float(whole.norm()))


def test_a_tensor_that_only_one_has_is_zeros_in_the_other() -> None:
    one, other = make(1, **{DOWN: (4, 6)}), make(2, **{OUT: (4, 4), BIAS: (4,)})
    total = one + other
    assert set(total.tensors) == {DOWN, OUT, BIAS}
    assert torch.equal(total.tensors[OUT], other.tensors[OUT])
    assert one.cosine(other) == {2: 0.0}


def test_the_cosine_of_a_layer_is_that_of_all_its_numbers() -> None:
    one, other = make(1), make(2)
    at = [torch.cat([each.tensors[BIAS], each.tensors[DOWN].flatten()]) for each in (one, other)]
    assert one.cosine(other)[2] == pytest.approx(float(torch.cosine_similarity(at[0], at[1], dim=0)), abs=1e-6)
    assert one.cosine(one * 0.5) == pytest.approx({2: 1.0, 10: 1.0})
    assert one.cosine(one * 0.0) == {2: 0.0, 10: 0.0}


def test_the_layer_is_read_from_the_name_of_a_parameter() -> None:
    assert layer_of("transformer.h.12.mlp.c_proj.weight") == 12
    assert layer_of("model.layers.3.mlp.experts.7.down_proj.weight") == 3
    assert layer_of("lm_head.weight") is None
    assert make().layers == (2, 10)


def test_other_bases_and_shapes_are_not_combined() -> None:
    elsewhere = replace(make(), fingerprint=replace(PRINT, weights="sha256:e", tokenizer="sha256:f"))
    for combine in (lambda: make() + elsewhere, lambda: make().cosine(elsewhere)):
        with pytest.raises(FingerprintError, match="weights, tokenizer differ"):
            combine()
    with pytest.raises(VectorError, match=r"\[4, 6\] and \[5, 6\]"):
        make(1, **{DOWN: (4, 6)}) + make(1, **{DOWN: (5, 6)})


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "changes nothing"),
        ({DOWN: torch.tensor([[1.0, float("nan")]])}, "NaN or infinity in"),
        ({DOWN: torch.tensor([[float("inf")]])}, "NaN or infinity in"),
        ({"../weight": torch.ones(1)}, "named as the base's parameters"),
        ({"weight\n.x": torch.ones(1)}, "named as the base's parameters"),
        ({"a." + "b" * 300: torch.ones(1)}, "named as the base's parameters"),
    ],
)
def test_what_can_be_no_change_of_weights_is_refused(tensors: dict[str, Any], said: str) -> None:
    with pytest.raises(VectorError, match=said) as caught:
        TaskVector("bad", tensors, PRINT)
    assert "\n" not in str(caught.value)


def header(entries: dict[str, Any], body: bytes = b"") -> bytes:
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw)) + raw + body


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "too few"),
        (b"PK\x03\x04 and so on", "can run code"),
        (struct.pack("<Q", 2**63) + b"{}", "announces a header"),
        (struct.pack("<Q", 2) + b"{}", "holds 0 tensors"),
        (struct.pack("<Q", 4) + b"nope", "not JSON"),
        (header({"weight": ENTRY}, bytes(4)), "named as the base's parameters"),
        (header({"../../etc.passwd": ENTRY}, bytes(4)), "named as the base's parameters"),
        (header({DOWN: {**ENTRY, "dtype": "BF16"}}, bytes(4)), "delta is float32"),
        (header({DOWN: {**ENTRY, "shape": []}}, bytes(4)), "delta is float32"),
        (header({DOWN: {**ENTRY, "shape": [0]}}, bytes(4)), "delta is float32"),
        (header({DOWN: {**ENTRY, "shape": [True]}}, bytes(4)), "delta is float32"),
        (header({DOWN: {**ENTRY, "shape": [1, 1, 1, 1]}}, bytes(4)), "delta is float32"),
        (header({DOWN: 3}), "delta is float32"),
        (header({DOWN: ENTRY}, bytes(3)), "whole safetensors|does not name"),
    ],
)
def test_a_hostile_delta_is_refused_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    make(1, **{DOWN: (1,)}).save(tmp_path / "t")
    (tmp_path / "t" / "delta.safetensors").write_bytes(data)
    with pytest.raises(EngrainError, match=said) as caught:
        TaskVector.load(tmp_path / "t")
    assert "\n" not in str(caught.value)


def test_a_stored_nan_is_refused(tmp_path: Path) -> None:
    make(1, **{DOWN: (1,)}).save(tmp_path / "t")
    save_file({DOWN: torch.tensor([float("nan")])}, tmp_path / "t" / "delta.safetensors")
    with pytest.raises(VectorError, match="NaN"):
        TaskVector.load(tmp_path / "t")


@given(st.integers(0, 400), st.binary(min_size=1, max_size=12))
def test_overwritten_bytes_give_a_task_vector_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, place: int, noise: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "overwritten"
    make(1, **{DOWN: (2, 3), BIAS: (2,)}).save(folder, force=True)
    path = folder / "delta.safetensors"
    overwrite(path, place, noise)
    try:
        found = TaskVector.load(folder)
    except EngrainError:
        return
    assert all(torch.isfinite(delta).all() for delta in found.tensors.values())


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "engrain.task-vector/9"},
        {"tensors": {}},
        {"tensors": {DOWN: [4, 6]}},
        {"tensors": [DOWN]},
        {"name": 3},
        {"name": ""},
        {"base": None},
        {"base": {"weights": "sha256:a"}},
        {"origin": 3},
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    made = make()
    made.save(tmp_path / "t")
    with pytest.raises(EngrainError, match="manifest of"):
        TaskVector.read(tmp_path / "t" / "delta.safetensors", made.manifest() | change, source="here")


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="not the folder of a task vector"):
        TaskVector.load(tmp_path / "nowhere")
    make().save(tmp_path / "t")
    (tmp_path / "t" / "delta.safetensors").unlink()
    with pytest.raises(VectorError, match=r"delta\.safetensors cannot be read"):
        TaskVector.load(tmp_path / "t")


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    make(1).save(tmp_path / "t")
    with pytest.raises(OutputExistsError):
        make(2).save(tmp_path / "t")
    assert same(TaskVector.load(tmp_path / "t"), make(1))
    make(2).save(tmp_path / "t", force=True)
    assert same(TaskVector.load(tmp_path / "t"), make(2))


def test_a_folder_of_something_else_is_left_alone_also_with_force(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        make().save(tmp_path / "home", force=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(1).save(tmp_path / "t")

    def fail(self: TaskVector, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TaskVector, "write_delta", fail)
    with pytest.raises(InputError, match="No space left"):
        make(2).save(tmp_path / "t", force=True)
    with pytest.raises(InputError, match="No space left"):
        make(2).save(tmp_path / "u")
    assert same(TaskVector.load(tmp_path / "t"), make(1))
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
