"""Exporting and importing on the command line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engrain.cli.main import main
from engrain.core.errors import EngrainError, IntegrityError, PluginError
from engrain.core.fingerprint import Fingerprint
from engrain.core.task_vector import TaskVector
from engrain.core.vector import SteeringVector
from engrain.loading import load
from engrain.registry.store import Store
from engrain.registry.task_vectors import publish_task_vector
from engrain.registry.vectors import publish_vector, read_vector
from tiny import byte_tokenizer, random_model

NAME = "model.layers.1.mlp.down_proj"


@pytest.fixture
def published(folder: Path) -> TaskVector:
    """A task vector and a vector of one name, in the registry."""
    model = load(str(folder))
    change = TaskVector("brevity", {f"{NAME}.weight": torch.outer(torch.ones(32), torch.ones(48))}, model.fingerprint)
    publish_task_vector(Store(), "brevity", change)
    publish_vector(Store(), "brevity", SteeringVector({1: torch.ones(32), 2: torch.ones(32)}, "brevity"))
    return change


def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["engrain", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, said.out, said.err


@pytest.fixture
def engrain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *arguments: call(capsys, monkeypatch, *arguments)


@pytest.mark.parametrize(
    ("format_name", "files"),
    [
        ("peft", {"adapter_config.json", "adapter_model.safetensors"}),
        ("hf", {"config.json", "model.safetensors", "tokenizer.json", "engrain.json"}),
        ("safetensors", {"delta.safetensors", "manifest.json"}),
    ],
)
def test_a_task_vector_is_exported_by_its_name(
    engrain: Any, published: TaskVector, tmp_path: Path, format_name: str, files: set[str]
) -> None:
    where = "task-vector/brevity" if format_name == "safetensors" else "brevity"
    code, out, _ = engrain("export", where, "--format", format_name, "--out", tmp_path / "out", "--json")
    assert code == 0
    said = json.loads(out)
    assert (said["format"], said["out"], said["name"]) == (format_name, str(tmp_path / "out"), "brevity")
    assert files <= {path.name for path in (tmp_path / "out").iterdir()}
    if format_name == "peft":
        assert (said["rank"], said["lost"]) == (1, pytest.approx(0, abs=1e-6))
    code, out, err = engrain("export", where, "--format", format_name, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "--force" in err
    assert engrain("export", where, "--format", format_name, "--out", tmp_path / "out", "--force")[0] == 0


def test_it_is_said_why_a_rank_does_not_follow_the_behaviors_pairs(
    engrain: Any, published: TaskVector, tmp_path: Path
) -> None:
    code, _, err = engrain("export", "brevity", "--format", "peft", "--out", tmp_path / "lora")
    assert (code, "the rank follows the size of the change alone ('task-vector/brevity@1' was" in err) == (0, True)
    code, _, err = engrain("export", "task-vector/brevity", "--format", "safetensors", "--out", tmp_path / "plain")
    assert (code, "rank" in err) == (0, False)


def test_what_is_broken_is_no_reason_for_another_rank(
    engrain: Any, published: TaskVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (IntegrityError("damaged"), PluginError("broken")):

        def fail(*arguments: object, error: EngrainError = error) -> None:
            raise error

        monkeypatch.setattr("engrain.exporting.subjects_of", fail)
        code, _, err = engrain("export", "brevity", "--format", "peft", "--out", tmp_path / "lora")
        assert (code, str(error) in err) == (1 if isinstance(error, IntegrityError) else 2, True)
    assert not (tmp_path / "lora").exists()


def test_the_plain_export_is_the_task_vector_again(engrain: Any, published: TaskVector, tmp_path: Path) -> None:
    assert engrain("export", "task-vector/brevity@1", "--format", "safetensors", "--out", tmp_path / "out")[0] == 0
    found = TaskVector.load(tmp_path / "out")
    assert torch.equal(found.tensors[f"{NAME}.weight"], published.tensors[f"{NAME}.weight"])
    code, out, _ = engrain("export", tmp_path / "out", "--format", "peft", "--out", tmp_path / "lora", "--rank", "2")
    assert code == 0
    assert out.startswith(f"{tmp_path / 'lora'}: brevity as peft (rank 2, lost ")


def test_a_vector_goes_to_gguf_and_back(engrain: Any, published: TaskVector, tmp_path: Path) -> None:
    code, out, _ = engrain("export", "brevity", "--format", "gguf", "--out", tmp_path / "v.gguf", "--json")
    assert (code, json.loads(out)["layers"]) == (0, [1, 2])
    code, out, err = engrain("import", tmp_path / "v.gguf", "--name", "returned", "--json")
    assert code == 0
    assert "not checked" in err
    assert json.loads(out)["reference"] == "vector/returned@1"
    assert str(tmp_path) not in out
    assert torch.equal(read_vector(Store(), "returned").at(2), torch.ones(32))


def test_a_vector_of_engrain_is_imported_with_all_that_is_known(engrain: Any, tmp_path: Path) -> None:
    print_ = Fingerprint("here", "Tiny", "sha256:a", "sha256:b", "sha256:c", "sha256:d", "float32")
    SteeringVector({0: torch.ones(4)}, "old", print_, origin={"method": "pca"}).save(tmp_path / "v.safetensors")
    code, out, err = engrain("import", tmp_path / "v.safetensors", "--name", "mine")
    assert (code, out, err) == (0, "vector/mine@1: 1 layers, d_model 4\n", "")
    found = read_vector(Store(), "mine")
    assert (found.name, found.fingerprint, found.origin) == ("mine", print_, {"method": "pca"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "vector/brevity", "--format", "peft", "--out", "out"), "is a vector, and peft holds a task-vector"),
        (("export", "task-vector/brevity", "--format", "gguf", "--out", "out"), "is a task-vector, and gguf holds"),
        (("export", "brevity", "--format", "pfet", "--out", "out"), "Did you mean 'peft'"),
        (("export", "brevit", "--format", "peft", "--out", "out"), "Did you mean 'brevity'"),
        (("export", "./nowhere", "--format", "peft", "--out", "out"), "not the folder of a task vector"),
        (("export", "brevity", "--format", "peft", "--out", "out", "--rank", "0"), "--rank"),
        (("import", "nowhere.gguf", "--name", "x"), "cannot be read"),
        (("import", "v.pt", "--name", "x"), "No importer of files that end in '.pt'"),
        (("import", "v.gguf", "--name", "Not A Name"), "cannot name a vector"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    engrain: Any,
    published: TaskVector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = engrain(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "out").exists()


def test_another_model_than_the_base_is_refused(
    engrain: Any, published: TaskVector, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    random_model("qwen2").save_pretrained(other)
    byte_tokenizer().save_pretrained(other)
    code, _, err = engrain("export", "brevity", "--format", "hf", "--out", tmp_path / "out", "-m", other)
    assert code == 2
    assert "architecture, weights, schema" in err
