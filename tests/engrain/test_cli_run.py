"""The whole chain with one command: it ends at a verdict that fails, and goes on where it was interrupted."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from engrain import running
from engrain.compiling import Wish, compiled_to, order_digest
from engrain.core.compile.recipe import Recipe
from engrain.core.fingerprint import Fingerprint
from engrain.core.task_vector import TaskVector
from engrain.core.verdict import Gate, Verdict
from engrain.proving import verify_compiled
from engrain.registry.store import Parent, Store
from engrain.registry.task_vectors import publish_task_vector
from engrain.registry.vectors import publish_pairs, publish_verdict
from engrain.subject import Subject
from engrain.verifying import found_verdict
from saying import behavior, hurry, pairs, plugins_with


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch, plugins_with(behavior()))


def decided(monkeypatch: pytest.MonkeyPatch, passed: bool) -> None:
    """Have every verdict pass, or none: on random weights luck decides."""
    monkeypatch.setattr(Verdict, "passed", property(lambda self: passed))
    monkeypatch.setattr(
        "engrain.core.verify._above_zero",
        lambda name, values, *rest: Gate(
            name, passed, float(values.mean()), 0.0, (0.0, 1.0), () if passed else ("no",)
        ),
    )


def test_the_chain_ends_with_published_weights_and_a_second_run_makes_nothing_again(
    engrain: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(monkeypatch, True)
    call = ("run", "saying", "--backend", "bias", "-m", folder)
    done = engrain(*call, "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found.keys() == {"calibration", "verdict", "compiled", "artifacts"}
    assert found["calibration"].keys() == {"layer", "strength"}
    assert found["verdict"]["passed"] is True
    assert found["compiled"]["recovered"] == pytest.approx(1, abs=1e-3)
    assert {"recovered", "drift_ratio", "verdict"} <= found["compiled"].keys()
    assert found["artifacts"]["task_vector"] == "task-vector/saying@1"
    assert Path(found["artifacts"]["report"]).is_file()
    for name in ("verify_subject", "compile_sources", "verify_compiled"):
        monkeypatch.setattr(running, name, _never(name))
    again = engrain(*call, "--json")
    assert again.code == 0, again.err
    assert again.json == found
    shown = engrain(*call)
    assert "task-vector/saying@1" in shown.out
    assert shown.out.splitlines()[-1].startswith("report: ")


def _never(name: str) -> Callable[..., None]:
    def made_again(*arguments: object, **options: object) -> None:
        pytest.fail(f"{name} was called again")

    return made_again


def test_what_was_compiled_by_another_recipe_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = order_digest([], Wish())
    assert order_digest([], Wish()) == before
    monkeypatch.setattr("engrain.compiling.Recipe", partial(Recipe, drift=0.2))
    assert order_digest([], Wish()) != before


def test_what_was_compiled_by_force_is_made_again() -> None:
    base = Fingerprint("here", "Tiny", "sha256:a", "sha256:b", "sha256:c", "sha256:d", "float32")
    for order, forced in (("ours", False), ("ours", True), ("other", False)):
        made = TaskVector("saying", {"lm_head.weight": torch.ones(2, 2)}, base, {"order": order, "forced": forced})
        publish_task_vector(Store(), "saying", made)
    found = compiled_to(Store(), "saying", "ours")
    assert found is not None
    assert found.reference == "task-vector/saying@1"
    assert compiled_to(Store(), "saying", "theirs") is None


def test_a_verdict_is_found_for_the_same_pairs_seed_and_judge_alone() -> None:
    own, store = pairs(), Store()
    on = store.publish("vector", "saying", config={}, files={"v": b"v"}, parents=())
    tested = publish_pairs(store, "saying-test", own.split("test"))
    verdict = Verdict(1, 1.0, (Gate("effect", True, 1.0, 0.0),), {"judged": {"judge": "contrastive"}}, (), 0)
    parents = [Parent("vector", on.digest), Parent("test", tested.digest)]
    published = publish_verdict(store, "saying", verdict, parents)
    subject = Subject("saying", own.split("train"), own.split("calibration"), own.split("test"), ())
    assert found_verdict(store, on, subject, 0) == published
    assert found_verdict(store, on, subject, 0, "contrastive") == published
    assert found_verdict(store, on, subject, 0, "llm:other") is None
    assert found_verdict(store, on, subject, 1) is None
    assert found_verdict(store, on, replace(subject, test=own.split("train")), 0) is None
    assert found_verdict(store, on, replace(subject, test=None), 0) is None


def test_it_stops_at_a_verdict_that_fails(engrain: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decided(monkeypatch, False)
    done = engrain("run", "saying", "--backend", "bias", "-m", folder, "--json")
    assert done.code == 1, done.err
    assert done.json["compiled"] is None
    assert done.json["artifacts"]["task_vector"] is None
    assert done.json["verdict"]["passed"] is False
    assert Store().names("task-vector") == []


def test_interrupted_between_steps_it_goes_on(engrain: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decided(monkeypatch, True)
    call = ("run", "saying", "--backend", "bias", "-m", folder)

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "verify_compiled", interrupt)
    assert engrain(*call).code == 130
    assert Store().names("task-vector") == ["saying"]
    monkeypatch.setattr(running, "verify_compiled", verify_compiled)
    monkeypatch.setattr(running, "compile_sources", _never("compile_sources"))
    done = engrain(*call)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("sayin",), "Did you mean 'saying'"), (("saying", "--backend", "bais"), "Did you mean 'bias'")],
)
def test_a_mistake_is_one_line(engrain: Any, folder: Path, arguments: tuple[str, ...], said: str) -> None:
    done = engrain("run", *arguments, "-m", folder)
    assert (done.code, done.out, len(done.err.strip().splitlines())) == (2, "", 1), done.err
    assert said in done.err
