"""A forward pass over a flattened batch, against what transformers would do with each request alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from combinations import LAYERS, WIDTH, active, combination
from engrain.core.composition import TokenLayout, compose
from engrain.plugins.vllm.bank import Bank, Scheduled
from engrain.plugins.vllm.combination import Combination

CPU = torch.device("cpu")
KINDS = [
    None,
    combination(active(1, 2.0)),
    combination(active(2, -1.0, "generated")),
    combination(active(1, 1.0), active(3, 0.5, "prompt"), active(4, 2.0, "from:3")),
    combination(active(5, 1.0, operation="ablate"), active(6, 0.3, operation="clamp")),
    combination(active(7, 1.0, "generated", "clamp"), active(8, 2.0, keep=True)),
]
requests = st.lists(
    st.tuples(st.integers(0, len(KINDS) - 1), st.integers(0, 6), st.integers(1, 7), st.integers(1, 8)),
    min_size=1,
    max_size=8,
)


def scheduled(kind: Combination | None, computed: int, tokens: int, prompt: int) -> Scheduled:
    return Scheduled(None if kind is None else kind.wire, computed, tokens, prompt)


def alone(kind: Combination | None, hidden: Tensor, computed: int, prompt: int, layer: int) -> Tensor:
    composition = None if kind is None else compose([list(kind.actives.values())], layer)
    if composition is None:
        return hidden
    index = torch.arange(computed, computed + len(hidden))[None]
    return composition.apply(hidden[None], TokenLayout(index, index >= prompt))[0]


@given(requests, st.sampled_from(LAYERS), st.booleans(), st.integers(0, 3))
def test_a_batch_is_its_requests_one_by_one(
    batch: list[tuple[int, int, int, int]], layer: int, apart: bool, padding: int
) -> None:
    bank = Bank(8, LAYERS, CPU)
    total = sum(tokens for _, _, tokens, _ in batch)
    stream = torch.randn(total + padding, WIDTH, generator=torch.Generator().manual_seed(total))
    residual = torch.randn(total + padding, WIDTH, generator=torch.Generator().manual_seed(7)) if apart else None
    hidden = stream.clone() if residual is None else stream - residual
    before = hidden.clone()
    plan = bank.plan([scheduled(KINDS[kind], *rest) for kind, *rest in batch])
    if plan is not None:
        plan.apply(layer, hidden, residual)
    start = 0
    for kind, computed, tokens, prompt in batch:
        own = slice(start, start + tokens)
        if KINDS[kind] is None:
            assert torch.equal(hidden[own], before[own])
        else:
            wanted = alone(KINDS[kind], stream[own], computed, prompt, layer)
            found = hidden[own] if residual is None else hidden[own] + residual[own]
            assert torch.allclose(found, wanted, atol=1e-5)
        start += tokens
    assert torch.equal(hidden[total:], before[total:])


def test_a_layer_at_which_nothing_acts_is_left_alone() -> None:
    plan = Bank(4, LAYERS, CPU).plan([scheduled(KINDS[1], 0, 2, 2)])
    assert plan is not None
    hidden = torch.ones(2, WIDTH)
    plan.apply(1, hidden, None)
    assert torch.equal(hidden, torch.ones(2, WIDTH))


def test_an_unsteered_batch_has_no_plan() -> None:
    assert Bank(4, LAYERS, CPU).plan([scheduled(None, 0, 5, 5), scheduled(None, 3, 1, 2)]) is None


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), min_size=1, max_size=20))
def test_there_are_never_more_slots_than_requests_at_once(steps: list[list[int]]) -> None:
    bank = Bank(4, LAYERS, CPU)
    for step in steps:
        plan = bank.plan([scheduled(combination(active(1, float(strength))), 0, 1, 1) for strength in step])
        assert plan is not None
        assert len(bank) <= 4
        # What had to give way and came again is the same.
        hidden = torch.zeros(len(step), WIDTH)
        plan.apply(0, hidden, None)
        assert torch.allclose(hidden, torch.stack([active(1).vector.at(0) * strength for strength in step]))


def test_half_precision_is_added_to_as_transformers_adds() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        hidden = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
        kept = hidden.clone()
        plan = Bank(4, LAYERS, CPU).plan([scheduled(KINDS[1], 0, 3, 3)])
        assert plan is not None
        plan.apply(0, hidden, None)
        assert torch.equal(hidden, alone(KINDS[1], kept, 0, 3, 0))
