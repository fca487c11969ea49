"""The block above against its normal equations, and what it makes good."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from compile_order import CORPUS, DIRECTION, ORDER, active, fresh
from engrain.core.blocks import block_output
from engrain.core.compile import correction, regression
from engrain.core.compile.compiler import Order
from engrain.core.compile.correction import Gap, correct
from engrain.core.compile.passage import Passage
from engrain.core.compile.rank1 import compile_rank1
from engrain.core.compile.target import choose_matrices
from engrain.core.composition import activate
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.task_vector import TaskVector
from engrain.core.vector import SteeringVector
from tiny import tiny

ATTENTION, MLP = "model.layers.2.self_attn.o_proj", "model.layers.2.mlp.down_proj"


def started(model: SteerableModel) -> TaskVector:
    return compile_rank1(model, ORDER, lambda what, done: None)


def corrected(model: SteerableModel, start: TaskVector, order: Order = ORDER, target: str = "writers") -> TaskVector:
    sides = ((CORPUS.scope, partial(model.steer, *order.actives)), (CORPUS.retain, nullcontext))
    begun = [(Passage(model, texts, 1), teacher) for texts, teacher in sides]
    gaps = [Gap(one, one).onward(2, teacher, partial(model.compiled, start)) for one, teacher in begun]
    return correct(model, start, 2, choose_matrices(model, target, [2]), *gaps)


def behind(model: SteerableModel, name: str, one: Encoded, edit: AbstractContextManager[object]) -> dict[str, Tensor]:
    """A writer's input, and the residual stream behind it, of one sequence."""
    found: dict[str, Tensor] = {}
    block = model.blocks[2]
    hooks = [
        model.hf.get_submodule(name).register_forward_hook(
            lambda module, inputs, output: found.update(x=inputs[0][0], written=output[0])
        ),
        block.register_forward_pre_hook(lambda module, inputs: found.update(before=inputs[0][0])),
        block.register_forward_hook(lambda module, inputs, output: found.update(after=block_output(output)[0])),
    ]
    with edit, torch.no_grad():
        model.hf(input_ids=torch.tensor([one.prompt + one.reply]), use_cache=False)
    for hook in hooks:
        hook.remove()
    found["stream"] = found["after"] if name == MLP else found["before"] + found["written"]
    return found


def rows(
    model: SteerableModel, name: str, student: Callable[[], AbstractContextManager[object]]
) -> tuple[Tensor, Tensor]:
    """The least squares, written out token by token: inputs and what is missing, each with the root of its weight."""
    kinds: dict[str, list[tuple[Tensor, Tensor]]] = {"said": [], "read": [], "kept": []}
    for texts, teacher in ((CORPUS.scope, partial(model.steer, active())), (CORPUS.retain, nullcontext)):
        for one in texts:
            wanted, own = behind(model, name, one, teacher()), behind(model, name, one, student())
            both = own["x"].double(), (wanted["stream"] - own["stream"]).double()
            start = len(one.prompt) - 1
            if texts is CORPUS.retain:
                kinds["kept"].append(both)
            else:
                kinds["read"].append((both[0][:start], both[1][:start]))
                kinds["said"].append((both[0][start:-1], both[1][start:-1]))
    weights = {"said": 1.0, "read": regression.PROMPTS, "kept": correction.RETAINING}
    found = []
    for side in (0, 1):
        stacked = {kind: torch.cat([pair[side] for pair in pairs]) for kind, pairs in kinds.items()}
        found.append(torch.cat([own * (weights[kind] / len(own)) ** 0.5 for kind, own in stacked.items()]))
    return found[0], found[1]


def test_each_writer_solves_its_least_squares_behind_the_one_before() -> None:
    model = fresh()
    start = started(model)
    made = corrected(model, start)
    so_far = dict(start.tensors)
    for name in (ATTENTION, MLP):
        x, y = rows(model, name, partial(model.compiled, TaskVector("v", dict(so_far), model.fingerprint)))
        lam = correction.RIDGE * float(x.square().sum(0).mean())
        whole = torch.cat([x, lam**0.5 * torch.eye(x.shape[1], dtype=torch.float64)])
        wanted = torch.linalg.lstsq(whole, torch.cat([y, torch.zeros(x.shape[1], y.shape[1]).double()])).solution.T
        found = made.tensors[f"{name}.weight"]
        assert float((found.double() - wanted).norm()) < 1e-3 * float(wanted.norm())
        so_far[f"{name}.weight"] = found
    assert all(torch.equal(made.tensors[name], tensor) for name, tensor in start.tensors.items())


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_less_is_missing_behind_the_block(family: str) -> None:
    model = fresh(family)
    start = started(model)
    texts = ((CORPUS.scope, partial(model.steer, active())), (CORPUS.retain, nullcontext))
    missing = []
    for made in (start, corrected(model, start)):
        total = 0.0
        for sequences, teacher in texts:
            passage = Passage(model, sequences, 1)
            for number in range(len(passage)):
                with teacher():
                    wanted = passage.see(number, 2, {}).after
                with model.compiled(made):
                    total += float((wanted - passage.see(number, 2, {}).after).square().sum())
        missing.append(total)
    assert missing[1] < 0.9 * missing[0]


def test_where_nothing_is_missing_nothing_is_made_good() -> None:
    model = fresh()
    order = replace(ORDER, actives=(activate(SteeringVector({1: DIRECTION}, "v"), 1, 0.0),))
    start = started(model)
    idle = TaskVector("v", {name: torch.zeros_like(delta) for name, delta in start.tensors.items()}, model.fingerprint)
    made = corrected(model, idle, order)
    assert all(float(delta.abs().max()) < 1e-6 for delta in made.tensors.values())


def test_other_matrices_than_those_chosen_are_left_alone() -> None:
    model = fresh()
    start = started(model)
    assert set(corrected(model, start, target="o_proj").tensors) == {*start.tensors, f"{ATTENTION}.weight"}
    assert corrected(model, start, target="q_proj").tensors == start.tensors


def test_a_block_of_experts_is_refused() -> None:
    model = tiny("qwen3_moe")
    passage = Passage(model, CORPUS.scope[:1], 1)
    with pytest.raises(InputError, match="experts"):
        correct(model, started(fresh()), 2, {}, Gap(passage, passage), Gap(passage, passage))
