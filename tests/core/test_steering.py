"""Steering on a model: laws on every family."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import StoppingCriteria

from engrain.core.composition import Active, activate
from engrain.core.errors import EngrainError, FingerprintError, InputError, LayerError, StrengthError, WidthError
from engrain.core.fingerprint import Fingerprint
from engrain.core.model import SteerableModel
from engrain.core.vector import Calibration, SteeringVector
from tiny import byte_tokenizer, random_model, tiny

PROMPT = "Tell me."


def vector(seed: int = 0, width: int = 32, layers: tuple[int, ...] = (0, 1, 2), size: float = 3.0) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    directions = {
        layer: torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0) * size for layer in layers
    }
    return SteeringVector(directions, f"v{seed}")


def logits(model: SteerableModel, *prompts: str) -> Tensor:
    rows = [model.render(prompt) for prompt in prompts or (PROMPT,)]
    assert len({len(row) for row in rows}) == 1
    with torch.no_grad():
        found: Tensor = model.hf(torch.tensor(rows), use_cache=False).logits
    return found


def block_output(model: SteerableModel, layer: int) -> Tensor:
    return model.hidden_states([PROMPT], layers=[layer])[0][0]


def reply(model: SteerableModel, tokens: int = 6, **options: Any) -> list[list[int]]:
    inputs = torch.tensor([model.render(PROMPT)] * options.pop("rows", 1))
    with torch.no_grad():
        found = model.hf.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=258,
            do_sample=False,
            **options,
        )
    rows: list[list[int]] = found[:, inputs.shape[1] :].tolist()
    return rows


def test_the_model_is_the_same_to_the_bit_before_and_after(clean: SteerableModel) -> None:
    before = logits(clean)
    with clean.steer(activate(vector(), 1, 2.0)):
        assert not torch.equal(logits(clean), before)
    assert torch.equal(logits(clean), before)


def test_nothing_is_left_when_the_block_raises(clean: SteerableModel) -> None:
    before = logits(clean)
    with pytest.raises(ZeroDivisionError), clean.steer(activate(vector(), "all", 2.0)):
        raise ZeroDivisionError
    assert torch.equal(logits(clean), before)
    assert clean.steering.handles == ()


def test_nothing_is_left_when_one_of_several_does_not_fit(llama: SteerableModel) -> None:
    with pytest.raises(WidthError), llama.steer(activate(vector(), 1, 1.0), activate(vector(width=5), 1, 1.0)):
        pytest.fail("the block must not be entered")
    assert llama.steering.handles == ()
    assert not any(module._forward_hooks for module in llama.hf.modules())


@pytest.mark.parametrize("operation", ["add", "ablate", "clamp"])
def test_strength_zero_is_identity(clean: SteerableModel, operation: str) -> None:
    before = logits(clean)
    with clean.steer(activate(vector(), "all", 0.0, operation=operation)):
        assert torch.equal(logits(clean), before)


def test_a_disabled_vector_is_identity_and_an_enabled_one_is_not(clean: SteerableModel) -> None:
    before = logits(clean)
    handle = clean.add_steering_vector(vector(), layer=1, strength=1.5)
    steered = logits(clean)
    handle.enabled = False
    assert torch.equal(logits(clean), before)
    handle.enabled = True
    assert torch.equal(logits(clean), steered)
    handle.remove()
    handle.remove()
    assert torch.equal(logits(clean), before)


def test_the_vector_is_added_at_the_output_of_its_block_at_every_position(clean: SteerableModel) -> None:
    one = vector()
    before, untouched = block_output(clean, 1), block_output(clean, 0)
    with clean.steer(activate(one, 1, 1.5)):
        assert torch.allclose(block_output(clean, 1), before + 1.5 * one.at(1), atol=1e-5)
        assert torch.equal(block_output(clean, 0), untouched)


def test_every_row_of_a_batch_is_steered(clean: SteerableModel) -> None:
    with clean.steer(activate(vector(), 1, 2.0)):
        alone = logits(clean)
        together = logits(clean, PROMPT, PROMPT, PROMPT)
    for row in together:
        assert torch.allclose(row, alone[0], atol=1e-4)


def test_the_order_of_vectors_changes_nothing(clean: SteerableModel) -> None:
    actives = [
        activate(vector(1), "all", 1.0),
        activate(vector(2), 1, 0.7, operation="ablate"),
        activate(vector(3), 1, 0.5, operation="clamp"),
        activate(vector(4), 2, -1.2),
        activate(vector(5), 1, 0.8, "prompt"),
    ]
    with clean.steer(*actives):
        one = logits(clean)
    with clean.steer(*actives[::-1]):
        assert torch.allclose(logits(clean), one, atol=1e-4)


def test_several_vectors_are_their_sum(clean: SteerableModel) -> None:
    one, two = vector(1), vector(2)
    with clean.steer(activate(one, 1, 1.5), activate(two, 1, -0.5)):
        apart = logits(clean)
    with clean.steer(activate(one * 1.5 + two * -0.5, 1, 1.0)):
        assert torch.allclose(logits(clean), apart, atol=1e-4)


def test_nested_blocks_add_up_and_come_off_one_by_one(llama: SteerableModel) -> None:
    one, two = activate(vector(1), 1, 1.0), activate(vector(2), 1, 1.0)
    with llama.steer(one):
        outer = logits(llama)
        with llama.steer(two):
            inner = logits(llama)
        assert torch.equal(logits(llama), outer)
    with llama.steer(one, two):
        assert torch.equal(logits(llama), inner)


def test_a_calibrated_vector_needs_nothing_else(llama: SteerableModel) -> None:
    calibrated = vector().calibrated(Calibration(2, 0.9, "all", "ablate"))
    with llama.steer(calibrated):
        found = logits(llama)
    with llama.steer(activate(vector(), 2, 0.9, "all", "ablate")):
        assert torch.equal(logits(llama), found)


def test_rows_are_steered_apart_in_one_generation(clean: SteerableModel) -> None:
    one, two = activate(vector(1), 1, 4.0), activate(vector(2), "all", 3.0)
    (plain,) = reply(clean)
    with clean.steer(one):
        (first,) = reply(clean)
    with clean.steer(one, two):
        (third,) = reply(clean)
    with clean.steer(rows=[[one], [], [one, two]]):
        assert reply(clean, rows=3) == [first, plain, third]


def test_a_row_without_vectors_beside_steered_ones_is_untouched_to_the_bit(clean: SteerableModel) -> None:
    before = logits(clean, PROMPT, PROMPT)
    with clean.steer(rows=[[activate(vector(1), 1, 2.0), activate(vector(2), 1, 1.0, operation="ablate")], []]):
        found = logits(clean, PROMPT, PROMPT)
    assert torch.equal(found[1], before[1])
    assert not torch.allclose(found[0], before[0], atol=1e-3)


@pytest.mark.parametrize("options", [{"num_return_sequences": 2, "num_beams": 2}, {"num_beams": 3}])
def test_rows_keep_their_vectors_when_beams_repeat_them(llama: SteerableModel, options: dict[str, int]) -> None:
    active = activate(vector(1), 1, 4.0)
    plain = reply(llama, **options)
    with llama.steer(active):
        steered = reply(llama, **options)
    with llama.steer(rows=[[active], []]):
        assert reply(llama, rows=2, **options) == steered + plain


def test_a_batch_of_another_size_than_the_rows_is_refused(llama: SteerableModel) -> None:
    with (
        llama.steer(rows=[[activate(vector(), 1, 1.0)], []]),
        pytest.raises(InputError, match="2 rows, the batch has 3"),
    ):
        logits(llama, PROMPT, PROMPT, PROMPT)
    with (
        llama.steer(rows=[[], []]),
        pytest.raises(InputError, match="2 rows apart already"),
        llama.steer(rows=[[]]),
    ):
        pytest.fail("the block must not be entered")


def test_strength_can_be_changed_between_generations(llama: SteerableModel) -> None:
    (plain,) = reply(llama)
    handle = llama.add_steering_vector(vector(), layer=1, strength=4.0)
    (strong,) = reply(llama)
    handle.strength = 0.0
    assert reply(llama) == [plain]
    handle.strength = 4.0
    assert reply(llama) == [strong]
    handle.remove()


class After(StoppingCriteria):
    """Does something once, when so many tokens are there."""

    def __init__(self, tokens: int, act: Callable[[], None]) -> None:
        self.left = tokens
        self.act = act

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.left -= 1
        if self.left == 0:
            self.act()
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("positions", ["all", "generated"])
def test_a_vector_can_be_switched_during_a_generation(llama: SteerableModel, positions: str) -> None:
    (plain,) = reply(llama)
    with llama.steer(activate(vector(), 2, 6.0, positions)) as (handle,):
        handle.enabled = False

        def switch() -> None:
            handle.enabled = True

        (found,) = reply(llama, stopping_criteria=[After(3, switch)])
    assert found[:3] == plain[:3]
    assert found[3:] != plain[3:]


def test_a_static_cache_gives_the_same_reply(llama: SteerableModel) -> None:
    for positions in ("all", "prompt", "generated"):
        with llama.steer(activate(vector(), 1, 4.0, positions)):
            assert reply(llama, cache_implementation="static", disable_compile=True) == reply(llama)


def test_a_compiled_model_gives_the_same_logits(llama: SteerableModel) -> None:
    model = SteerableModel(random_model("llama"), byte_tokenizer())
    tokens = torch.tensor([model.render(PROMPT)])
    compiled: Any = torch.compile(model.hf, backend="eager")
    with torch.no_grad():
        for strength in (1.0, 2.0):
            with model.steer(activate(vector(), 1, strength)):
                assert torch.allclose(compiled(tokens, use_cache=False).logits, logits(model), atol=1e-4)
    torch.compiler.reset()


def test_a_block_that_returns_a_tuple_keeps_the_rest_of_it(llama: SteerableModel) -> None:
    class Pair(nn.Module):
        def forward(self, hidden: Tensor) -> tuple[Tensor, str]:
            return hidden, "kept"

    block = Pair()
    from engrain.core.steering import Steering

    steering = Steering(nn.Identity(), nn.ModuleList([block]), 32)
    handle = steering.add(activate(vector(), 0, 1.0))
    hidden = torch.randn(2, 3, 32)
    steered, rest = block(hidden)
    assert rest == "kept"
    assert torch.allclose(steered, hidden + vector().at(0))
    handle.remove()
    assert torch.equal(block(hidden)[0], hidden)


def test_bfloat16_sums_small_vectors_before_it_rounds() -> None:
    half = SteerableModel(random_model("llama", torch.bfloat16), byte_tokenizer())
    one = vector(size=0.02)
    before = block_output(half, 1)
    with half.steer(*[activate(one, 1, 1.0)] * 50):
        after = block_output(half, 1)
    assert after.dtype == torch.bfloat16
    assert torch.equal(after, (before.float() + 50 * one.at(1)).to(torch.bfloat16))


def test_steered_bfloat16_comes_close_to_steered_float32() -> None:
    half, whole = tiny("llama", torch.bfloat16), tiny("llama")

    def likeness() -> float:
        one, other = (logits(model).float().flatten() for model in (half, whole))
        return float(torch.cosine_similarity(one, other, dim=0))

    unsteered = likeness()
    actives = [activate(vector(), 1, 1.0), activate(vector(2), 1, 1.0, operation="ablate")]
    with half.steer(*actives), whole.steer(*actives):
        assert likeness() > unsteered - 0.002
    assert unsteered > 0.99


def test_our_capture_sees_the_steering_that_transformers_own_does_not() -> None:
    model = SteerableModel(random_model("llama"), byte_tokenizer())
    tokens = torch.tensor([model.render(PROMPT)])

    def theirs() -> Tensor:
        with torch.no_grad():
            states: Tensor = model.hf(tokens, output_hidden_states=True, use_cache=False).hidden_states[2][0]
        return states

    ours_before, theirs_before = block_output(model, 1), theirs()
    with model.steer(activate(vector(), 1, 2.0)):
        assert not torch.allclose(block_output(model, 1), ours_before, atol=1e-2)
        assert torch.allclose(theirs(), theirs_before, atol=1e-5)


_PRINT = Fingerprint("elsewhere", "Other", "sha256:a", "sha256:b", "sha256:c", "sha256:d", "float32")


@pytest.mark.parametrize(
    ("act", "error", "said"),
    [
        (lambda m: m.add_steering_vector(vector(width=16), layer=1, strength=1.0), WidthError, "has width 16"),
        (lambda m: m.add_steering_vector(vector(layers=(0, 7)), layer=7, strength=1.0), LayerError, "has 0-2"),
        (lambda m: m.add_steering_vector(vector(), layer=-1, strength=1.0), LayerError, "no direction at layer -1"),
        (lambda m: m.add_steering_vector(vector(), layer=9, strength=1.0), LayerError, "it has 0-2"),
        (lambda m: m.add_steering_vector(vector(), layer="some", strength=1.0), LayerError, "neither"),
        (lambda m: m.add_steering_vector(vector(), layer=1, strength=math.nan), StrengthError, "finite"),
        (lambda m: m.add_steering_vector(vector(), layer=1, strength=math.inf), StrengthError, "finite"),
        (lambda m: m.add_steering_vector(vector(), layer=1, strength=10**400), StrengthError, "finite"),
        (lambda m: m.add_steering_vector(vector(), layer=1, strength="1"), StrengthError, "finite"),
        (lambda m: m.add_steering_vector(vector()), LayerError, "no calibration"),
        (lambda m: m.add_steering_vector(vector(), layer=1), StrengthError, "give one"),
        (lambda m: m.add_steering_vector(vector(), layer=1, strength=1.0, positions="al"), InputError, "mean 'all'"),
        (lambda m: m.add_steering_vector(vector(), layer=1, strength=1.0, operation="ad"), InputError, "mean 'add'"),
        (
            lambda m: m.add_steering_vector(SteeringVector(vector().directions, "x", _PRINT), layer=1, strength=1.0),
            FingerprintError,
            "made on 'elsewhere'.*architecture, weights, schema, tokenizer, chat_template differ",
        ),
    ],
)
def test_what_cannot_be_put_on_is_refused_and_leaves_nothing(
    llama: SteerableModel, act: Callable[[SteerableModel], object], error: type[EngrainError], said: str
) -> None:
    with pytest.raises(error, match=said):
        act(llama)
    assert llama.steering.handles == ()


def test_a_strength_that_is_not_finite_leaves_the_handle_as_it_was(llama: SteerableModel) -> None:
    handle = llama.add_steering_vector(vector(), layer=1, strength=1.0)
    with pytest.raises(StrengthError):
        handle.strength = math.inf
    assert handle.strength == 1.0
    handle.remove()


def test_a_vector_of_this_model_is_accepted(llama: SteerableModel) -> None:
    own = SteeringVector(vector().directions, "own", llama.fingerprint)
    with llama.steer(Active(own, (1,), 1.0)):
        assert len(llama.steering.handles) == 1
