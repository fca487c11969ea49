"""The arithmetic of composed vectors, against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engrain.core.composition import Active, TokenLayout, compose, stack
from engrain.core.vector import SteeringVector


def make(direction: Tensor, strength: float, operation: str = "add", **more: object) -> Active:
    return Active(SteeringVector({0: direction}, "v"), (0,), strength, operation=operation, **more)  # type: ignore[arg-type]


def apply(hidden: Tensor, *actives: Active, layout: TokenLayout | None = None) -> Tensor:
    composition = compose([list(actives)], 0)
    return hidden if composition is None else composition.apply(hidden, layout)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_nothing_active_is_no_composition() -> None:
    assert compose([[], []], 0) is None
    assert compose([[make(randn(4), 0.0)]], 0) is None
    assert compose([[make(randn(4), 1.0)]], 1) is None


def test_the_input_is_never_written_to() -> None:
    hidden = randn(2, 3, 8)
    kept = hidden.clone()
    apply(hidden, make(randn(8), 2.0), make(randn(8, seed=1), 1.0, "ablate"), make(randn(8), 1.0, preserve_norm=True))
    assert torch.equal(hidden, kept)


def test_ablating_takes_the_direction_out_and_nothing_else() -> None:
    hidden, direction = randn(2, 3, 8), randn(8, seed=1)
    found = apply(hidden, make(direction, 1.0, "ablate"))
    unit = direction / direction.norm()
    assert torch.allclose(found @ unit, torch.zeros(2, 3), atol=1e-6)
    assert torch.allclose(found, hidden - (hidden @ unit)[..., None] * unit, atol=1e-6)
    half = apply(hidden, make(direction, 0.5, "ablate"))
    assert torch.allclose(half, (hidden + found) / 2, atol=1e-6)


def test_ablating_a_span_takes_all_of_it_out_although_its_directions_are_not_orthogonal() -> None:
    hidden, one, two = randn(2, 3, 8), randn(8, seed=1), randn(8, seed=1) + 0.3 * randn(8, seed=2)
    found = apply(hidden, make(one, 1.0, "ablate"), make(two, 1.0, "ablate"))
    assert torch.allclose(found @ one, torch.zeros(2, 3), atol=1e-4)
    assert torch.allclose(found @ two, torch.zeros(2, 3), atol=1e-4)


def test_ablating_the_same_direction_twice_is_ablating_it_once() -> None:
    hidden, one = randn(2, 3, 8), randn(8, seed=1)
    twice = apply(hidden, make(one, 1.0, "ablate"), make(one * 3, 1.0, "ablate"))
    assert torch.allclose(twice, apply(hidden, make(one, 1.0, "ablate")), atol=1e-5)


def test_clamping_sets_the_component_to_strength_times_length() -> None:
    hidden, direction = randn(2, 3, 8), randn(8, seed=1)
    found = apply(hidden, make(direction, 1.7, "clamp"))
    unit = direction / direction.norm()
    assert torch.allclose(found @ unit, (1.7 * direction.norm()).expand(2, 3), atol=1e-5)
    away = torch.eye(8) - torch.outer(unit, unit)
    assert torch.allclose(found @ away, hidden @ away, atol=1e-5)


def test_clamping_twice_is_clamping_once() -> None:
    hidden, one = randn(2, 3, 8), make(randn(8, seed=1), 1.7, "clamp")
    once = apply(hidden, one)
    assert torch.allclose(apply(once, one), once, atol=1e-5)


def test_preserving_the_norm_turns_and_does_not_stretch() -> None:
    hidden, one = randn(2, 3, 8), randn(8, seed=1)
    found = apply(hidden, make(one, 2.0, preserve_norm=True))
    assert torch.allclose(found.norm(dim=-1), hidden.norm(dim=-1), atol=1e-5)
    free = apply(hidden, make(one, 2.0))
    assert torch.allclose(torch.cosine_similarity(found, free, dim=-1), torch.ones(2, 3), atol=1e-6)


def test_positions_that_are_not_meant_stay_to_the_bit_with_the_norm_preserved_too() -> None:
    hidden = randn(1, 6, 8)
    index = torch.arange(6)[None]
    one = make(randn(8, seed=1), 2.0, positions="from:3", preserve_norm=True)
    found = apply(hidden, one, layout=TokenLayout(index, index >= 4))
    assert torch.equal(found[0, :3], hidden[0, :3])
    assert not torch.allclose(found[0, 3:], hidden[0, 3:], atol=1e-3)


ACTIVES = st.lists(
    st.tuples(st.sampled_from(["add", "ablate", "clamp"]), st.floats(-2, 2), st.integers(0, 50)), min_size=1, max_size=5
)


@given(chosen=ACTIVES, order=st.randoms())
def test_the_order_is_immaterial(chosen: list[tuple[str, float, int]], order: object) -> None:
    actives = [make(randn(8, seed=seed), strength, operation) for operation, strength, seed in chosen]
    shuffled = list(actives)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    hidden = randn(2, 3, 8, seed=99)
    assert torch.allclose(apply(hidden, *actives), apply(hidden, *shuffled), atol=1e-3)


def test_each_row_gets_its_own_set() -> None:
    hidden = randn(3, 2, 8)
    one, two = make(randn(8, seed=1), 1.0), make(randn(8, seed=2), 1.0, "ablate")
    composition = compose([[one], [], [one, two]], 0)
    assert composition is not None
    found = composition.apply(hidden, None)
    assert torch.allclose(found[0], apply(hidden, one)[0], atol=1e-6)
    assert torch.equal(found[1], hidden[1])
    assert torch.allclose(found[2], apply(hidden, one, two)[2], atol=1e-6)


def test_repeated_rows_are_spread_in_place() -> None:
    hidden = randn(2, 2, 8).repeat_interleave(3, dim=0)
    composition = compose([[make(randn(8, seed=1), 1.0)], [make(randn(8, seed=2), 1.0, "ablate")]], 0)
    assert composition is not None
    expected = composition.apply(hidden[::3], None).repeat_interleave(3, dim=0)
    assert torch.equal(composition.spread(6).apply(hidden, None), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_of_the_hidden_state_is_kept(dtype: torch.dtype) -> None:
    hidden = randn(1, 2, 8).to(dtype)
    found = apply(hidden, make(randn(8), 1.0), make(randn(8, seed=1), 1.0, "clamp", preserve_norm=True))
    assert found.dtype == dtype


def test_rows_stacked_are_rows_composed_together_and_may_be_selected_in_any_order() -> None:
    rows = [
        [make(randn(8, seed=1), 2.0), make(randn(8, seed=2), 1.0, "ablate", positions="generated")],
        [],
        [make(randn(8, seed=3), 0.5, "clamp"), make(randn(8, seed=4), 1.0, "clamp")],
        [make(randn(8, seed=5), 1.0, positions="prompt", preserve_norm=True)],
    ]
    hidden = randn(len(rows), 3, 8)
    index = torch.arange(3).expand(len(rows), 3)
    layout = TokenLayout(index, index >= 2)
    together = stack([compose([row], 0) for row in rows])
    assert together is not None
    for place, row in enumerate(rows):
        alone = apply(hidden[place : place + 1], *row, layout=TokenLayout(index[:1], index[:1] >= 2))
        assert torch.allclose(together.apply(hidden, layout)[place], alone[0], atol=1e-6)
    order = torch.tensor([3, 3, 0, 1, 2])
    chosen = together.select(order).apply(hidden[order], TokenLayout(index[order], index[order] >= 2))
    assert torch.equal(chosen, together.apply(hidden, layout)[order])
