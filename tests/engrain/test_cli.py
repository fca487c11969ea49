"""The command line on a tiny model: results on stdout, talk on stderr, exit codes, nothing overwritten."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engrain.core.contrast import PairSet
from engrain.core.vector import Calibration, SteeringVector
from engrain.registry.store import Store
from engrain.subject import Subject
from saying import behavior, hurry, plugins_with


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"{i}?", "positive": f"yes {i} indeed", "negative": f"no {i} at all"} for i in range(6)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_extract_writes_a_file_and_publishes_nothing(engrain: Any, folder: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    done = engrain(
        "extract", "--pairs", pairs, "--name", "yes", "--out", out, "-m", folder, "--layers", "0-1", "--json"
    )
    assert done.code == 0, done.err
    assert done.json["layers"] == [0, 1]
    assert SteeringVector.load(out).name == "yes"
    assert not (tmp_path / "engrain-home").exists()
    again = engrain("extract", "--pairs", pairs, "--name", "yes", "--out", out, "-m", folder)
    assert again.code == 2
    assert "--force" in again.err


@pytest.mark.parametrize(("out", "said"), [("v.pt", "must end in .safetensors"), ("x.safetensors", "x.json' exists")])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    engrain: Any, pairs: Path, tmp_path: Path, out: str, said: str
) -> None:
    (tmp_path / "x.json").write_text("mine")
    done = engrain("extract", "--pairs", pairs, "--name", "yes", "--out", tmp_path / out, "-m", tmp_path / "nowhere")
    assert done.code == 2
    assert said in done.err
    assert (tmp_path / "x.json").read_text() == "mine"


def test_extract_publishes_with_the_pairs_as_parent(engrain: Any, folder: Path, pairs: Path) -> None:

    done = engrain("extract", "--pairs", pairs, "--name", "yes", "-m", folder, "--json")
    assert done.json["reference"] == "vector/yes@1"
    version = Store().resolve("vector/yes")
    (parent,) = version.parents
    assert (parent.role, parent.digest) == ("pairs", Store().resolve("dataset/yes").digest)
    # The same pairs and model again: the same content, so no second version.
    assert (
        engrain("extract", "--pairs", pairs, "--name", "yes", "-m", folder, "--json").json["reference"]
        == "vector/yes@1"
    )


def test_evaluate_compares_base_and_edited(engrain: Any, folder: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    engrain("extract", "--pairs", pairs, "--name", "yes", "--out", out, "-m", folder)
    neutral = tmp_path / "neutral.jsonl"
    neutral.write_text('{"text": "The sea is blue."}')
    where = ("--pairs", pairs, "--neutral", neutral, "-m", folder)
    done = engrain("evaluate", *where, "--steer", out, "--layer", 1, "--strength", 0.2, "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["effect"] == pytest.approx(found["edited"]["margin"] - found["base"]["margin"])
    assert abs(found["effect"]) > 1e-4
    assert found["effect_ci95"][0] <= found["effect"] <= found["effect_ci95"][1]
    assert found["boundary"] is None
    assert found["neutral"]["kl_mean"] > 0
    shown = engrain("evaluate", *where, "--steer", out, "--layer", 1, "--strength", 0.2)
    assert "95 % interval" in shown.out
    assert "neutral text: KL" in shown.out
    uncalibrated = engrain("evaluate", *where, "--steer", out)
    assert (uncalibrated.code, "--layer and --strength" in uncalibrated.err) == (2, True)
    uneven = engrain("evaluate", *where, "--steer", out, "--layer", 1, "--layer", 2)
    assert (uneven.code, "once for each" in uneven.err) == (2, True)


def test_evaluate_uses_the_unseen_pairs_of_a_behavior_which_are_made_once(
    engrain: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[PairSet] = []
    whole = behavior()

    def make() -> PairSet:
        made.append(whole.pairs())
        return made[-1]

    hurry(monkeypatch, plugins_with(replace(whole, pairs=make)))
    bare, neutral = tmp_path / "bare.safetensors", tmp_path / "neutral.jsonl"
    save_file({"layer.1": torch.ones(32)}, bare)
    neutral.write_text('{"text": "The sea is blue."}')
    steer = ("--steer", bare, "--layer", 1, "--strength", 1)
    done = engrain("evaluate", "saying", *steer, "--neutral", neutral, "--judge", "contrastive", "-m", folder, "--json")
    assert done.code == 0, done.err
    assert len(made) == 1
    test = made[0].split("test")
    assert (done.json["base"]["n"], done.json["boundary"]["base"]["n"]) == (len(test.ordinary), len(test.boundary))
    assert done.json["free_replies"]["judged"]["n"] == len(Subject.of_behavior(whole).prompts)


def test_a_bare_vector_file_is_used_and_it_is_said_that_the_model_is_not_checked(
    engrain: Any, folder: Path, pairs: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file({"layer.1": torch.ones(32)}, bare)
    done = engrain("evaluate", "--pairs", pairs, "--steer", bare, "--layer", 1, "--strength", 1, "-m", folder, "--json")
    assert done.code == 0, done.err
    assert "not known whether it was made on this model" in done.err


def test_generate_streams_what_it_returns_and_compares(engrain: Any, folder: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    engrain("extract", "--pairs", pairs, "--name", "yes", "--out", out, "-m", folder)
    profile = tmp_path / "p.yaml"
    profile.write_text(f"behaviors: {{agree: {{vector: '{out}', layer: 1, strength: 30}}}}")
    short = ("--max-new-tokens", 12, "-m", folder)
    base = engrain("generate", "hi", *short, "--json").json["reply"]
    assert engrain("generate", "hi", *short).out.strip() == base
    done = engrain("generate", "hi", *short, "--profile", profile, "--json")
    assert done.code == 0, done.err
    steered = done.json
    (active,) = steered["active"]
    used = {"layers": [1], "strength": 30.0, "positions": "all", "operation": "add", "preserve_norm": False}
    assert active == {"name": "agree", **used}
    both = engrain("generate", "hi", *short, "--profile", profile, "--compare", "--json").json
    assert (both["base"], both["edited"]) == (base, steered["reply"])
    off = engrain("generate", "hi", *short, "--profile", profile, "--set", "behaviors.agree.enabled=false", "--json")
    assert off.json["reply"] == base
    assert "base" in engrain("generate", "hi", *short, "--profile", profile, "--compare").out
    assert engrain("generate", "hi", *short, "--compare").code == 2


def test_drawn_replies_repeat_with_their_seed(engrain: Any, folder: Path) -> None:
    def draw(seed: int) -> str:
        command = ("generate", "hi", "--temperature", 2, "--seed", seed, "--max-new-tokens", 12, "-m", folder, "--json")
        return str(engrain(*command).json["reply"])

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_chat_changes_what_is_on_while_it_goes_on(
    engrain: Any, folder: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import io

    out = tmp_path / "v.safetensors"
    engrain("extract", "--pairs", pairs, "--name", "yes", "--out", out, "-m", folder)
    vector = SteeringVector.load(out)
    vector.calibrated(Calibration(1, 30.0)).save(out, force=True)
    lines = [
        "hi",
        f"/steer {out} 25",
        "/reset",
        "hi",
        "/compare",
        "hi",
        "/off",
        "/nonsense",
        "/steer nothing 1",
        "/quit",
        "no",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    done = engrain("chat", "-m", folder, "--max-new-tokens", 6)
    assert done.code == 0, done.err
    assert f"on: {out} 25 at 1" in done.err
    assert "compared with the base" in done.err
    assert "on: nothing" in done.err
    assert "'/nonsense' is nothing that can be typed here" in done.err
    assert "No vector 'nothing'" in done.err
    assert "base" in done.out


def test_pairs_proposes_from_transcripts(engrain: Any, tmp_path: Path) -> None:
    talk = ["Sort by date.", "By name.", "No, by date.", "By date.", "Thanks."]
    turns = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(talk)]
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks" / "a.jsonl").write_text(json.dumps({"messages": turns}))
    out = tmp_path / "proposed.jsonl"
    done = engrain("pairs", tmp_path / "talks", "--out", out, "--json")
    assert done.json == {"conversations": 1, "proposals": 1, "file": str(out)}
    assert json.loads(out.read_text())["positive"] == "By date."
    assert engrain("pairs", tmp_path / "talks", "--out", out).code == 2


def test_doctor_says_what_works_and_fails_with_1_when_something_does_not(
    engrain: Any, folder: Path, tmp_path: Path
) -> None:
    done = engrain("doctor", "-m", folder, "--json")
    assert done.code == 0, done.err
    assert all(check["passed"] for check in done.json["checks"])
    broken = engrain("doctor", "-m", tmp_path / "nowhere" / "at" / "all")
    assert broken.code == 1
    assert "There is no folder" in broken.out.replace("\n", " ")


def test_what_others_wrote_is_shown_to_the_letter(engrain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = replace(behavior(), description="Ends in [/INST], [bold]loudly.")
    monkeypatch.setattr("engrain.cli.main.build_manager", lambda: plugins_with(odd))
    monkeypatch.setenv("COLUMNS", "200")
    listed = engrain("behaviors")
    assert (listed.code, "Ends in [/INST], [bold]loudly." in listed.out) == (0, True), listed.err
    shown = engrain("behaviors", "show", "saying")
    assert (shown.code, "Ends in [/INST], [bold]loudly." in shown.out) == (0, True), shown.err
    failed = engrain("doctor", "-m", "./[/INST] engrain[probe]")
    assert failed.code == 1
    assert failed.out.count("./[/INST] engrain[probe]") == 2


def test_every_command_has_help_that_ends_with_an_example(engrain: Any) -> None:
    from engrain.plugins.manager import build_manager

    for name in build_manager().commands():
        done = engrain(name, "--help")
        assert done.code == 0
        assert "Example: engrain" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evalute"], "Did you mean 'evaluate'"),
        (["extract"], "Give a BEHAVIOR or --pairs"),
        (["extract", "listenin"], "Did you mean 'listening'"),
        (["extract", "--pairs", "none.jsonl"], "--name"),
        (["extract", "--pairs", "none.jsonl", "--name", "x"], "cannot be read"),
        (["extract", "listening", "--layers", "5-1", "-m", "{folder}"], "not 'all', a block number"),
        (["extract", "listening", "--layers", "5", "-m", "{folder}"], "the model has the blocks 0-2"),
        (["extract", "listening", "--layers", "0-99999999999", "-m", "{folder}"], "not 'all', a block number"),
        (["extract", "listening", "--layers", "x", "-m", "{folder}"], "not 'all', a block number"),
        (["extract", "listening", "--method", "meen", "-m", "{folder}"], "No estimator 'meen'"),
        (["evaluate"], "Give a BEHAVIOR or --pairs"),
        (["evaluate", "listening", "--nonsense"], "--nonsense"),
        (["generate", "hi", "--steer", "vector/none", "-m", "{folder}"], "No vector 'none'"),
        (["generate", "hi", "--steer", "x=fast", "-m", "{folder}"], "finite number"),
        (["generate", "hi", "--steer", "x=nan", "-m", "{folder}"], "finite number"),
        (["generate", "hi", "--steer", "v.pt", "-m", "{folder}"], "cannot be read"),
        (["generate", "hi", "--set", "a=b", "-m", "{folder}"], "give --profile"),
        (["generate", "hi", "--profile", "none.yaml"], "cannot be read"),
        (["generate", "hi", "--temperature", "-1", "-m", "{folder}"], "temperature"),
        (["generate", "hi", "-m", "{folder}/none/x"], "There is no folder"),
        (["generate", "hi", "-m", "none.gguf"], "There is no file"),
        (["generate", "hi", "-m", "no/such-model"], "No model 'no/such-model'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(engrain: Any, folder: Path, arguments: list[str], said: str) -> None:
    done = engrain(*(argument.replace("{folder}", str(folder)) for argument in arguments))
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert done.out == ""


def test_a_model_folder_without_weights_or_with_pickled_ones_is_refused(
    engrain: Any, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert "holds no weights" in engrain("generate", "hi", "-m", place).err
    (place / "pytorch_model.bin").write_bytes(b"x")
    assert "pickle" in engrain("generate", "hi", "-m", place).err
    (place / "model.safetensors").write_bytes(b"torn")
    done = engrain("generate", "hi", "-m", place)
    assert (done.code, len(done.err.strip().splitlines())) == (2, 1)


def test_an_unexpected_error_is_one_line_and_exit_code_70(engrain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst() -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr("engrain.cli.main.build_manager", burst)
    done = engrain("behaviors")
    assert done.code == 70
    assert done.err.count("\n") == 1


def test_an_interruption_is_exit_code_130(engrain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("engrain.cli.main.build_manager", interrupt)
    assert engrain("behaviors").code == 130
