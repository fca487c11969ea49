"""Fingerprints name what differs, and remembered digests are never stale."""

import os
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from engrain.core.fingerprint import Fingerprint, file_digest, fingerprint
from engrain.core.model import SteerableModel
from tiny import byte_tokenizer, random_model


def test_the_same_model_has_the_same_fingerprint_in_every_dtype_that_matters() -> None:
    one, other = (fingerprint(random_model("llama"), byte_tokenizer(), name) for name in ("a", "b"))
    assert one.differences(other) == []
    half = fingerprint(random_model("llama", torch.bfloat16), byte_tokenizer(), "half")
    assert half.dtype == "bfloat16"
    assert "schema" not in one.differences(half)


def test_what_differs_is_named() -> None:
    base = fingerprint(random_model("llama"), byte_tokenizer(), "a")
    changed = random_model("llama")
    with torch.no_grad():
        next(changed.parameters())[0, 0] += 1e-3
    assert base.differences(fingerprint(changed, byte_tokenizer(), "a")) == ["weights"]
    assert base.differences(fingerprint(random_model("llama"), byte_tokenizer(template=False), "a")) == [
        "chat_template"
    ]
    deeper = fingerprint(random_model("llama", num_hidden_layers=4), byte_tokenizer(), "a")
    assert base.differences(deeper) == ["weights", "schema"]
    other = fingerprint(random_model("mistral"), byte_tokenizer(), "a")
    assert "architecture" in base.differences(other)


def test_using_a_tokenizer_does_not_change_its_digest() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer, pad_token="<pad>")
    before = fingerprint(random_model("llama"), tokenizer, "a").tokenizer
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert fingerprint(random_model("llama"), tokenizer, "a").tokenizer == before


def test_writing_and_reading_is_identity_and_a_missing_field_is_refused() -> None:
    base = fingerprint(random_model("llama"), byte_tokenizer(), "a")
    assert Fingerprint.from_json(base.to_json()) == base
    with pytest.raises(ValueError, match="'weights'"):
        Fingerprint.from_json({**base.to_json(), "weights": 3})


def test_a_digest_is_remembered_and_forgotten_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"one")
    first = file_digest(path)
    assert file_digest(path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert file_digest(path) != first
    path.write_bytes(b"one")
    os.utime(path, ns=(2, 2))
    assert file_digest(path) == first


def test_a_remembered_digest_that_is_damaged_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"one")
    first = file_digest(path)
    (memory,) = (tmp_path / "cache" / "engrain" / "digests").iterdir()
    memory.write_bytes(b"{")
    assert file_digest(path) == first


def test_a_fingerprint_of_files_is_that_of_their_bytes(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path / "m")
    files = list((tmp_path / "m").glob("*.safetensors"))
    one = SteerableModel(random_model("llama"), byte_tokenizer(), "m", files).fingerprint
    files[0].write_bytes(files[0].read_bytes()[:-1] + b"\x01")
    other = SteerableModel(random_model("llama"), byte_tokenizer(), "m", files).fingerprint
    assert one.differences(other) == ["weights"]
