"""A delta in training is the task vector applied."""

import pytest
import torch

from compile_order import fresh
from engrain.core.compile.delta import TrainableDelta
from engrain.core.compile.target import choose_matrices
from engrain.core.model import SteerableModel

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def drawn(model: SteerableModel) -> TrainableDelta:
    delta = TrainableDelta(model, choose_matrices(model, "all-linear", [1, 2]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in delta.parameters.values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return delta


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "gemma2", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_task_vector_applied_to_the_bit(family: str, dtype: torch.dtype) -> None:
    model = fresh(family, dtype)
    delta = drawn(model)
    with torch.no_grad():
        base = model.hf(input_ids=TOKENS).logits
        with delta.active():
            found = model.hf(input_ids=TOKENS).logits
        with model.compiled(delta.task_vector("v", {})):
            assert torch.equal(model.hf(input_ids=TOKENS).logits, found)
        assert not torch.equal(base, found)
        assert torch.equal(model.hf(input_ids=TOKENS).logits, base)
    assert not any("forward" in vars(module) for module in model.hf.modules())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_its_gradient_is_that_of_the_weights_themselves(family: str) -> None:
    model = fresh(family)
    model.hf.requires_grad_(False)
    delta = drawn(model)
    with delta.active():
        model.hf(input_ids=TOKENS).logits.square().mean().backward()
    with model.compiled(delta.task_vector("v", {})):
        model.hf.requires_grad_(True)
        model.hf(input_ids=TOKENS).logits.square().mean().backward()
    for name, parameter in delta.parameters.items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, model.hf.get_parameter(name).grad)


def test_a_step_that_a_half_precision_weight_would_swallow_is_kept() -> None:
    model = fresh(dtype=torch.bfloat16)
    delta = drawn(model)
    name, parameter = next(iter(delta.parameters.items()))
    with torch.no_grad():
        parameter.fill_(1e-6)
    assert parameter.dtype == torch.float32
    assert torch.equal(delta.task_vector("v", {}).tensors[name], torch.full_like(parameter, 1e-6).detach())
