"""Apollo on two processes: replicas stay equal, shards are one process's."""

import os
import socket
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

from descent import KINDS
from engrain.core.apollo import Apollo
from engrain.processes import leave

RANKS = 2
STEPS = 8


class Experts(nn.Module):
    """A stack of matrices, all used."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 12, 20) / 4)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.einsum("bi,eij->bj", hidden, self.weight)


def network() -> nn.Sequential:
    """Tall, wide and square matrices, a stack, biases, a rank that is clamped, sides that two does not divide."""
    torch.manual_seed(0)
    sizes = (10, 24, 24, 3, 12)
    linear = [nn.Linear(before, after) for before, after in pairwise(sizes)]
    layers = (linear[0], nn.Tanh(), linear[1], nn.Tanh(), linear[2], linear[3], Experts(), nn.Linear(20, 7))
    return nn.Sequential(*layers).double()


def sharded() -> nn.Sequential:
    model = network()
    for layer in (*model, model):
        fully_shard(layer)
    return model


def batches() -> Tensor:
    return torch.randn(STEPS, 2 * RANKS, 10, generator=torch.Generator().manual_seed(1)).double()


def train(model: nn.Module, inputs: Tensor, kind: dict[str, Any]) -> Apollo:
    apollo = Apollo(model.parameters(), lr=1e-2, update_proj_gap=3, weight_decay=0.1, **kind)
    steps(model, apollo, inputs)
    return apollo


def steps(model: nn.Module, apollo: Apollo, inputs: Tensor) -> None:
    for batch in inputs:
        apollo.zero_grad()
        model(batch).square().mean().backward()
        apollo.step()


def alone(kind: dict[str, Any]) -> dict[str, Tensor]:
    model = network()
    train(model, batches(), kind)
    return {name: weight.detach() for name, weight in model.named_parameters()}


def own_part(rank: int) -> Tensor:
    return batches()[:, 2 * rank : 2 * rank + 2]


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal but for the order in which float64 gradients are summed up."""
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-9, atol=1e-11)


def whole(weight: Tensor) -> Tensor:
    """Return a sharded parameter, gathered."""
    assert isinstance(weight, DTensor)
    return weight.full_tensor()


def replicas(rank: int, kind: dict[str, Any]) -> None:
    model = network()
    # Whatever else the processes do with their generators.
    torch.manual_seed(100 + rank)
    train(nn.parallel.DistributedDataParallel(model), own_part(rank), kind)
    found = {name: weight.detach() for name, weight in model.named_parameters()}
    for weight in found.values():
        both = [torch.empty_like(weight) for _ in range(RANKS)]
        dist.all_gather(both, weight)
        assert torch.equal(*both)
    close(found, alone(kind))


def shards(rank: int, kind: dict[str, Any]) -> None:
    model = sharded()
    torch.manual_seed(100 + rank)
    apollo = train(model, own_part(rank), kind)
    assert (apollo.projected, apollo.dense) == (6, 5)
    found = {name: whole(weight) for name, weight in model.named_parameters()}
    close(found, alone(kind))
    # Moments are split as well: a process holds half of them, norms and what two does not divide apart.
    single = network()
    held = train(single, batches()[:1], kind).state_bytes()
    assert apollo.state_bytes() < 0.6 * held


def checkpoint(rank: int, kind: dict[str, Any]) -> None:
    model = sharded()
    apollo = Apollo(model.parameters(), lr=1e-2, update_proj_gap=3, **kind)
    steps(model, apollo, own_part(rank)[:4])
    weights, state = get_state_dict(model, apollo)
    folder = Path(os.environ["APOLLO_TEST_FOLDER"]) / kind["scale_type"]
    save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    steps(model, apollo, own_part(rank)[4:])

    resumed = sharded()
    second = Apollo(resumed.parameters(), lr=1e-2, update_proj_gap=3, **kind)
    weights, state = get_state_dict(resumed, second)
    load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(resumed, second, model_state_dict=weights, optim_state_dict=state)
    steps(resumed, second, own_part(rank)[4:])
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(whole(one), whole(other))


def work(rank: int, port: int, task: Callable[[int, dict[str, Any]], None]) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    try:
        for kind in KINDS:
            task(rank, kind)
    finally:
        leave()


@pytest.mark.parametrize("task", [replicas, shards, checkpoint])
def test_two_processes_train_as_one(
    task: Callable[[int, dict[str, Any]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APOLLO_TEST_FOLDER", str(tmp_path))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, args=(port, task), nprocs=RANKS)
