"""Gaussian matrices from seeds."""

import math
import subprocess
import sys

import pytest
import torch

from engrain.core.projection import gaussian, mix

CPU = torch.device("cpu")


def test_the_entries_are_independent_gaussians_of_the_variance_asked_for() -> None:
    drawn = gaussian([mix(1), mix(2), mix(3)], 1000, 64, 0.25, CPU).double() * 2
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        bound = 5 * math.sqrt(math.prod(range(1, 2 * power, 2)) / drawn.numel())
        assert abs((drawn**power).mean().item() - moment) < bound
    # Also of one another: the three matrices, neighbours, and the two numbers that come from one word.
    first, second = drawn[0].flatten().chunk(2)
    pairs = [(drawn[0], drawn[1]), (drawn[1], drawn[2]), (first, second), (first[1:], first[:-1])]
    pairs += [(one**2 - 1, other**2 - 1) for one, other in pairs]
    for one, other in pairs:
        assert abs((one * other).mean().item()) < 5 * 2 / math.sqrt(one.numel())


def test_the_tails_are_those_of_a_gaussian() -> None:
    drawn = gaussian([mix(7)], 4000, 1000, 1.0, CPU)
    assert torch.isfinite(drawn).all()
    for bound in (2.0, 3.0, 4.0):
        expected = drawn.numel() * math.erfc(bound / math.sqrt(2))
        assert abs((drawn.abs() > bound).sum().item() - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (7, 1)])
def test_a_matrix_does_not_depend_on_those_drawn_with_it(rows: int, columns: int) -> None:
    together = gaussian([11, 12, 13], rows, columns, 1.0, CPU)
    assert together.shape == (3, rows, columns)
    assert torch.equal(together[1], gaussian([12], rows, columns, 1.0, CPU)[0])


def test_another_seed_is_another_matrix() -> None:
    drawn = gaussian([mix(0, place, epoch) for place in range(8) for epoch in range(8)], 4, 4, 1.0, CPU)
    assert len({tuple(matrix.flatten().tolist()) for matrix in drawn}) == 64


def test_mixing_depends_on_every_word_and_on_their_order() -> None:
    words = [(), (0,), (0, 0), (0, 1), (1, 0), (1,), (2**63,), (2**64 - 1,), (1, 0, 0)]
    assert len({mix(*some) for some in words}) == len(words)
    assert all(0 <= mix(*some) < 2**63 for some in words)


def test_a_seed_means_the_same_in_every_process() -> None:
    code = "from engrain.core.projection import mix; print(mix(1, 2, 3))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": s}
        )
        for s in ("1", "2")
    ]
    assert {int(run.stdout) for run in runs} == {mix(1, 2, 3)}


def test_the_first_numbers_of_a_seed_stay_what_they_are() -> None:
    # A checkpoint of an earlier version resumes with the projections that it was made with.
    assert mix(0, 5) == 8442759383986341383
    torch.testing.assert_close(
        gaussian([3], 1, 4, 1.0, CPU)[0, 0],
        torch.tensor([0.6248495, -0.082145, 0.5401579, -0.2544116]),
        rtol=1e-5,
        atol=1e-6,
    )


def test_neither_the_global_generator_nor_the_default_type_is_touched_or_asked() -> None:
    state = torch.get_rng_state()
    before = gaussian([5], 8, 8, 1.0, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    torch.set_default_dtype(torch.float64)
    try:
        after = gaussian([5], 8, 8, 1.0, CPU)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_rng_state(state)
    assert torch.equal(before, after)
