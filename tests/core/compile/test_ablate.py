"""A direction that no matrix writes is in no hidden state."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engrain.core.compile.ablate import compile_ablate
from engrain.core.compile.compiler import Order
from engrain.core.compile.target import WRITERS, choose_matrices, oriented
from engrain.core.composition import Active
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.vector import SteeringVector
from tiny import byte_tokenizer, random_model

PRE_NORM = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox")
POST_NORM = ("gemma2", "gemma3_text", "olmo2")
UNIT = nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(3)), dim=0)


def fresh(family: str, dtype: torch.dtype = torch.float32, **changes: object) -> SteerableModel:
    hf = random_model(family, dtype, **changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in hf.parameters():
            # Norms that scale each coordinate alike, and biases of 0, would hide what these do to a direction.
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(dtype) * 0.3)
    return SteerableModel(hf, byte_tokenizer(), f"tiny {family}")


def active(layers: tuple[int, ...] = (0, 1, 2), strength: float = 1.0) -> Active:
    return Active(SteeringVector(dict.fromkeys(layers, 2.5 * UNIT), "v"), layers, strength, operation="ablate")


def quiet(what: str, done: int) -> None:
    pass


def logits(model: SteerableModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.hf(torch.tensor([model.render("Tell me.")]), use_cache=False).logits
    return found


@contextmanager
def projected(model: SteerableModel, strength: float) -> Iterator[None]:
    """The literal reference: hooks that take the direction out of the output of everything that writes."""
    embeddings = [module for module in model.decoder.modules() if isinstance(module, nn.Embedding)]

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output - strength * (output @ UNIT)[..., None] * UNIT

    with ExitStack() as stack:
        for module in (*embeddings, *choose_matrices(model, WRITERS, range(3)).values()):
            stack.callback(module.register_forward_hook(hook).remove)
        yield


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("family", PRE_NORM)
def test_the_compiled_model_is_one_whose_every_write_is_projected(family: str, strength: float) -> None:
    model = fresh(family, tie_word_embeddings=False)
    base = logits(model)
    made = compile_ablate(model, Order("v", (active(strength=strength),), "faithful"), quiet)
    assert torch.equal(logits(model), base)
    with projected(model, strength):
        wanted = logits(model)
    with model.compiled(made):
        torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("family", PRE_NORM)
def test_the_direction_is_in_no_hidden_state(family: str) -> None:
    model = fresh(family)
    before = torch.stack([states[1:] @ UNIT for states in model.hidden_states(["Tell me."])])
    with model.compiled(compile_ablate(model, Order("v", (active(),), "faithful"), quiet)):
        (states,) = model.hidden_states(["Tell me."])
    assert float(before.abs().max()) > 0.1
    assert float((states @ UNIT).abs().max()) <= 1e-5 * float(states.norm(dim=-1).max())


@pytest.mark.parametrize("family", PRE_NORM)
def test_some_blocks_alone_leave_the_others_and_the_embeddings(family: str) -> None:
    model = fresh(family)
    made = compile_ablate(model, Order("v", (active((1,)),), "faithful"), quiet)
    assert made.layers == (1,)
    matrices = choose_matrices(model, WRITERS, [1])
    assert {f"{name}.weight" for name in matrices} <= set(made.tensors)
    assert all(".1." in name for name in made.tensors)
    with model.compiled(made):
        for module in matrices.values():
            matrix = oriented(module, module.weight.detach())
            assert float((UNIT @ matrix).norm()) <= 1e-5 * float(matrix.norm())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_half_precision_is_compiled_too(family: str) -> None:
    model = fresh(family, torch.bfloat16)
    with model.compiled(compile_ablate(model, Order("v", (active(),), "faithful"), quiet)):
        (states,) = model.hidden_states(["Tell me."])
    assert float((states.float() @ UNIT).abs().max()) <= 0.02 * float(states.float().norm(dim=-1).max())


@pytest.mark.parametrize("family", POST_NORM)
def test_a_norm_behind_the_writers_is_found_and_refused(family: str) -> None:
    model = fresh(family)
    with pytest.raises(InputError, match="there is a norm behind them"):
        compile_ablate(model, Order("v", (active(),), "faithful"), quiet)
    assert not model.edits.applied


def test_experts_two_directions_and_other_operations_are_refused() -> None:
    with pytest.raises(InputError, match="experts have one each"):
        compile_ablate(fresh("qwen3_moe"), Order("v", (active(),), "faithful"), quiet)
    with pytest.raises(InputError, match="two directions"):
        compile_ablate(fresh("llama"), Order("v", (active(), active((1,))), "faithful"), quiet)
    add = Active(SteeringVector({1: UNIT}, "v"), (1,), 1.0)
    with pytest.raises(InputError, match="its operation is 'add', this backend compiles 'ablate'"):
        compile_ablate(fresh("llama"), Order("v", (add,), "faithful"), quiet)
    with pytest.raises(InputError, match="spec 'faithful'"):
        compile_ablate(fresh("llama"), Order("v", (active(),), "selective"), quiet)
