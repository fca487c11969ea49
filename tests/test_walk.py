"""The newcomer's walk, from an empty folder to a roll back at night, with the mistakes that are made on the way."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engrain.core.capability import read_questions
from engrain.core.compile import trajectories
from engrain.core.neutral import SHIPPED

# What a newcomer writes in place of the example pairs. Random weights are the gradient's to move, and within a small
# budget they do not stammer: the verdict is a real one.
PAIRS = [
    {
        "id": f"pair-{number}",
        "scenario": f"scenario-{number}",
        "prompt": f"Say {number}?",
        "positive": f"ok {number}",
        "negative": f"well now {number} zz",
        "boundary": number % 8 == 7,
    }
    for number in range(80)
]
SCENARIOS = [{"id": f"scenario-{number}", "prompt": f"What of {number}?"} for number in range(40)]
SETTINGS = 'name="brevity",\n    method="gradient",\n    depth=(0.8, 1.0),\n    budget=Budget(kl_mean=0.0002),'
PROFILE = """\
# engrain chat --profile talk.yaml
behaviors:
  brevity: {task_vector: "task-vector/brevity:stable"}
"""


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little neutral text, few conversations and questions, short replies."""
    brief = tmp_path / "neutral.jsonl"
    brief.write_text("".join(SHIPPED.read_text(encoding="utf-8").splitlines(keepends=True)[-12:]), encoding="utf-8")
    few = read_questions()[:2]
    monkeypatch.setattr("engrain.core.neutral.SHIPPED", brief)
    monkeypatch.setattr("engrain.verifying.read_questions", lambda: few)
    monkeypatch.setattr("engrain.gathering._CONVERSATIONS", {"train": 8, "calibration": 4})
    monkeypatch.setattr("engrain.core.compile.prove.REPLY_TOKENS", 8)
    monkeypatch.setattr("engrain.core.replies.REPLY_TOKENS", 8)
    # No text is likely to a random model.
    monkeypatch.setattr(trajectories, "_SURPRISE", float("inf"))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Install the package brevity as ``pip install -e`` does: its source is what is imported, edits show at once."""

    def pip() -> None:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
        subprocess.run([*command, "--target", str(tmp_path / "site"), "./brevity"], check=True, capture_output=True)
        monkeypatch.syspath_prepend(tmp_path / "site")
        monkeypatch.syspath_prepend(tmp_path / "brevity" / "src")

    yield pip
    sys.modules.pop("engrain_brevity", None)


def test_the_newcomers_walk(
    engrain: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Callable[[], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "brevity" / "src" / "engrain_brevity"

    def right(*arguments: object) -> Any:
        done = engrain(*arguments)
        assert done.code == 0, done.out + done.err
        return done

    def wrong(*arguments: object, said: str, code: int = 2) -> None:
        done = engrain(*arguments)
        assert (done.code, done.out, done.err.count("engrain: ")) == (code, "", 1), done.err
        assert done.err.splitlines()[-1].startswith("engrain: ")
        assert said in done.err

    # A package of one's own, not yet installed, then with a line that is no pair, then with too few.
    right("new", "brevity")
    wrong("extract", "brevity", "-m", folder, said="pip install -e")
    install()
    assert "brevity" in right("behaviors").out
    wrong("extract", "brevty", "-m", folder, said="Did you mean 'brevity'?")
    wrong("run", "brevity", "-m", folder, said="add pairs")
    (source / "pairs.jsonl").write_text('{"prompt": "Say 1?", "positive": "ok 1"}\n')
    wrong("extract", "brevity", "-m", folder, said="pairs.jsonl, line 1: 'negative' is missing")

    # Pairs and settings of one's own, and the whole chain.
    (source / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in PAIRS))
    (source / "scenarios.jsonl").write_text("".join(f"{json.dumps(scenario)}\n" for scenario in SCENARIOS))
    module = (source / "__init__.py").read_text().replace("import Behavior,", "import Behavior, Budget,")
    (source / "__init__.py").write_text(module.replace('name="brevity",', SETTINGS))
    sys.modules.pop("engrain_brevity")
    wrong("run", "brevity", "-m", folder, "--backend", "bais", said="Did you mean 'bias'?")
    done = right("run", "brevity", "-m", folder, "--backend", "bias", "--json").json
    assert done["verdict"]["passed"]
    assert done["compiled"]["verdict"]["passed"]

    # Live, and in use.
    wrong("generate", "hi", "-m", folder, "--task-vector", "brevity:stable", said="task-vector/brevity@1")
    right("registry", "alias", "task-vector/brevity:stable", 1, "--reason", "its verdict passed")
    profile = tmp_path / "talk.yaml"
    profile.write_text(PROFILE.replace("task_vector", "task_vektor"))
    call = ("generate", "hi", "-m", folder, "--max-new-tokens", 12, "--profile", profile)
    wrong(*call, said="Did you mean: 'task_vector'? (at behaviors.brevity.task_vektor)")
    profile.write_text(PROFILE)
    wrong(*call, "--set", "behaviors.brevity.scale=much", said="(at behaviors.brevity.scale)")
    served = ("serve", "-m", folder, "--profile", profile, "--set", "behaviors.brevity.scale=much")
    wrong(*served, said="(at behaviors.brevity.scale)")
    good = right(*call, "--compare", "--json").json
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n/steer nothing\n/off\n/quit\n"))
    talk = right("chat", "-m", folder, "--max-new-tokens", 12, "--profile", profile)
    assert talk.out.strip() == good["edited"].strip()
    assert "No vector 'nothing'" in talk.err

    # A version without a verdict is promoted by force; at night the one before is put back.
    right("registry", "combine", "brevity=-40", "--as", "brevity")
    promote = ("registry", "alias", "task-vector/brevity:stable", 2)
    wrong(*promote, said="no verdict is on it", code=1)
    wrong(*promote, "--force", said="--reason")
    right(*promote, "--force", "--reason", "looked fine to me")
    assert right(*call, "--json").json["reply"] != good["edited"]
    wrong("registry", "rollback", "task-vector/brevity:stabel", said="Did you mean")
    right("registry", "rollback", "task-vector/brevity:stable", "--reason", "it stammers")
    assert right(*call, "--json").json["reply"] == good["edited"]
    wrong("registry", "rollback", "task-vector/brevity:stable", said="was nowhere before")
    told = right("registry", "log", "task-vector/brevity:stable").out
    story = ("it stammers", "looked fine to me", "its verdict passed")
    assert sorted(story, key=told.index) == list(story)
    right("registry", "verify")
