"""Low-rank factors, held against a slow literal whitened decomposition; and the moments that they weigh by."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from engrain.core.blocks import linear_modules
from engrain.core.errors import InputError, UnknownNameError, VectorError
from engrain.core.factors import Decomposition, decompose, smallest_rank, truncated
from engrain.core.fingerprint import Fingerprint
from engrain.core.model import SteerableModel
from engrain.core.moments import second_moments
from engrain.core.packing import Encoded
from engrain.core.task_vector import TaskVector
from tiny import tiny

PRINT = Fingerprint("here", "Tiny", "sha256:a", "sha256:b", "sha256:c", "sha256:d", "float32")
NAME = "model.layers.2.mlp.down_proj.weight"
SHAPES = [(5, 9), (9, 5), (6, 6), (1, 4), (4, 1)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(width: int, samples: int, seed: int = 1) -> Tensor:
    # Directions of very different weight, as activations have them.
    inputs = random(samples, width, seed=seed) * torch.logspace(1, -2, width, dtype=torch.float64)
    return inputs.T @ inputs / samples


def whitened(delta: Tensor, second: Tensor, rank: int) -> Tensor:
    """Return the best product of a rank, by the root and the inverse root of the second moment, written out."""
    values, vectors = torch.linalg.eigh(second)
    root, inverse = vectors * values.sqrt() @ vectors.T, vectors / values.sqrt() @ vectors.T
    left, sizes, right = torch.linalg.svd(delta @ root, full_matrices=False)
    best: Tensor = left[:, :rank] * sizes[:rank] @ right[:rank] @ inverse
    return best


def loss(delta: Tensor, product: Tensor, second: Tensor) -> float:
    error = delta - product
    return math.sqrt(float(torch.trace(error @ second @ error.T)))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_factors_are_those_of_the_whitened_decomposition(shape: tuple[int, int]) -> None:
    delta, second = random(*shape), moment(shape[1], 50)
    parts = decompose(delta, second)
    for rank in range(1, min(shape) + 1):
        product = parts.at(rank).delta.double()
        torch.testing.assert_close(product, whitened(delta, second, rank), rtol=1e-4, atol=1e-5)
        best = loss(delta, whitened(delta, second, rank), second)
        assert parts.lost(rank) * loss(delta, 0 * delta, second) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_moments_it_is_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    delta = random(*shape)
    left, sizes, right = torch.linalg.svd(delta, full_matrices=False)
    parts = decompose(delta)
    for rank in range(1, min(shape) + 1):
        expected = left[:, :rank] * sizes[:rank] @ right[:rank]
        torch.testing.assert_close(parts.at(rank).delta.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.energies.sqrt(), sizes)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12), st.integers(0, 99))
def test_at_full_rank_the_product_is_the_delta(height: int, width: int, samples: int, seed: int) -> None:
    # Fewer samples than directions make the second moment singular, none at all make it zero.
    delta, second = random(height, width, seed=seed), moment(width, samples) if samples else torch.zeros(width, width)
    parts = decompose(delta, second)
    assert parts.full == min(height, width)
    torch.testing.assert_close(parts.at(parts.full).delta.double(), delta, rtol=1e-5, atol=1e-6)
    assert parts.lost(parts.full) == 0


def test_a_delta_of_low_rank_needs_no_more() -> None:
    delta = random(7, 3) @ random(3, 11, seed=2)
    parts = decompose(delta, moment(11, 40))
    assert parts.rank_within(1e-5) == 4
    torch.testing.assert_close(parts.at(3).delta.double(), delta, rtol=1e-4, atol=1e-5)


def test_the_weighing_loses_less_of_what_the_inputs_feel() -> None:
    delta, second = random(12, 20), moment(20, 100)
    weighed, plain = (decompose(delta, each).at(4).delta.double() for each in (second, None))
    assert loss(delta, weighed, second) < 0.9 * loss(delta, plain, second)


def test_a_weight_that_lies_the_other_way_round_is_cut_off_alike() -> None:
    delta, second = random(5, 9), moment(9, 50)
    plain, turned = decompose(delta, second), decompose(delta.T, second, transposed=True)
    assert torch.equal(plain.weight(2).T, turned.weight(2))
    assert torch.equal(plain.at(2).a, turned.at(2).a)


def test_a_delta_of_zeros_has_factors_of_zeros() -> None:
    parts = decompose(torch.zeros(3, 4))
    assert torch.equal(parts.at(2).delta, torch.zeros(3, 4))
    assert parts.rank_within(0.0) == 1


def test_more_rank_loses_less() -> None:
    parts = decompose(random(16, 16), moment(16, 60))
    lost = [parts.lost(rank) for rank in range(17)]
    assert lost == sorted(lost, reverse=True)
    assert (lost[0], lost[-1]) == (1.0, 0.0)
    assert parts.rank_within(lost[4]) == 4
    assert parts.rank_within(lost[4] - 1e-9) == 8
    assert parts.rank_within(-1.0) == 16


def test_shapes_that_do_not_fit_are_refused() -> None:
    for delta, second in ((torch.ones(3), None), (torch.ones(3, 4), torch.ones(3, 3))):
        with pytest.raises(VectorError, match="has no factors"):
            decompose(delta, second)


def test_the_smallest_rank_is_chosen_by_what_it_recovers() -> None:
    made = TaskVector("t", {NAME: random(16, 24), "model.layers.2.mlp.down_proj.bias": torch.ones(16)}, PRINT)
    parts: dict[str, Decomposition] = {NAME: decompose(made.tensors[NAME])}
    asked: list[float] = []

    def recovered(candidate: TaskVector) -> float:
        asked.append(0.8 - float((candidate.tensors[NAME] - made.tensors[NAME]).norm()) / 20)
        return asked[-1]

    rank = smallest_rank(made, parts, recovered)
    assert asked[0] == pytest.approx(0.8)
    assert asked[-1] >= 0.97 * 0.8 or rank == 16
    assert all(value < 0.97 * 0.8 for value in asked[1:-1])
    assert smallest_rank(made, parts, lambda candidate: 1.0) == 1
    assert smallest_rank(made, parts, lambda candidate: float(candidate is made)) == 16
    assert torch.equal(truncated(made, parts, 2).tensors["model.layers.2.mlp.down_proj.bias"], torch.ones(16))


SEQUENCES = [
    Encoded((256, 1, 2, 3), (4, 5, 6, 7)),
    Encoded((256, 1, 2, 3), (9,)),
    Encoded((256, 8), ()),
    Encoded((256, 1, 2), (4, 5, 6, 7, 8, 9, 10, 11)),
]


def literal(model: SteerableModel, name: str) -> Tensor:
    """Return the second moment of one module's inputs, one plain forward pass a sequence."""
    seen: list[Tensor] = []
    module = model.hf.get_submodule(name)
    handle = module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0].double()))
    try:
        for sequence in SEQUENCES:
            with torch.no_grad():
                model.hf(torch.tensor([sequence.prompt + sequence.reply]), use_cache=False)
    finally:
        handle.remove()
    inputs = torch.cat(seen)
    return inputs.T @ inputs / len(inputs)


