"""What a server puts on its weights: the same as transformers, of the same profile."""

from pathlib import Path

import pytest
import torch

from engrain.core.errors import EngrainError, InputError
from engrain.core.fingerprint import Fingerprint
from engrain.core.profile import Entry
from engrain.core.task_vector import TaskVector
from engrain.core.vector import SteeringVector
from engrain.plugins.vllm.deployment import resolve_edits
from engrain.plugins.vllm.served import ServedModel
from engrain.registry.store import Store
from engrain.registry.task_vectors import publish_task_vector, read_task_vector
from engrain.registry.vectors import publish_vector

NAME = "model.layers.2.mlp.down_proj.weight"
MODEL = ServedModel("tiny", 3, 4, "LlamaForCausalLM", None)


def make(folder: str) -> TaskVector:
    base = Fingerprint(folder, "Tiny", "sha256:a", "sha256:b", "sha256:c", "sha256:d", "float32")
    return TaskVector("made", {NAME: torch.ones(2, 2)}, base)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A registry, beside folders that are called as things in it are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for folder in ("out/made", "bare", "task-vector/made", "me/made"):
        make("folder").save(tmp_path / folder)
    store = Store()
    publish_task_vector(store, "made", make("registry"))
    publish_vector(store, "x", SteeringVector({2: torch.ones(4)}))
    return store


@pytest.mark.parametrize(
    ("where", "found"),
    [
        *((path, "folder") for path in ("out/made", "./out/made", "bare", "~/made")),
        *((reference, "registry") for reference in ("made", "task-vector/made", "task-vector/made@1")),
    ],
)
def test_a_server_and_transformers_take_the_same_for_a_folder(store: Store, where: str, found: str) -> None:
    assert read_task_vector(store, where).fingerprint.source == found
    (edit,) = resolve_edits(store, MODEL, {"one": Entry(task_vector=where)})
    assert (edit["digest"] is None) == (found == "folder")
    assert read_task_vector(store, str(edit["where"])).fingerprint.source == found


@pytest.mark.parametrize("where", ["vector/x", "out/nothing", "task-vector/x", "./nothing", "a/b/c", "out/made@1"])
def test_a_server_and_transformers_refuse_the_same_in_the_same_words(store: Store, where: str) -> None:
    with pytest.raises(InputError) as one:
        read_task_vector(store, where)
    with pytest.raises(EngrainError) as other:
        resolve_edits(store, MODEL, {"one": Entry(task_vector=where)})
    assert str(one.value) == str(other.value)
