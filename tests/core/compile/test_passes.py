"""Passes that start in the middle are whole passes."""

from functools import partial

import pytest
import torch

from engrain.core.blocks import block_output
from engrain.core.compile.entry import entering
from engrain.core.compile.measure import Measure, kl_sum
from engrain.core.compile.passes import Course, next_token_logits
from engrain.core.composition import Active, activate
from engrain.core.errors import InputError
from engrain.core.packing import Encoded
from engrain.core.vector import SteeringVector
from tiny import FAMILIES, tiny

TEXTS = (Encoded((1, 2, 3, 4), (5, 6)), Encoded((1, 2, 9), (7, 5, 6)), Encoded((), (8, 2, 6, 11)))
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def active(layer: int = 1, size: float = 1.0) -> Active:
    return activate(SteeringVector({layer: torch.linspace(-1, 1, 32)}, "v"), layer, size)


@pytest.mark.parametrize("family", FAMILIES)
def test_entering_at_any_block_gives_the_logits_of_the_whole_pass(family: str) -> None:
    model = tiny(family)
    for layer in range(len(model.blocks) + 1):
        before = [dict(vars(block)) for block in model.blocks]
        with torch.no_grad():
            whole = model.hf(input_ids=TOKENS, use_cache=False).logits
            entry = torch.empty(1, 8, 32)
            if layer:
                hook = model.blocks[layer - 1].register_forward_hook(
                    lambda module, inputs, output, entry=entry: _keep(entry, output)
                )
                model.hf(input_ids=TOKENS, use_cache=False)
                hook.remove()
            with entering(model, layer, entry):
                found = model.hf(input_ids=TOKENS, use_cache=False).logits
        assert torch.equal(found, whole)
        assert [dict(vars(block)) for block in model.blocks] == before


def _keep(entry: torch.Tensor, output: object) -> None:
    entry.copy_(block_output(output))


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_states_lead_to_the_logits_of_the_teacher(family: str) -> None:
    model = tiny(family)
    (recorded,) = Course(model, TEXTS[:1], entry=1, teacher=lambda: model.steer(active()))
    with torch.no_grad(), model.steer(active()):
        whole = model.hf(input_ids=torch.tensor([[1, 2, 3, 4, 5, 6]]), use_cache=False).logits[0, 3:5]
    with torch.no_grad():
        torch.testing.assert_close(next_token_logits(model, recorded.targets[2]), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("entry", [0, 1, 2])
def test_a_student_that_is_the_teacher_has_its_states(entry: int) -> None:
    model = tiny()
    course = Course(model, TEXTS, entry, [entry], lambda: model.steer(active(entry)))
    for recorded in course:
        with model.steer(active(entry)):
            found = course.states(recorded)
        for layer in {entry, 2}:
            torch.testing.assert_close(found[layer], recorded.targets[layer])


def test_what_is_not_kept_is_computed_again_to_the_bit() -> None:
    model = tiny()
    kept, computed = (Course(model, TEXTS, 1, [1], lambda: model.steer(active()), memory) for memory in (1 << 20, 0))
    assert kept[0] is kept[0]
    assert computed[0] is not computed[0]
    for one, other in zip(kept, computed, strict=True):
        assert one.entry is not None
        assert other.entry is not None
        assert torch.equal(one.entry, other.entry)
        assert all(torch.equal(states, other.targets[layer]) for layer, states in one.targets.items())


def test_in_front_of_the_first_block_nothing_is_kept() -> None:
    (recorded,) = Course(tiny(), TEXTS[:1], 0)
    assert recorded.entry is None
    assert recorded.nbytes == sum(states.nbytes for states in recorded.targets.values())


def test_gradients_flow_into_the_blocks_from_the_entry_on() -> None:
    model = tiny()
    course = Course(model, TEXTS, 1)
    (recorded,) = course
    weights = [block.get_submodule("mlp.down_proj").weight for block in model.blocks]
    loss = next_token_logits(model, course.states(recorded)[2]).square().mean()
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)  # type: ignore[arg-type]
    assert gradients[0] is None
    assert all(found is not None and float(found.norm()) > 0 for found in gradients[1:])


def test_a_divergence_is_that_of_its_definition() -> None:
    model = tiny()
    one, other = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p, q = (next_token_logits(model, side).double().softmax(-1) for side in (one, other))
    assert kl_sum(model, one, other) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-3)
    assert kl_sum(model, one, one) == 0


def test_the_base_and_the_vector_itself_both_lose_one() -> None:
    model = tiny()
    teacher = partial(model.steer, active())
    measure = Measure(model, teacher, TEXTS[:2], TEXTS[2:], entry=1)
    vector, base = measure.closeness(teacher), measure.closeness(lambda: model.steer(active(size=0.0)))
    assert (vector.kl_recovered, vector.drift) == pytest.approx((1, 1), abs=1e-3)
    assert (base.kl_recovered, base.drift) == pytest.approx((0, 0), abs=1e-3)
    assert vector.loss == pytest.approx(1, abs=2e-3)
    assert base.loss == pytest.approx(1, abs=2e-3)


def test_a_teacher_that_is_the_base_is_no_measure() -> None:
    model = tiny()
    with pytest.raises(InputError, match="changes nothing on the held-out scope"):
        Measure(model, lambda: model.steer(active(size=0.0)), TEXTS[:2], TEXTS[2:], entry=1)
