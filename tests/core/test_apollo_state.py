"""Apollo's checkpoints, and what it refuses."""

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from descent import KINDS, drive, gradients, parameter
from engrain.core.apollo import Apollo
from engrain.core.errors import OptimizerError

SHAPES: list[tuple[int, ...]] = [(24, 10), (10, 24), (3, 8, 6), (7,), (24, 10)]


def model(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [parameter(*shape, seed=place, dtype=dtype) for place, shape in enumerate(SHAPES)]


def groups(weights: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": weights[:4]}, {"params": weights[4:], "rank": None}]


def rows(steps: int) -> list[tuple[Tensor, ...]]:
    return list(zip(*(gradients(shape, steps) for shape in SHAPES), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS, ids=["channel", "tensor"])
def test_resuming_is_the_same_to_the_bit_also_over_a_refresh(kind: dict[str, Any], dtype: torch.dtype) -> None:
    through, stopped = model(dtype), model(dtype)
    found = rows(12)
    # Projections are drawn anew at steps 5 and 10; the stop is at 7.
    settings = {"lr": 1e-2, "update_proj_gap": 5, **kind}
    drive(Apollo(groups(through), **settings), through, found)
    first = Apollo(groups(stopped), **settings)
    drive(first, stopped, found[:7])
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    torch.manual_seed(99)
    # Settings other than those saved: the saved ones come back too.
    second = Apollo(groups(stopped), lr=9.0, rank=2, seed=5)
    second.load_state_dict(torch.load(saved, weights_only=True))
    drive(second, stopped, found[7:])
    assert all(torch.equal(one, other) for one, other in zip(through, stopped, strict=True))


def test_a_state_is_made_of_tensors_and_whole_numbers() -> None:
    weights = model()
    apollo = Apollo(groups(weights), rank=4)
    drive(apollo, weights, rows(1))
    state = apollo.state_dict()
    assert {type(value) for own in state["state"].values() for value in own.values()} == {Tensor, int}
    assert set(state["state"][0]) == {"step", "seed", "exp_avg", "exp_avg_sq", "norm"}
    plain = {type(value) for group in state["param_groups"] for value in group.values()}
    assert plain <= {int, float, str, list, tuple, type(None)}


def test_a_loaded_state_is_nobody_elses() -> None:
    weights, others = model(), model()
    apollo, second = Apollo(weights, rank=4), Apollo(others, rank=4)
    drive(apollo, weights, rows(2))
    second.load_state_dict(apollo.state_dict())
    before = apollo.state[weights[0]]["exp_avg"].clone()
    drive(second, others, rows(1))
    assert torch.equal(apollo.state[weights[0]]["exp_avg"], before)


def test_a_state_of_another_optimizer_is_refused() -> None:
    weights = model()
    adamw = torch.optim.AdamW(weights)
    drive(adamw, weights, rows(1))
    apollo = Apollo(weights, rank=4)
    saved = apollo.state_dict() | {"state": adamw.state_dict()["state"]}
    with pytest.raises(
        OptimizerError, match=r"Parameter 0 of its group, of shape \[24, 10\], loads a state of .*another opt"
    ):
        apollo.load_state_dict(saved)
    with pytest.raises(OptimizerError, match="Loaded group 0 of Apollo has no 'rank'"):
        apollo.load_state_dict(adamw.state_dict())


def _rank(state: dict[str, Any]) -> None:
    state["param_groups"][0]["rank"] = 3


def _moment(state: dict[str, Any]) -> None:
    state["state"][3]["exp_avg"] = torch.zeros(8)


def _norm(state: dict[str, Any]) -> None:
    state["state"][2]["norm"] = 1.0


def _step(state: dict[str, Any]) -> None:
    state["state"][0]["step"] = -1


def _seed(state: dict[str, Any]) -> None:
    state["state"][0]["seed"] = "7"


def _rate(state: dict[str, Any]) -> None:
    state["param_groups"][0]["lr"] = math.nan


@pytest.mark.parametrize("spoil", [_rank, _moment, _norm, _step, _seed, _rate])
def test_a_spoiled_state_is_refused_and_nothing_is_loaded(spoil: Callable[[dict[str, Any]], None]) -> None:
    weights = model()
    apollo = Apollo(weights, rank=4)
    drive(apollo, weights, rows(2))
    saved = apollo.state_dict()
    saved = {
        "state": {key: dict(value) for key, value in saved["state"].items()},
        "param_groups": [dict(group) for group in saved["param_groups"]],
    }
    spoil(saved)
    fresh = Apollo(weights, rank=4)
    with pytest.raises(OptimizerError):
        fresh.load_state_dict(saved)
    assert not fresh.state
    assert fresh.param_groups[0]["lr"] == 1e-3
    assert fresh.param_groups[0]["rank"] == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", math.nan),
        ("lr", -1e-3),
        ("lr", math.inf),
        ("lr", "1e-3"),
        ("rank", 0),
        ("rank", 2.0),
        ("rank", True),
        ("scale_type", "row"),
        ("scale", 0.0),
        ("scale", math.nan),
        ("update_proj_gap", 0),
        ("norm_growth", 0.99),
        ("norm_growth", math.nan),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("betas", (math.nan, 0.9)),
        ("eps", -1e-8),
        ("weight_decay", math.inf),
        ("seed", -1),
    ],
)
def test_a_setting_out_of_its_range_is_refused(name: str, value: object) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(OptimizerError, match=f"Group 0 of Apollo has {name}=.*; it must be "):
        Apollo([parameter(4, 4)], **settings)
    apollo = Apollo([parameter(4, 4)])
    with pytest.raises(OptimizerError, match=f"Group 1 of Apollo has {name}=.*; it must be "):
        apollo.add_param_group({"params": [parameter(4, 4)], **settings})
    assert len(apollo.param_groups) == 1


def test_a_complex_parameter_is_refused() -> None:
    apollo = Apollo([parameter(4, 4)])
    with pytest.raises(OptimizerError, match=r"Parameter 0 of its group, of shape \[3\], is torch.complex64"):
        apollo.add_param_group({"params": [nn.Parameter(torch.zeros(3, dtype=torch.complex64))]})
    assert len(apollo.param_groups) == 1


def test_a_sparse_gradient_is_refused_by_name_before_anything_is_changed() -> None:
    words, head = nn.Embedding(5, 4, sparse=True), nn.Linear(4, 4)
    apollo = Apollo([("head.weight", head.weight), ("words.weight", words.weight)], rank=2)
    before = head.weight.clone()
    head(words(torch.tensor([1, 3]))).sum().backward()
    with pytest.raises(
        OptimizerError, match=r"Parameter 'words\.weight' has a torch\.sparse_coo gradient; .* sparse=False"
    ):
        apollo.step()
    assert torch.equal(head.weight, before)
    assert not apollo.state
