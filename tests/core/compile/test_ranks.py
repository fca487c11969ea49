"""Several processes that share the base: what they train is what one process trains."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

import compile_order
from compile_order import fresh
from engrain.core.compile import ranks
from engrain.core.compile.compiler import Order
from engrain.core.compile.distill import compile_distill
from engrain.core.compile.recipe import Recipe
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector
from engrain.processes import leave

RANKS = 2
ORDER = replace(compile_order.ORDER, recipe=replace(compile_order.ORDER.recipe, steps=12))
# Rounding grows with every step, tenfold in three. Where there is no closed form, ``Recipe.from_nothing`` makes 24
# steps at 1.5e-2 of it.
SHORT = replace(ORDER, recipe=replace(ORDER.recipe, steps=6))
NOTHING = replace(ORDER, recipe=replace(ORDER.recipe, rate=6e-4, steps=6))
FAMILIES = {"llama": SHORT, "gemma2": NOTHING, "qwen3_moe": NOTHING}


def compiled(model: SteerableModel, order: Order) -> TaskVector:
    return compile_distill(model, order, lambda what, done: None)


def split(family: str) -> SteerableModel:
    model = fresh(family)
    ranks.shard(model)
    weights = list(model.blocks.parameters())
    assert all(isinstance(weight, DTensor) for weight in weights)
    assert sum(weight.to_local().numel() for weight in weights) < 0.6 * sum(weight.numel() for weight in weights)  # type: ignore[attr-defined]
    return model


def train(rank: int, folder: Path) -> None:
    for family in FAMILIES:
        model = split(family)
        before = {name: tensor.to_local().clone() for name, tensor in model.blocks.state_dict().items()}
        compiled(model, FAMILIES[family]).save(folder / family / str(rank))
        assert all(torch.equal(tensor.to_local(), before[name]) for name, tensor in model.blocks.state_dict().items())


def interrupt(rank: int, folder: Path) -> None:
    def stop(what: str, done: int) -> None:
        steps.append(what)
        if steps.count("distill") == 11:
            raise KeyboardInterrupt

    steps: list[str] = []
    order = replace(ORDER, workspace=folder / "work")
    with pytest.raises(KeyboardInterrupt):
        compile_distill(split("llama"), order, stop)
    resumed = compile_distill(split("llama"), order, lambda what, done: steps.append(what))
    # Eleven steps; then the ten that a checkpoint is of, at once, and two more.
    assert steps.count("distill") == 11 + 1 + 2
    whole = compiled(split("llama"), ORDER)
    assert all(torch.equal(resumed.tensors[name], delta) for name, delta in whole.tensors.items())
    assert whole.origin == resumed.origin


def work(rank: int, port: int, task: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    try:
        task(rank, folder)
    finally:
        leave()


def run(task: Callable[[int, Path], None], folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, args=(port, task, folder), nprocs=RANKS)


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    run(train, tmp_path)
    for family in FAMILIES:
        one, other = (TaskVector.load(tmp_path / family / str(rank)) for rank in range(RANKS))
        alone = compiled(fresh(family), FAMILIES[family])
        assert alone.tensors.keys() == one.tensors.keys()
        for name, delta in one.tensors.items():
            assert torch.equal(other.tensors[name], delta)
            # Sums in another order, divided by their own size where gradients are small.
            assert (delta - alone.tensors[name]).norm() < 1e-4 * delta.norm()
        for numbers in ("loss", "kl_recovered", "drift"):
            seen, wanted = ([look[numbers] for look in made.origin["curve"][1:]] for made in (one, alone))
            assert seen == pytest.approx(wanted, rel=1e-4)


def test_two_processes_go_on_the_same_to_the_bit(tmp_path: Path) -> None:
    run(interrupt, tmp_path)


@pytest.mark.parametrize(("processes", "packs"), [(1, 3), (2, 3), (3, 3), (4, 4), (6, 3), (8, 4), (16, 8)])
def test_every_process_gets_as_many_packs(processes: int, packs: int) -> None:
    assert Recipe().dealt_to(processes) == Recipe(packs=packs)
