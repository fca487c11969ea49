"""Training: closer to the teacher than its start, the same after any interruption, never silently something else."""

import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from compile_order import CORPUS, ORDER, active, fresh
from engrain.core.compile import student
from engrain.core.compile.checkpoint import FILE
from engrain.core.compile.compiler import Order
from engrain.core.compile.correction import correct
from engrain.core.compile.distill import compile_distill
from engrain.core.compile.measure import Measure
from engrain.core.compile.objective import Objective
from engrain.core.compile.passes import Recorded
from engrain.core.compile.recipe import OPTIMIZERS, Recipe
from engrain.core.errors import InputError, UnknownNameError
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector


def compiled(order: Order = ORDER, model: SteerableModel | None = None) -> TaskVector:
    return compile_distill(model or fresh(), order, lambda what, done: None)


def shortfalls(made: TaskVector) -> list[float]:
    return [look["short"] for look in made.origin["curve"]]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_ends_closer_to_the_teacher_than_the_closed_form(optimizer: str) -> None:
    made = compiled(replace(ORDER, recipe=replace(ORDER.recipe, optimizer=optimizer, drift=0.0)))
    short = shortfalls(made)
    assert made.layers == (0, 1, 2)
    assert made.origin["backend"] == "distill"
    assert made.origin["recipe"]["optimizer"] == optimizer
    assert min(short) < 0.9 * short[0]
    assert 1 - made.origin["kl_recovered"] + made.origin["drift"] == pytest.approx(min(short))


