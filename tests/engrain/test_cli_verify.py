"""Verifying and calibrating on the command line: unseen pairs alone, published verdicts, doses alone and together."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engrain.core.contrast import split_of
from engrain.core.vector import Calibration
from engrain.registry.store import Store
from engrain.registry.vectors import publish_vector, read_vector
from engrain.subject import Subject
from saying import behavior, plugins_with


def write_pairs(path: Path, first: int, count: int, *, swapped: bool = False) -> Path:
    lines = [
        {"prompt": f"{i}?", "positive": f"yes {i} yes", "negative": f"no {i} no"} for i in range(first, first + count)
    ]
    if swapped:
        lines = [line | {"positive": line["negative"], "negative": line["positive"]} for line in lines]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_verify_needs_pairs_that_the_vector_has_not_seen(engrain: Any, folder: Path, tmp_path: Path) -> None:
    seen = write_pairs(tmp_path / "seen.jsonl", 0, 40)
    assert engrain("extract", "--pairs", seen, "--name", "yes", "-m", folder).code == 0
    alone = engrain("verify", "yes", "-m", folder)
    assert (alone.code, alone.out) == (2, "")
    assert "--pairs FILE.jsonl" in alone.err
    leaked = engrain("verify", "yes", "--pairs", seen, "-m", folder)
    assert leaked.code == 2
    assert "unseen pairs" in leaked.err
    few = engrain("verify", "yes", "--pairs", write_pairs(tmp_path / "few.jsonl", 100, 3), "-m", folder)
    assert few.code == 2
    unknown = engrain("verify", "lisening", "-m", folder)
    assert unknown.code == 2
    assert "listening" in unknown.err


@pytest.mark.parametrize(
    "command",
    [("verify", "saying"), ("run", "saying"), ("evaluate", "saying", "--judge", "contrastive")],
)
def test_a_behavior_without_an_unseen_scenario_is_refused_before_the_model_is_loaded(
    engrain: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...]
) -> None:
    whole = behavior()
    seen = [one for one in whole.scenarios() if split_of(one.prompt) != "test"][:3]
    bare = replace(whole, scenarios=lambda: seen)
    monkeypatch.setattr("engrain.cli.main.build_manager", lambda: plugins_with(bare))
    done = engrain(*command, "-m", tmp_path / "nowhere")
    assert done.code == 2
    assert "'saying' has 3 scenarios and none of them in the test split" in done.err


def test_a_verdict_is_printed_published_and_told_by_the_exit_code(engrain: Any, folder: Path, tmp_path: Path) -> None:
    engrain("extract", "--pairs", write_pairs(tmp_path / "seen.jsonl", 0, 40), "--name", "yes", "-m", folder)
    fresh = write_pairs(tmp_path / "fresh.jsonl", 100, 20)
    found = engrain("verify", "yes", "--pairs", fresh, "-m", folder, "--json")
    assert found.code in (0, 1), found.err
    verdict = found.json
    assert verdict["passed"] == (found.code == 0) == all(gate["passed"] for gate in verdict["gates"])
    assert [gate["name"] for gate in verdict["gates"]] == ["effect", "controls", "side_effects"]
    assert verdict["reference"] == "verdict/yes@1"
    version = Store().resolve("verdict/yes")
    assert json.loads(version.path("verdict.json").read_bytes()) == {
        key: value for key, value in verdict.items() if key not in ("reference", "report")
    }
    assert {parent.role for parent in version.parents} == {"vector", "test"}
    assert Store().resolve("vector/yes").digest in {parent.digest for parent in version.parents}
    assert version.path("report.html").read_bytes() == Path(verdict["report"]).read_bytes()
    assert verdict["report"] in found.err
    # Against exchanged replies the same vector does the opposite.
    against = write_pairs(tmp_path / "against.jsonl", 200, 20, swapped=True)
    failed = engrain("verify", "yes", "--pairs", against, "-m", folder)
    assert failed.code == 1
    assert "effect: the interval of the effect reaches 0" in failed.out
    assert "try:" in failed.out
    assert failed.out.splitlines()[-1].startswith("report: ")


def test_a_report_is_written_where_it_is_asked_for_and_never_over_a_file(
    engrain: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engrain("extract", "--pairs", write_pairs(tmp_path / "seen.jsonl", 0, 40), "--name", "yes", "-m", folder)
    fresh, out = write_pairs(tmp_path / "fresh.jsonl", 100, 14), tmp_path / "report.html"
    call = ("verify", "yes", "--pairs", fresh, "-m", folder)
    out.write_text("mine")
    refused = engrain(*call, "--report", out)
    assert (refused.code, "--force" in refused.err, out.read_text()) == (2, True, "mine")
    assert Store().names("verdict") == []
    found = engrain(*call, "--report", out, "--force", "--json")
    assert found.json["report"] == str(out)
    assert out.read_bytes() == Store().resolve("verdict/yes").path("report.html").read_bytes()
    # Without the packages there is a verdict all the same, and a word on what is missing.
    monkeypatch.setattr("engrain.report.find_spec", lambda name: None)
    without = engrain(*call, "--json")
    assert (without.json["report"], "engrain[report]" in without.err) == (None, True)
    assert engrain(*call, "--report", out, "--force").code == 2


def test_calibrate_takes_a_vector_made_from_a_file(engrain: Any, folder: Path, tmp_path: Path) -> None:
    engrain("extract", "--pairs", write_pairs(tmp_path / "seen.jsonl", 0, 40), "--name", "yes", "-m", folder)
    done = engrain("calibrate", "yes", "-m", folder, "--layers", "all", "--json")
    assert done.code == 0, done.err
    assert done.json["reference"] == "vector/yes@2"


def test_a_vector_from_a_file_is_made_again_as_it_was_made(engrain: Any, folder: Path, tmp_path: Path) -> None:
    seen = write_pairs(tmp_path / "seen.jsonl", 0, 4)
    made = ("--name", "yes", "--positions", "last", "--method", "pca", "-m", folder)
    assert engrain("extract", "--pairs", seen, *made).code == 0
    subject = Subject.of_record(Store(), "yes")
    assert (subject.positions, subject.method, len(subject.train), subject.test) == ("last", "pca", 4, None)


@pytest.mark.parametrize(
    "alone", [7, [1], {"layer": 1}, {"layer": 1, "strength": 1, "positions": "odd"}, {"layer": 99}]
)
def test_a_strangers_dose_of_a_vector_alone_is_refused_with_the_mend(
    engrain: Any, folder: Path, tmp_path: Path, alone: object
) -> None:
    store = Store()
    for name in ("yes", "up"):
        file = write_pairs(tmp_path / f"{name}.jsonl", 0, 4)
        assert engrain("extract", "--pairs", file, "--name", name, "-m", folder).code == 0
        vector = read_vector(store, name).calibrated(Calibration(1, 1.0))
        foreign = replace(vector, origin={**vector.origin, "alone": alone})
        publish_vector(store, name, foreign, store.resolve(f"vector/{name}").parents)
    done = engrain("calibrate", "yes", "up", "-m", folder)
    assert (done.code, len(done.err.strip().splitlines())) == (2, 1), done.err
    assert "engrain calibrate yes" in done.err


def test_calibrate_of_two_names_chooses_their_strengths_together(engrain: Any, folder: Path, tmp_path: Path) -> None:
    for name, line in (("yes", ("yes", "no")), ("up", ("upwards", "below"))):
        file = tmp_path / f"{name}.jsonl"
        lines = [{"prompt": f"{i}?", "positive": f"{line[0]} {i}", "negative": f"{line[1]} {i}"} for i in range(40)]
        file.write_text("\n".join(map(json.dumps, lines)))
        assert engrain("extract", "--pairs", file, "--name", name, "-m", folder).code == 0
        assert engrain("calibrate", name, "-m", folder, "--layers", "all").code == 0
    done = engrain("calibrate", "yes", "up", "-m", folder, "--json")
    assert done.code == 0, done.err
    assert done.json["references"] == ["vector/yes@3", "vector/up@3"]
    for name in ("yes", "up"):
        calibration = read_vector(Store(), f"vector/{name}").calibration
        assert calibration is not None
        assert calibration.strength == done.json["strengths"][name]
    assert engrain("calibrate", "yes", "up", "--layers", "1", "-m", folder).code == 2
    assert engrain("calibrate", "yes", "yes", "-m", folder).code == 2
