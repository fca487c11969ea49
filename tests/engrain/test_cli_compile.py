"""Compiling on the command line: verified vectors alone, weights verified again, everything published."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engrain import compiling
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector
from engrain.core.vector import Calibration, SteeringVector
from engrain.core.verdict import Gate, Verdict
from engrain.loading import load
from engrain.plugins.behavior import Behavior
from engrain.proving import other_backends, verify_compiled
from engrain.registry.policy import newest_verdict
from engrain.registry.store import Parent, Store, Version
from engrain.registry.task_vectors import read_task_vector
from engrain.registry.vectors import PROOF, publish_pairs, publish_vector, publish_verdict, read_vector
from engrain.subject import Subject
from saying import behavior, hurry, plugins_with


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch, plugins_with(behavior(), behavior("other", "bbb")))


def publish(model: SteerableModel, own: Behavior, layer: int, *, passed: bool | None = True) -> Version:
    """Publish a calibrated vector with its pairs, and a verdict on it, or None."""
    store = Store()
    drawn = torch.randn(32, generator=torch.Generator().manual_seed(layer))
    vector = SteeringVector({layer: drawn}, own.name, model.fingerprint).calibrated(Calibration(layer, 1.0))
    pairs = publish_pairs(store, own.name, own.pairs().split("train"))
    version = publish_vector(store, own.name, vector, [Parent("pairs", pairs.digest)])
    if passed is not None:
        verdict = Verdict(layer, 1.0, (Gate("effect", passed, 1.0, 0.0),), {}, (), 0)
        tested = publish_pairs(store, f"{own.name}-test", own.pairs().split("test"))
        parents = [Parent("vector", version.digest), Parent("test", tested.digest)]
        publish_verdict(store, own.name, verdict, parents)
    return version


@pytest.fixture
def model(folder: Path) -> SteerableModel:
    """A model whose vector ``saying`` has a passing verdict."""
    found = load(str(folder))
    publish(found, behavior(), 1)
    return found


def test_a_verified_vector_is_compiled_published_and_verified_again(
    engrain: Any, folder: Path, model: SteerableModel, tmp_path: Path
) -> None:
    out = tmp_path / "saying"
    done = engrain("compile", "saying", "--backend", "bias", "--out", out, "-m", folder, "--json")
    assert done.code in (0, 1), done.err
    found = done.json
    assert (found["task_vector"], found["backend"], found["spec"]) == ("task-vector/saying@1", "bias", "faithful")
    assert (found["forced"], found["folder"]) == (False, str(out))
    assert found["passed"] == found["verdict"]["passed"] == (done.code == 0)
    # A bias is the vector.
    assert found["recovered"] == pytest.approx(1, abs=1e-3)
    assert found["drift_ratio"] == pytest.approx(1, abs=1e-2)
    assert [gate["name"] for gate in found["verdict"]["gates"]] == ["effect", "controls", "side_effects", "boundary"]
    assert Path(found["verdict"]["report"]).read_bytes()
    version = Store().resolve("task-vector/saying")
    vector, verdict = Store().resolve("vector/saying"), Store().resolve("verdict/saying@1")
    pairs = Store().resolve("dataset/saying")
    assert {(one.role, one.digest) for one in version.parents} == {
        ("vector", vector.digest),
        ("verdict", verdict.digest),
        ("pairs", pairs.digest),
    }
    assert version.provenance is not None
    statement = json.loads(Store().read(version.provenance))["predicate"]
    assert (statement["act"], statement["seeds"]) == ("compile", {"compile": 0})
    (used,) = version.config["origin"]["vectors"]
    assert (used["version"], used["verdict"]) == (vector.digest, verdict.digest)
    saved = TaskVector.load(out)
    published = read_task_vector(Store(), "saying")
    assert all(torch.equal(tensor, published.tensors[name]) for name, tensor in saved.tensors.items())
    # What exists is left alone, and before the work.
    again = engrain("compile", "saying", "--backend", "bias", "--out", out, "-m", folder)
    assert (again.code, "--force" in again.err, "sampling" in again.err) == (2, True, False)


def test_the_report_shows_what_other_backends_made_of_the_same_vector(
    engrain: Any, folder: Path, model: SteerableModel
) -> None:
    for backend in ("rank1", "bias", "bias"):
        done = engrain("compile", "saying", "--backend", backend, "-m", folder, "--json")
        assert done.code in (0, 1), done.err
    bias = Store().resolve("task-vector/saying")
    (beside,) = other_backends(Store(), bias, "saying")
    rank1 = Store().resolve("verdict/saying@2")
    proof = json.loads(rank1.path(PROOF).read_bytes())["compiled"]
    assert beside == {"backend": "rank1", "recovered": proof["recovered"]["value"], "drift": proof["drift_ratio"]}
    assert b"rank1" in Path(done.json["verdict"]["report"]).read_bytes()


def test_a_control_is_compiled_by_the_same_recipe(engrain: Any, folder: Path, model: SteerableModel) -> None:
    done = engrain("compile", "saying", "--backend", "bias", "--control", "-m", folder, "--json")
    assert done.code in (0, 1), done.err
    proof = done.json["proof"]
    assert proof["control"] is not None
    # Another direction of the same length does something else than the vector.
    assert proof["control"]["effect"] != pytest.approx(proof["steered"]["effect"], rel=0.2)
    assert Store().names("task-vector") == ["saying"]
    assert (
        "a random direction, compiled likewise"
        in engrain("compile", "saying", "--backend", "bias", "--control", "-m", folder).out
    )


def test_an_adapter_has_the_smallest_rank_that_keeps_the_effect(
    engrain: Any, folder: Path, model: SteerableModel, tmp_path: Path
) -> None:
    assert engrain("compile", "saying", "--backend", "rank1", "-m", folder).code in (0, 1)
    assert engrain("registry", "combine", "saying=-1", "--as", "unsaid").code == 0
    shares = []
    for name in ("saying", "unsaid"):
        done = engrain("export", name, "--format", "peft", "--out", tmp_path / name, "--json")
        assert done.code == 0, done.err
        assert done.json["rank"] == 1
        shares.append(done.json.get("kept"))
    # A random vector makes the pairs' margins rise one way, and fall the other: then there is nothing to keep.
    assert sorted(share is None for share in shares) == [False, True]
    assert [share for share in shares if share is not None] == [pytest.approx(1, abs=1e-3)]
    asked = engrain("export", "saying", "--format", "peft", "--rank", 1, "--out", tmp_path / "asked", "--json")
    assert "kept" not in asked.json


def test_a_combination_gets_a_verdict_for_each_behavior(engrain: Any, folder: Path, model: SteerableModel) -> None:
    publish(model, behavior("other", "bbb"), 2)
    for name in ("saying", "other"):
        assert engrain("compile", name, "--backend", "bias", "-m", folder).code in (0, 1)
    done = engrain("registry", "combine", "saying", "other=-0.5", "--as", "pair")
    assert "engrain verify task-vector/pair@1" in done.out
    assert Store().names("verdict") == ["other", "saying"]
    done = engrain("verify", "task-vector/pair@1", "-m", folder, "--json")
    assert done.code in (0, 1), done.err
    assert done.json["task_vector"] == "task-vector/pair@1"
    assert done.json["behaviors"].keys() == {"saying", "other"}
    # Biases of the vectors at the strengths of their scales.
    for one in done.json["behaviors"].values():
        assert one["recovered"] == pytest.approx(1, abs=1e-3)
    assert done.json["behaviors"]["other"]["verdict"]["strength"] == pytest.approx(-0.5)
    pair = Store().resolve("task-vector/pair@1").digest
    for name in ("saying", "other"):
        newest = newest_verdict(Store(), name, pair)
        assert newest is not None
        assert newest.passed == done.json["behaviors"][name]["verdict"]["passed"]
    assert "recovered of the vector's effect" in engrain("verify", "task-vector/pair", "-m", folder).out
    assert "for vectors" in engrain("verify", "task-vector/pair", "--pairs", "x.jsonl", "-m", folder).err


def test_rank1_is_selective_and_what_it_prints_is_for_people(engrain: Any, folder: Path, model: SteerableModel) -> None:
    done = engrain("compile", "vector/saying@1", "--backend", "rank1", "-m", folder)
    assert done.code in (0, 1), done.err
    assert "task-vector/saying@1: rank1, selective" in done.out
    assert "recovered of the vector's effect" in done.out
    assert done.out.splitlines()[-1].startswith("report: ")


def test_without_a_passing_verdict_on_this_very_version_force_is_needed_and_recorded(
    engrain: Any, folder: Path, model: SteerableModel
) -> None:
    vector = read_vector(Store(), "saying").calibrated(Calibration(1, 0.5))
    newer = publish_vector(Store(), "saying", vector, Store().resolve("vector/saying@1").parents)
    call = ("compile", "saying", "--backend", "bias", "-m", folder)
    refused = engrain(*call)
    assert (refused.code, len(refused.err.strip().splitlines())) == (2, 1)
    assert f"'{newer.reference}' has not proved itself: no verdict is on it" in refused.err
    forced = engrain(*call, "--force", "--json")
    assert forced.code in (0, 1), forced.err
    assert forced.json["forced"] is True
    assert Store().resolve("task-vector/saying").config["origin"]["forced"] is True


def test_a_profile_is_compiled_into_one_task_vector_for_all(
    engrain: Any, folder: Path, model: SteerableModel, tmp_path: Path
) -> None:
    publish(model, behavior("other", "bbb"), 2)
    profile = tmp_path / "together.yaml"
    profile.write_text("behaviors: {saying: {vector: vector/saying}, other: {vector: vector/other}}")
    done = engrain("compile", "--profile", profile, "--backend", "bias", "-m", folder, "--json")
    assert done.code in (0, 1), done.err
    assert done.json["task_vector"] == "task-vector/together@1"
    assert done.json["behaviors"].keys() == {"saying", "other"}
    made = read_task_vector(Store(), "together")
    assert made.layers == (1, 2)
    assert done.json["behaviors"]["other"]["recovered"] == pytest.approx(1, abs=1e-3)


def test_interrupted_between_verdicts_it_goes_on_and_finished_it_starts_anew(
    engrain: Any, folder: Path, model: SteerableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(model, behavior("other", "bbb"), 2)
    profile = tmp_path / "together.yaml"
    profile.write_text("behaviors: {saying: {vector: vector/saying}, other: {vector: vector/other}}")
    call = ("compile", "--profile", profile, "--backend", "bias", "--control", "--out", tmp_path / "out", "-m", folder)
    verified: list[str] = []

    def verify(model: SteerableModel, subject: Subject, *arguments: Any, **options: Any) -> Any:
        if len(verified) == 1:
            verified.append("interrupted")
            raise KeyboardInterrupt
        verified.append(subject.name)
        return verify_compiled(model, subject, *arguments, **options)

    monkeypatch.setattr(compiling, "verify_compiled", verify)
    assert engrain(*call).code == 130
    with monkeypatch.context() as patched:
        patched.setattr(compiling, "compile_sources", None)
        done = engrain(*call, "--json")
    assert done.code in (0, 1), done.err
    assert "task-vector/together@1 is compiled, going on with its verification" in done.err
    assert verified == ["saying", "interrupted", "other"]
    assert done.json["behaviors"].keys() == {"saying", "other"}
    assert all(one["proof"]["control"] for one in done.json["behaviors"].values())
    saved, published = TaskVector.load(tmp_path / "out"), read_task_vector(Store(), "together@1")
    assert (saved.tensors.keys(), saved.origin) == (published.tensors.keys(), published.origin)
    # Of the same bytes, which are the same version.
    assert engrain(*call, "--force", "--json").json["task_vector"] == "task-vector/together@1"
    assert verified[3:] == ["saying", "other"]


def test_a_dose_of_a_profile_alone_is_compiled_by_force(
    engrain: Any, folder: Path, model: SteerableModel, tmp_path: Path
) -> None:
    bare = replace(read_vector(Store(), "saying"), calibration=None)
    newer = publish_vector(Store(), "saying", bare, Store().resolve("vector/saying@1").parents)
    profile = tmp_path / "dose.yaml"
    profile.write_text("behaviors: {saying: {vector: vector/saying, layer: 1, strength: 2}}")
    call = ("compile", "--profile", profile, "--backend", "bias", "-m", folder)
    done = engrain(*call, "--force", "--json")
    assert done.code in (0, 1), done.err
    assert f"'{newer.reference}' has no calibration that a verdict could be on" in done.err
    assert done.json["forced"] is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Give a NAME or --profile"),
        (("saying", "--backend", "rank2"), "Did you mean 'rank1'"),
        (("sayin", "--backend", "bias"), "Did you mean 'saying'"),
        (("other", "--backend", "bias"), "'engrain verify other' makes one"),
        (("dataset/saying", "--backend", "bias"), "is a dataset, and a vector is compiled"),
        (("saying", "--backend", "bias", "--target", "down_prj"), "Did you mean 'down_proj'"),
        (("saying", "--backend", "bias", "--target", "o_proj"), "no choice of matrices"),
        (("saying", "--backend", "bias", "--layers", "7"), "the model has the blocks 0-2"),
        (("saying", "--backend", "bias", "--spec", "selective"), "compiles the spec 'faithful' alone"),
        (("--profile", "{p}/off.yaml", "--backend", "bias"), "nothing switched on"),
        (("--profile", "{p}/compiled.yaml", "--backend", "bias"), "behaviors.saying is compiled already"),
        (("--profile", "{p}/file.yaml", "--backend", "bias"), "engrain import x.safetensors --name saying"),
        (("--profile", "{p}/dose.yaml", "--backend", "bias"), "with strength 2.0, and its verdict is on 1.0"),
        (("--profile", "{p}/off.yaml", "--pairs", "x.jsonl"), "--pairs goes with a NAME"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_published(
    engrain: Any, folder: Path, model: SteerableModel, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    for name, entry in {
        "off": "{vector: vector/saying, enabled: false}",
        "compiled": "{task_vector: task-vector/saying}",
        "file": "{vector: x.safetensors}",
        "dose": "{vector: vector/saying, strength: 2}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(f"behaviors: {{saying: {entry}}}")
    done = engrain("compile", *(one.replace("{p}", str(tmp_path)) for one in arguments), "-m", folder)
    assert (done.code, done.out) == (2, ""), done.err
    assert said in done.err.splitlines()[-1]
    assert Store().names("task-vector") == []


def test_a_verdict_that_failed_is_named(engrain: Any, folder: Path) -> None:
    publish(load(str(folder)), behavior(), 1, passed=False)
    done = engrain("compile", "saying", "--backend", "bias", "-m", folder)
    assert (done.code, "verdict/saying@1 did not pass" in done.err) == (2, True)


def test_another_or_a_quantised_base_is_refused(
    engrain: Any, folder: Path, model: SteerableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny import byte_tokenizer, random_model

    random_model("qwen2").save_pretrained(tmp_path / "qwen")
    byte_tokenizer().save_pretrained(tmp_path / "qwen")
    wrong = engrain("compile", "saying", "--backend", "bias", "-m", tmp_path / "qwen")
    assert (wrong.code, "Vector 'saying' was made on" in wrong.err) == (2, True)
    model.hf.config.quantization_config = {"quant_method": "bitsandbytes"}
    monkeypatch.setattr("engrain.loading.load", lambda name, plugins: model)
    quantised = engrain("compile", "saying", "--backend", "bias", "-m", folder)
    assert (quantised.code, "is quantised" in quantised.err) == (2, True)