@pytest.mark.parametrize(("ridge", "allowed", "is_more"), [(0.1, 0.0, False), (0.1, 0.52, True), (0.05, 1.0, True)])
def test_what_was_learned_is_scaled_up_as_long_as_it_gets_closer_and_drifts_no_more_than_allowed(
    ridge: float, allowed: float, is_more: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With so much of a ridge the closed forms fall short; nothing is learned behind them.
    monkeypatch.setattr("engrain.core.compile.distill.RIDGE", ridge)
    monkeypatch.setattr("engrain.core.compile.correction.RIDGE", ridge)
    order = replace(ORDER, recipe=replace(ORDER.recipe, steps=1, rate=1e-12))
    kept, made = (compiled(replace(order, recipe=replace(order.recipe, drift=one))) for one in (0.0, allowed))
    best = min(kept.origin["curve"], key=lambda look: look["short"])
    taken = {"scale": 1.0, "kl_recovered": best["kl_recovered"], "drift": best["drift"]}
    assert {name: kept.origin[name] for name in taken} == taken
    for name, delta in made.tensors.items():
        torch.testing.assert_close(delta, made.origin["scale"] * kept.tensors[name])
    model = fresh()
    measure = Measure(model, partial(model.steer, active()), CORPUS.held_scope, CORPUS.held_retain, 0)
    now, further = (
        measure.closeness(partial(model.compiled, kept, made.origin["scale"] + more)) for more in (0.0, 0.05)
    )
    assert now.kl_recovered == pytest.approx(made.origin["kl_recovered"], abs=1e-5)
    assert now.drift == pytest.approx(made.origin["drift"], abs=1e-5)
    assert (made.origin["scale"] > 1) is is_more
    assert not is_more or (now.drift <= allowed and now.kl_recovered > best["kl_recovered"])
    assert further.drift > allowed or further.kl_recovered <= now.kl_recovered


@pytest.mark.parametrize(
    ("change", "layers"),
    [({}, (0, 1, 2)), ({"layers": (1,)}, (1,)), ({"target": "down_proj", "layers": (1, 2)}, (1, 2))],
)
def test_it_starts_from_the_closed_forms_of_the_matrices_that_it_trains(
    change: dict[str, Any], layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[TaskVector] = []

    def kept(*given: Any) -> TaskVector:
        started.append(correct(*given))
        return started[-1]

    monkeypatch.setattr("engrain.core.compile.distill.correct", kept)
    # So slow that nothing is learned.
    made = compiled(replace(ORDER, recipe=replace(ORDER.recipe, steps=1, rate=1e-12, drift=0.0), **change))
    assert made.layers == layers
    for name, delta in made.tensors.items():
        wanted = started[-1].tensors.get(name, torch.zeros_like(delta))
        torch.testing.assert_close(delta, wanted, rtol=0, atol=1e-9)
    assert started[-1].layers == tuple(layer for layer in layers if layer)


@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe"])
def test_families_with_no_closed_form_are_trained_from_nothing(family: str) -> None:
    made = compiled(ORDER, fresh(family))
    assert made.origin["recipe"] == ORDER.recipe.from_nothing().to_json()
    assert min(shortfalls(made)) < 0.9


@pytest.mark.parametrize("change", [{"target": "q_proj"}, {"layers": (2,)}])
def test_matrices_that_no_closed_form_is_written_by_are_trained_from_nothing(change: dict[str, Any]) -> None:
    made = compiled(replace(ORDER, **change))
    assert made.origin["recipe"] == ORDER.recipe.from_nothing().to_json()


def test_matrices_that_are_stored_transposed_are_trained() -> None:
    assert min(shortfalls(compiled(model=fresh("gpt2")))) < 0.9


def test_the_task_vector_is_what_the_curve_says_of_it() -> None:
    made, model = compiled(), fresh()
    measure = Measure(model, partial(model.steer, active()), CORPUS.held_scope, CORPUS.held_retain, 0)
    assert measure.closeness(partial(model.compiled, made)).loss == pytest.approx(min(shortfalls(made)), rel=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    model = fresh()
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    compiled(replace(ORDER, recipe=replace(ORDER.recipe, steps=2)), model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())
    assert not any("forward" in vars(module) for module in model.hf.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.hf.parameters())


def test_computing_blocks_again_changes_nothing() -> None:
    short = replace(ORDER.recipe, steps=3)
    one, other = (compiled(replace(ORDER, recipe=replace(short, checkpointing=on))) for on in (False, True))
    for name, delta in one.tensors.items():
        torch.testing.assert_close(other.tensors[name], delta)


def test_faithful_is_like_the_steered_model_on_retained_texts_too() -> None:
    selective, faithful = (compiled(replace(ORDER, spec=spec)) for spec in ("selective", "faithful"))
    assert selective.origin["drift"] < 0.5 < faithful.origin["drift"]


def test_a_bfloat16_base_is_compiled() -> None:
    made = compiled(model=fresh(dtype=torch.bfloat16))
    assert min(shortfalls(made)) < shortfalls(made)[0]


def test_a_loss_that_is_no_number_ends_it_with_the_best_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = Objective.descend, []

    def broken(self: Objective, recorded: Recorded, factor: float) -> float:
        seen.append(factor)
        return float("nan") if len(seen) > 2 * ORDER.recipe.packs * 14 else whole(self, recorded, factor)

    monkeypatch.setattr(Objective, "descend", broken)
    made = compiled()
    assert made.origin["stopped"] == "the loss was nan and its gradient" + made.origin["stopped"][33:]
    assert made.origin["stopped"].endswith("at step 15")
    assert made.origin["step"] in (0, 10, 14)


def test_it_ends_where_it_no_longer_gets_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student, "LOOK", 1)
    made = compiled(replace(ORDER, recipe=replace(ORDER.recipe, rate=1.0, steps=200)))
    curve = made.origin["curve"]
    assert made.origin["stopped"] == f"no closer to the teacher since step {made.origin['step']}"
    assert curve[-1]["step"] < 200
    assert min(shortfalls(made)) == next(look["short"] for look in curve if look["step"] == made.origin["step"])


_KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
from compile_order import ORDER, fresh
from engrain.core.compile import checkpoint, distill, student
from engrain.core.compile.distill import compile_distill

torch.set_num_threads(1)
distill.LOOK = 3
moment, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
steps = [0]

def progress(what, done):
    steps[0] += done if what == "distill" else 0
    if moment.isdigit() and steps[0] >= int(moment):
        os.kill(os.getpid(), signal.SIGKILL)

writes, whole = [0], os.replace
def torn(*args, **kwargs):
    writes[0] += 1
    if moment == f"write{writes[0]}":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args, **kwargs)
os.replace = torn
made = compile_distill(fresh(), replace(ORDER, recipe=replace(ORDER.recipe, steps=9), workspace=folder), progress)
made.save(out)
"""


def _run(moment: str, folder: Path, out: Path) -> int:
    command = [sys.executable, "-c", _KILLED, moment, str(folder), str(out)]
    return subprocess.run(command, cwd=Path(__file__).parents[2], check=False, timeout=300).returncode


def test_killed_at_any_moment_it_ends_the_same_to_the_bit(tmp_path: Path) -> None:
    assert _run("never", tmp_path / "whole", tmp_path / "wanted") == 0
    moments = ["write1", "1", "4", "write2", "8"]
    for moment in moments:
        assert _run(moment, tmp_path / "work", tmp_path / "found") == -signal.SIGKILL
        assert not (tmp_path / "found").exists()
    assert (tmp_path / "work" / FILE).exists()
    assert _run("never", tmp_path / "work", tmp_path / "found") == 0
    for name in ("delta.safetensors", "manifest.json"):
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "wanted" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"corpus": None}, InputError, "looks at texts"),
        ({"corpus": replace(CORPUS, retain=())}, InputError, "no text in 'retain'"),
        ({"target": "q_prj"}, UnknownNameError, "q_proj"),
        ({"layers": (7,)}, InputError, "7"),
    ],
)
def test_what_it_cannot_do_it_refuses(change: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        compiled(replace(ORDER, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"rank": 0}, {"steps": 0}, {"rate": 0.0}, {"hidden": -1.0}, {"drift": -0.1}])
def test_a_recipe_out_of_range_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match="A recipe needs"):
        Recipe(**change)  # type: ignore[arg-type]


def test_an_optimizer_that_would_project_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="projected by APOLLO"):
        Recipe().build([torch.nn.Parameter(torch.zeros(4))], seed=0)
    with pytest.raises(UnknownNameError, match="apollo"):
        Recipe(optimizer="apolo")
