"""What is saved is what comes back, and what is torn does not."""

import errno
import os
from pathlib import Path

import pytest
import torch

from descent import KINDS, drive, gradients, parameter
from engrain.core.apollo import Apollo
from engrain.core.compile.checkpoint import FILE, Checkpoint, pack_optimizer, unpack_optimizer
from engrain.core.errors import InputError

SAVED = Checkpoint({"delta/a.weight": torch.randn(3, 4), "step": torch.tensor(2.0)}, {"step": 3, "curve": [{"x": 0.1}]})


def test_a_saved_checkpoint_comes_back(tmp_path: Path) -> None:
    SAVED.save(tmp_path, "key")
    found = Checkpoint.load(tmp_path, "key")
    assert found is not None
    assert found.state == SAVED.state
    assert {name: tensor.tolist() for name, tensor in found.tensors.items()} == {
        name: tensor.tolist() for name, tensor in SAVED.tensors.items()
    }


def test_a_checkpoint_of_other_work_is_none(tmp_path: Path) -> None:
    SAVED.save(tmp_path, "key")
    assert Checkpoint.load(tmp_path, "other") is None
    assert Checkpoint.load(tmp_path / "nowhere", "key") is None


@pytest.mark.parametrize("damage", [b"", b"\x80\x04\x95", b"PK\x03\x04", None])
def test_a_torn_checkpoint_is_none(tmp_path: Path, damage: bytes | None) -> None:
    SAVED.save(tmp_path, "key")
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:-7] if damage is None else damage)
    assert Checkpoint.load(tmp_path, "key") is None


def test_on_a_full_disk_the_checkpoint_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SAVED.save(tmp_path, "key")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        Checkpoint(SAVED.tensors, {"step": 4}).save(tmp_path, "key")
    found = Checkpoint.load(tmp_path, "key")
    assert found is not None
    assert found.state["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_an_optimizer_goes_on_the_same_to_the_bit(kind: dict[str, object] | None) -> None:
    def build(weight: torch.nn.Parameter) -> torch.optim.Optimizer:
        return torch.optim.AdamW([weight]) if kind is None else Apollo([weight], **kind)  # type: ignore[arg-type]

    one, two = parameter(6, 9), parameter(6, 9)
    found = [[gradient] for gradient in gradients((6, 9), 6)]
    whole, first = build(one), build(two)
    drive(whole, [one], found)
    drive(first, [two], found[:3])
    second = build(two)
    unpack_optimizer(second, *pack_optimizer(first))
    drive(second, [two], found[3:])
    assert torch.equal(one, two)
