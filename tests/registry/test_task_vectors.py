"""Task vectors in the registry."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engrain.core.errors import InputError, IntegrityError, ProfileError, UnknownNameError, VectorError
from engrain.core.fingerprint import Fingerprint
from engrain.core.profile import Entry, Profile
from engrain.core.task_vector import TaskVector
from engrain.core.vector import SteeringVector
from engrain.registry.profiles import publish_profile
from engrain.registry.store import Parent, Store
from engrain.registry.task_vectors import publish_task_vector, read_task_vector
from engrain.registry.vectors import publish_vector, read_vector

PRINT = Fingerprint("here", "Tiny", "sha256:a", "sha256:b", "sha256:c", "sha256:d", "float32")
NAME = "model.layers.2.mlp.down_proj.weight"


def make(seed: int = 0) -> TaskVector:
    delta = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    return TaskVector("brevity", {NAME: delta}, PRINT, {"backend": "rank1", "spec": {"ridge": 0.03}})


def test_what_is_published_is_what_is_read() -> None:
    store = Store()
    source = publish_vector(store, "brevity", SteeringVector({2: torch.ones(4)}))
    first = publish_task_vector(store, "brevity", make(0), [Parent("vector", source.digest)])
    second = publish_task_vector(store, "brevity", make(1))
    assert (first.reference, second.reference) == ("task-vector/brevity@1", "task-vector/brevity@2")
    assert first.parents == (Parent("vector", source.digest),)
    for where, seed in (("brevity", 1), ("task-vector/brevity@1", 0), ("task-vector/brevity", 1)):
        found = read_task_vector(store, where)
        assert torch.equal(found.tensors[NAME], make(seed).tensors[NAME])
        assert (found.name, found.fingerprint, found.origin) == ("brevity", PRINT, make(seed).origin)


def test_the_same_task_vector_is_the_same_version() -> None:
    store = Store()
    assert publish_task_vector(store, "brevity", make()).digest == publish_task_vector(store, "brevity", make()).digest
    assert len(store.versions("task-vector", "brevity")) == 1
    publish_task_vector(store, "brevity", replace(make(), origin={"backend": "bias"}))
    assert len(store.versions("task-vector", "brevity")) == 2


def test_a_folder_is_read_too(tmp_path: Path) -> None:
    make().save(tmp_path / "brevity")
    assert torch.equal(read_task_vector(Store(), str(tmp_path / "brevity")).tensors[NAME], make().tensors[NAME])
    with pytest.raises(VectorError, match="not the folder of a task vector"):
        read_task_vector(Store(), str(tmp_path / "nowhere"))


def test_what_is_none_is_refused() -> None:
    store = Store()
    publish_vector(store, "brevity", SteeringVector({2: torch.ones(4)}))
    with pytest.raises(InputError, match="is a vector, a task vector is needed"):
        read_task_vector(store, "vector/brevity")
    with pytest.raises(UnknownNameError, match="No task-vector 'brevity'"):
        read_task_vector(store, "brevity")


def test_changed_bytes_are_noticed() -> None:
    store = Store()
    path = publish_task_vector(store, "brevity", make()).path("delta.safetensors")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(raw)
    with pytest.raises(IntegrityError):
        read_task_vector(store, "brevity")


def test_a_vector_is_read_from_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    SteeringVector({2: torch.ones(4)}).save(tmp_path / "mine.safetensors")
    assert read_vector(Store(), "~/mine.safetensors").layers == (2,)


def test_a_profile_with_a_path_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make().save(tmp_path / "brevity")
    publish_task_vector(Store(), "brevity", make())
    profile = Profile(behaviors={"brevity": Entry(task_vector="brevity")})
    with pytest.raises(ProfileError, match=r"is a path.*has to be published first"):
        publish_profile(Store(), "calm", profile)
