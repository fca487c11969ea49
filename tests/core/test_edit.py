"""Task vectors on a model's weights: laws on every family, in both precisions."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from engrain.core.composition import activate
from engrain.core.edit import WeightEdits
from engrain.core.errors import (
    FingerprintError,
    ModelError,
    StrengthError,
    UnknownNameError,
    VectorError,
)
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector
from engrain.core.vector import SteeringVector
from tiny import FAMILIES, byte_tokenizer, random_model

DTYPES = (torch.float32, torch.bfloat16)
# Their MLP's output goes into the residual stream as it is, so that its bias is added to the block's output.
PRE_NORM = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox")


def fresh(family: str = "llama", dtype: torch.dtype = torch.float32, **changes: object) -> SteerableModel:
    return SteerableModel(random_model(family, dtype, **changes), byte_tokenizer(), f"tiny {family}")


@pytest.fixture(params=[(family, dtype) for family in FAMILIES for dtype in DTYPES], ids=str)
def model(request: pytest.FixtureRequest) -> SteerableModel:
    return fresh(*request.param)


@pytest.fixture
def unchanged(model: SteerableModel) -> Iterator[SteerableModel]:
    """A model, checked afterwards to have the weights, names and storage that it had before."""
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.hf.state_dict().items()}
    yield model
    after = model.hf.state_dict()
    assert list(after) == list(before)
    for name, (place, tensor) in before.items():
        assert after[name].data_ptr() == place, name
        assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name


def last_weights(model: SteerableModel) -> list[str]:
    """Return the names of the matrices of block 1."""
    inside = f"{block_path(model, 1)}."
    return [name for name, weight in model.hf.named_parameters() if name.startswith(inside) and weight.dim() > 1]


def block_path(model: SteerableModel, layer: int) -> str:
    return str(next(name for name, module in model.hf.named_modules() if module is model.blocks[layer]))


def delta(model: SteerableModel, names: list[str], seed: int = 0, size: float = 0.1, name: str = "a") -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    shapes = {key: value.shape for key, value in model.hf.named_parameters()}
    tensors = {key: torch.randn(shapes[key], generator=generator) * size for key in names}
    return TaskVector(name, tensors, model.fingerprint)


def logits(model: SteerableModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.hf(torch.tensor([model.render("Tell me.")]), use_cache=False).logits
    return found


def test_a_touched_weight_is_the_sum_in_float32_rounded_once(unchanged: SteerableModel) -> None:
    names = last_weights(unchanged)
    parameters = dict(unchanged.hf.named_parameters())
    base = {name: parameters[name].detach().clone() for name in names}
    one, other = delta(unchanged, names, 1, name="a"), delta(unchanged, names, 2, name="b")
    unchanged.apply(one, 0.5)
    unchanged.apply(other)
    for name in names:
        wide = base[name].float() + (0.5 * one.tensors[name] + other.tensors[name])
        assert torch.equal(parameters[name], wide.to(base[name].dtype))
    assert list(unchanged.edits.applied) == ["a", "b"]
    unchanged.revert()
    assert unchanged.edits.applied == {}


def test_the_order_of_task_vectors_changes_nothing(unchanged: SteerableModel) -> None:
    names = last_weights(unchanged)
    three = [delta(unchanged, names, seed, name=f"t{seed}") for seed in range(3)]
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        for place in order:
            unchanged.apply(three[place], 0.3 * (place + 1))
        found.append({name: dict(unchanged.hf.named_parameters())[name].detach().clone() for name in names})
        unchanged.revert()
    assert all(torch.equal(found[0][name], found[1][name]) for name in names)


def test_a_sum_is_what_its_parts_are_together(unchanged: SteerableModel) -> None:
    names = last_weights(unchanged)
    one, other = delta(unchanged, names[:2], 1, name="a"), delta(unchanged, names[1:], 2, name="b")
    with unchanged.compiled(one), unchanged.compiled(other):
        together = logits(unchanged)
    with unchanged.compiled(one + other):
        assert torch.equal(logits(unchanged), together)


def test_applying_again_replaces_the_scale(unchanged: SteerableModel) -> None:
    change = delta(unchanged, last_weights(unchanged), size=1.0)
    unchanged.apply(change, 0.7)
    once = logits(unchanged)
    unchanged.apply(change, -2.0)
    unchanged.apply(change, 0.7)
    assert torch.equal(logits(unchanged), once)
    unchanged.apply(change, 0.0)
    unchanged.revert("a")


def test_one_of_several_can_be_taken_off(unchanged: SteerableModel) -> None:
    names = last_weights(unchanged)
    one, other = delta(unchanged, names, 1, name="a"), delta(unchanged, names[:1], 2, name="b")
    with unchanged.compiled(one):
        alone = logits(unchanged)
    unchanged.apply(one)
    unchanged.apply(other)
    unchanged.revert("b")
    assert torch.equal(logits(unchanged), alone)
    with pytest.raises(UnknownNameError, match="No task vector in use called 'b'"):
        unchanged.revert("b")
    unchanged.revert()


def test_the_weights_are_the_bases_after_an_error_inside(unchanged: SteerableModel) -> None:
    before = logits(unchanged)
    change = delta(unchanged, last_weights(unchanged), size=1.0)
    with unchanged.compiled(change):
        assert not torch.equal(logits(unchanged), before)
    with pytest.raises(ZeroDivisionError), unchanged.compiled(change):
        raise ZeroDivisionError
    assert torch.equal(logits(unchanged), before)


def test_a_context_puts_back_the_scale_that_was_on_before() -> None:
    model = fresh()
    change = delta(model, last_weights(model))
    model.apply(change, 0.5)
    half = logits(model)
    with model.compiled(change, 2.0):
        assert not torch.equal(logits(model), half)
    assert torch.equal(logits(model), half)
    assert model.edits.applied["a"].scale == 0.5


def mlp_output(model: SteerableModel, layer: int) -> str:
    """Return the name of the last linear module of a block's MLP."""
    inside = reversed([name for name, _ in model.blocks[layer].named_modules()])
    last = next(name for name in inside if name.rpartition(".")[2] in ("down_proj", "c_proj", "dense_4h_to_h"))
    return f"{block_path(model, layer)}.{last}"


