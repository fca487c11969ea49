"""Task vectors in use on the command line: generate, chat, evaluate."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engrain.core.edit import WeightEdits
from engrain.core.task_vector import TaskVector
from engrain.core.vector import SteeringVector
from engrain.loading import load
from engrain.registry.store import Store
from engrain.registry.task_vectors import publish_task_vector

SHIFT = 20 * torch.randn(32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def both(folder: Path, tmp_path: Path) -> Path:
    """A vector in a file, and the same as a bias in the registry and in a folder."""
    print_ = load(str(folder)).fingerprint
    SteeringVector({1: SHIFT}, "one", print_).save(tmp_path / "v.safetensors")
    task_vector = TaskVector("one", {"model.layers.1.mlp.down_proj.bias": SHIFT}, print_)
    publish_task_vector(Store(), "one", task_vector)
    task_vector.save(tmp_path / "one")
    return tmp_path


def test_generate_applies_task_vectors_and_compares(engrain: Any, folder: Path, both: Path) -> None:
    short = ("hi", "--max-new-tokens", 12, "-m", folder, "--json")
    profile = both / "p.yaml"
    profile.write_text(f"behaviors: {{one: {{vector: '{both / 'v.safetensors'}', layer: 1, strength: 1}}}}")
    base = engrain("generate", *short).json["reply"]
    steered = engrain("generate", *short, "--profile", profile).json["reply"]
    assert base != steered
    for where in ("one", "task-vector/one@1=1", str(both / "one")):
        done = engrain("generate", *short, "--task-vector", where)
        assert done.code == 0, done.err
        assert done.json["reply"] == steered
    assert done.json["active"] == [{"name": str(both / "one"), "layers": [1], "scale": 1.0}]
    compared = engrain("generate", *short, "--task-vector", "one=1", "--compare").json
    assert (compared["base"], compared["edited"]) == (base, steered)
    assert engrain("generate", *short, "--task-vector", "one=0").json["reply"] == base
    shown = engrain("generate", "hi", "--max-new-tokens", 4, "-m", folder, "--task-vector", "one=0.5", "--compare")
    assert "one 0.5" in shown.out


def test_evaluate_tells_of_a_task_vector_what_it_tells_of_its_vector(engrain: Any, folder: Path, both: Path) -> None:
    pairs = both / "pairs.jsonl"
    lines = [{"prompt": f"{i}?", "positive": f"yes {i} indeed", "negative": f"no {i} at all"} for i in range(6)]
    pairs.write_text("\n".join(map(json.dumps, lines)))
    (both / "neutral.jsonl").write_text('{"text": "The sea is blue."}')
    where = ("evaluate", "--pairs", pairs, "--neutral", both / "neutral.jsonl", "-m", folder)
    steered = engrain(*where, "--steer", both / "v.safetensors", "--layer", 1, "--strength", 1, "--json").json
    done = engrain(*where, "--task-vector", "one=0.25", "--task-vector", f"{both / 'one'}=0.75", "--json")
    assert done.code == 0, done.err
    assert done.json["effect"] == pytest.approx(steered["effect"], abs=1e-4)
    assert done.json["neutral"]["kl_mean"] == pytest.approx(steered["neutral"]["kl_mean"], rel=1e-3)
    assert done.json["steering"] == []
    assert done.json["task_vectors"] == [
        {"task_vector": "one", "scale": 0.25},
        {"task_vector": str(both / "one"), "scale": 0.75},
    ]
    assert "one on the weights, scale 0.5" in engrain(*where, "--task-vector", "one=0.5").out


def test_in_a_chat_weights_are_written_when_they_change_and_not_for_each_reply(
    engrain: Any, folder: Path, both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[str]] = []
    write = WeightEdits._write

    def count(self: WeightEdits, deltas: Any) -> None:
        written.append(sorted(deltas))
        write(self, deltas)

    monkeypatch.setattr(WeightEdits, "_write", count)
    lines = ["hi", "hi", "/apply one 0.5", "hi", "/apply nothing", "/off one", "hi", "/off", "/quit"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    done = engrain("chat", "-m", folder, "--max-new-tokens", 4, "--task-vector", "one")
    assert done.code == 0, done.err
    bias = "model.layers.1.mlp.down_proj.bias"
    assert written == [[bias], [bias], []]
    assert "on: one 0.5 on the weights" in done.err
    assert "No task-vector 'nothing'" in done.err
    assert done.err.rstrip().endswith("on: nothing")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "hi", "--task-vector", "oen"), "Did you mean 'one'"),
        (("generate", "hi", "--task-vector", "one=x"), "The scale of 'one' is 'x'"),
        (("generate", "hi", "--task-vector", "./nowhere"), "not the folder of a task vector"),
        (("evaluate", "--pairs", "none.jsonl"), "--steer or --task-vector"),
        (("generate", "hi", "--compare"), "give --steer, --task-vector or --profile"),
    ],
)
def test_a_mistake_is_one_line(engrain: Any, folder: Path, both: Path, arguments: tuple[str, ...], said: str) -> None:
    done = engrain(*arguments, "-m", folder)
    assert (done.code, done.out, len(done.err.strip().splitlines())) == (2, "", 1), done.err
    assert said in done.err