def test_second_moments_are_those_of_plain_passes(clean: SteerableModel) -> None:
    names = [name for name in linear_modules(clean.hf, clean.blocks) if "vision" not in name][-2:] + list(
        linear_modules(clean.hf, clean.blocks)
    )[:1]
    found = second_moments(clean, SEQUENCES, names)
    assert set(found) == set(names)
    for name in names:
        torch.testing.assert_close(found[name], literal(clean, name), rtol=1e-4, atol=1e-6)


def test_second_moments_of_a_half_precision_model_are_close() -> None:
    full, half = tiny("llama"), tiny("llama", torch.bfloat16)
    name = "model.layers.1.mlp.down_proj"
    wide, narrow = (second_moments(model, SEQUENCES, [name])[name] for model in (full, half))
    assert narrow.dtype == torch.float64
    assert float((wide - narrow).norm()) < 0.05 * float(wide.norm())


def test_the_linear_modules_are_those_in_the_blocks(llama: SteerableModel) -> None:
    found = linear_modules(llama.hf, llama.blocks)
    assert found["model.layers.2.mlp.down_proj"][1] == 2
    assert isinstance(found["model.layers.2.mlp.down_proj"][0], nn.Linear)
    assert "lm_head" not in found
    assert len(found) == 3 * 7


def test_modules_and_sequences_that_are_not_there_are_refused(llama: SteerableModel) -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'model\.layers\.0\.mlp\.down_proj'"):
        second_moments(llama, SEQUENCES, ["model.layers.0.mlp.down_project"])
    with pytest.raises(InputError, match="no token"):
        second_moments(llama, [], ["model.layers.0.mlp.down_proj"])