@pytest.mark.parametrize("family", PRE_NORM)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bias_on_the_mlps_output_is_the_steering_vector(family: str, dtype: torch.dtype) -> None:
    model = fresh(family, dtype)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    name = f"{mlp_output(model, 1)}.bias"
    attached = name not in dict(model.hf.named_parameters())
    assert attached == (family not in ("gpt2", "gpt_neox"))
    before = model.hf.state_dict()
    change = TaskVector("b", {name: direction}, model.fingerprint)
    with model.steer(activate(SteeringVector({1: direction}), 1, 1.5)):
        steered = logits(model)
    with model.compiled(change, 1.5):
        assert name in dict(model.hf.named_parameters())
        # In bfloat16 the two round at different places, 2^-8 each.
        close = {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
        assert float((logits(model) - steered).norm()) <= close * float(steered.norm())
    assert list(model.hf.state_dict()) == list(before)
    assert (name in dict(model.hf.named_parameters())) == (not attached)


def test_an_attached_bias_is_gone_as_if_it_had_never_been() -> None:
    model = fresh()
    linear = model.hf.get_submodule("model.layers.1.mlp.down_proj")
    assert isinstance(linear, nn.Linear)
    text = repr(linear)
    change = TaskVector("b", {"model.layers.1.mlp.down_proj.bias": torch.ones(32)}, model.fingerprint)
    other = TaskVector("c", {"model.layers.1.mlp.down_proj.bias": torch.ones(32)}, model.fingerprint)
    model.apply(change)
    model.apply(other, 2.0)
    assert torch.equal(linear.bias, torch.full((32,), 3.0))
    model.revert("b")
    assert torch.equal(linear.bias, torch.full((32,), 2.0))
    model.revert()
    assert linear.bias is None
    assert "bias" in linear._parameters
    assert repr(linear) == text


def test_tied_embeddings_stay_tied() -> None:
    model = fresh(tie_word_embeddings=True)
    embeddings, head = model.hf.get_input_embeddings(), model.hf.get_output_embeddings()
    base = embeddings.weight.detach().clone()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        change = TaskVector("e", {name: torch.ones(320, 32)}, model.fingerprint)
        with model.compiled(change):
            assert embeddings.weight is head.weight
            assert torch.equal(head.weight, base + 1)
        assert embeddings.weight is head.weight
        assert torch.equal(head.weight, base)
    both = TaskVector(
        "e", {name: torch.ones(320, 32) for name in ("model.embed_tokens.weight", "lm_head.weight")}, model.fingerprint
    )
    with pytest.raises(VectorError, match="one tensor here"):
        model.apply(both)


def test_another_base_is_refused_with_what_differs() -> None:
    model = fresh()
    change = delta(model, last_weights(model))
    other = replace(change, fingerprint=replace(change.fingerprint, weights="sha256:e", chat_template="sha256:f"))
    with pytest.raises(FingerprintError, match="weights, chat_template differ") as caught:
        model.apply(other)
    assert "Compile it again" in str(caught.value)
    # The base is what it was made on, also while it is changed.
    model.apply(change)
    model.apply(replace(change, name="again"))


@pytest.mark.parametrize(
    ("name", "shape", "error", "said"),
    [
        (
            "model.layers.1.mlp.down_projj.weight",
            (32, 48),
            UnknownNameError,
            "Did you mean 'model.layers.1.mlp.down_proj",
        ),
        ("model.layers.7.mlp.down_proj.bias", (32,), UnknownNameError, "Did you mean"),
        ("model.norm.bias", (32,), UnknownNameError, "Did you mean 'model.norm.weight'"),
        ("model.layers.1.mlp.down_proj.weight", (48, 32), VectorError, r"as \[48, 32\], which is \[32, 48\]"),
        ("model.layers.1.mlp.down_proj.bias", (48,), VectorError, r"as \[48\], which is \[32\]"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(
    name: str, shape: tuple[int, ...], error: type[Exception], said: str
) -> None:
    model = fresh()
    good = delta(model, last_weights(model), name="good")
    model.apply(good)
    before = logits(model)
    with pytest.raises(error, match=said):
        model.apply(TaskVector("bad", {**good.tensors, name: torch.ones(shape)}, model.fingerprint))
    assert torch.equal(logits(model), before)
    assert list(model.edits.applied) == ["good"]


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 10**400, "1", None])
def test_a_scale_that_is_no_finite_number_is_refused(scale: float) -> None:
    model = fresh()
    with pytest.raises(StrengthError, match="scale of 'a'"):
        model.apply(delta(model, last_weights(model)), scale)


def test_a_quantised_base_is_refused() -> None:
    model = fresh()
    change = delta(model, last_weights(model))
    for quantization in (SimpleNamespace(quant_method="awq"), {"quant_method": "fp8"}):
        model.hf.config.quantization_config = quantization
        with pytest.raises(ModelError, match="is quantised"):
            model.apply(change)
    # Read from a GGUF file, the weights are floating point.
    model.hf.config.quantization_config = SimpleNamespace(quant_method="gguf")
    model.apply(change)


def test_an_interrupted_change_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    names = last_weights(model)
    model.apply(delta(model, names[:1], 1, name="a"))
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    find = WeightEdits._parameter
    seen: list[str] = []

    def fail(self: WeightEdits, name: str) -> nn.Parameter:
        seen.append(name)
        if len(seen) == 3:
            raise MemoryError
        return find(self, name)

    monkeypatch.setattr(WeightEdits, "_parameter", fail)
    with pytest.raises(MemoryError):
        model.apply(delta(model, names, 2, name="b"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())
    model.revert()


def test_a_bias_whose_attaching_was_interrupted_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    change = TaskVector("b", {"model.layers.1.mlp.down_proj.bias": torch.ones(32)}, model.fingerprint)
    find = WeightEdits._parameter

    def fail(self: WeightEdits, name: str) -> nn.Parameter:
        find(self, name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WeightEdits, "_parameter", fail)
        with pytest.raises(KeyboardInterrupt):
            model.apply(change)
    assert "model.layers.1.mlp.down_proj.bias" not in model.hf.state_dict()
    model.apply(change)
    model.revert()


def test_generation_and_steering_go_on_under_a_task_vector() -> None:
    model = fresh()
    change = delta(model, last_weights(model))
    direction = SteeringVector({1: torch.ones(32)})
    with model.compiled(change), model.steer(activate(direction, 1, 2.0)):
        both = logits(model)
    with model.steer(activate(direction, 1, 2.0)), model.compiled(change):
        assert torch.equal(logits(model), both)
