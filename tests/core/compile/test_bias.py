"""A vector as a bias is the vector, or it is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engrain.core.compile.bias import compile_bias
from engrain.core.compile.compiler import Order
from engrain.core.composition import Active, activate
from engrain.core.errors import InputError, UnknownNameError
from engrain.core.model import SteerableModel
from engrain.core.vector import SteeringVector
from tiny import byte_tokenizer, random_model

PRE_NORM = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox")
POST_NORM = ("gemma2", "gemma3_text", "gemma3", "olmo2")


def fresh(family: str, dtype: torch.dtype = torch.float32) -> SteerableModel:
    return SteerableModel(random_model(family, dtype), byte_tokenizer(), f"tiny {family}")


def active(layers: tuple[int, ...] = (1,), seed: int = 3, **how: object) -> Active:
    generator = torch.Generator().manual_seed(seed)
    vector = SteeringVector({layer: torch.randn(32, generator=generator) for layer in layers}, "v")
    layer = "all" if len(layers) > 1 else layers[0]
    return activate(vector, layer, 1.5, **how)  # type: ignore[arg-type]


def logits(model: SteerableModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.hf(torch.tensor([model.render("Tell me.")]), use_cache=False).logits
    return found


def quiet(what: str, done: int) -> None:
    pass


@pytest.mark.parametrize("family", PRE_NORM)
def test_the_compiled_model_is_the_steered_one_and_the_reverted_one_the_base(family: str) -> None:
    model = fresh(family)
    several = (active(), active((0, 2), seed=4), active(seed=5))
    base = logits(model)
    made = compile_bias(model, Order("v", several, "faithful"), quiet)
    assert torch.equal(logits(model), base)
    with model.steer(*several):
        steered = logits(model)
    with model.compiled(made):
        torch.testing.assert_close(logits(model), steered, rtol=1e-5, atol=1e-5 * float(steered.abs().max()))
    assert torch.equal(logits(model), base)
    assert sorted(made.layers) == [0, 1, 2]
    assert all(name.endswith(".bias") for name in made.tensors)


@pytest.mark.parametrize("family", PRE_NORM)
def test_half_precision_is_compiled_too(family: str) -> None:
    model = fresh(family, torch.bfloat16)
    made = compile_bias(model, Order("v", (active(),), "faithful"), quiet)
    with model.steer(active()):
        steered = logits(model)
    with model.compiled(made):
        assert float((logits(model) - steered).norm()) <= 0.03 * float(steered.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", POST_NORM)
def test_a_norm_behind_the_mlp_is_found_and_refused(family: str, dtype: torch.dtype) -> None:
    model = fresh(family, dtype)
    base = logits(model)
    with pytest.raises(InputError, match="there is a norm behind it"):
        compile_bias(model, Order("v", (active(),), "faithful"), quiet)
    assert torch.equal(logits(model), base)
    assert not model.edits.applied


def test_experts_are_refused() -> None:
    with pytest.raises(InputError, match="experts have one each"):
        compile_bias(fresh("qwen3_moe"), Order("v", (active(),), "faithful"), quiet)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (lambda: Order("v", (active(positions="generated"),), "faithful"), "acts at positions 'generated'"),
        (lambda: Order("v", (active(operation="ablate"),), "faithful"), "its operation is 'ablate'"),
        (lambda: Order("v", (active(operation="clamp"),), "faithful"), "its operation is 'clamp'"),
        (lambda: Order("v", (active(preserve_norm=True),), "faithful"), "keeps the length"),
        (lambda: Order("v", (active(),), "selective"), "spec 'faithful'"),
        (lambda: Order("v", (active(),), "faithful", target="o_proj"), "leave target and layers out"),
        (lambda: Order("v", (), "faithful"), "nothing to compile"),
        (lambda: Order("No Name", (active(),), "faithful"), "cannot name a task vector"),
    ],
)
def test_what_no_bias_does_is_refused_with_the_reason(order: Callable[[], Order], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compile_bias(fresh("llama"), order(), quiet)


def test_an_unknown_spec_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'faithful'"):
        Order("v", (active(),), "faithfull")  # type: ignore[arg-type]


def test_only_the_base_is_compiled() -> None:
    model = fresh("llama")
    order = Order("v", (active(),), "faithful")
    made = compile_bias(model, order, quiet)
    with model.compiled(made), pytest.raises(InputError, match="'v' is on"):
        compile_bias(model, order, quiet)
    with model.steer(active()), pytest.raises(InputError, match="'v' is on"):
        compile_bias(model, order, quiet)


def test_a_task_vector_says_how_it_was_made() -> None:
    made = compile_bias(fresh("llama"), Order("v", (active(),), "faithful"), quiet)
    assert made.origin == {
        "backend": "bias",
        "spec": "faithful",
        "vectors": [
            {
                "name": "v",
                "layers": [1],
                "strength": 1.5,
                "positions": "all",
                "operation": "add",
                "preserve_norm": False,
            }
        ],
    }
