"""The share of attention on a part of the prompt, against the softmax written out."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compile_order import fresh
from engrain.core.compile.attention import attention_mass, turn_of
from engrain.core.composition import activate
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.vector import SteeringVector
from tiny import tiny

SEQUENCE = Encoded((256, 5, 6, 7, 8), (9, 10, 11))


def literal(model: SteerableModel, sequence: Encoded, start: int, end: int) -> float:
    """Query by query and head by head, from what torch's attention is called with."""
    calls: list[tuple[Tensor, Tensor]] = []
    own = functional.scaled_dot_product_attention

    def note(query: Tensor, key: Tensor, *rest: object, **how: object) -> Tensor:
        calls.append((query[0], key[0]))
        return own(query, key, *rest, **how)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(functional, "scaled_dot_product_attention", note)
        model.decoder(torch.tensor([sequence.prompt + sequence.reply]), use_cache=False)
    shares = []
    for query, key in calls:
        for head in range(len(query)):
            keys = key[head * len(key) // len(query)]
            for place in range(len(sequence.prompt) - 1, query.shape[1] - 1):
                scores = [
                    float(query[head, place] @ keys[other]) / math.sqrt(keys.shape[1]) for other in range(place + 1)
                ]
                top = max(scores)
                weights = [math.exp(score - top) for score in scores]
                shares.append(sum(weights[start:end]) / sum(weights))
    assert len(calls) == len(model.blocks)
    return sum(shares) / len(shares)


def test_it_is_the_softmax_over_the_keys_of_that_part() -> None:
    model = fresh()
    found = attention_mass(model, [SEQUENCE], [(1, 4)], 0)
    assert found == pytest.approx(literal(model, SEQUENCE, 1, 4), rel=1e-4)
    everything = attention_mass(model, [SEQUENCE], [(0, 8)], 0)
    assert everything == pytest.approx(1, abs=1e-5)
    assert model.hf.config._attn_implementation == "sdpa"


def test_every_reply_token_counts_the_same() -> None:
    model = fresh()
    other = Encoded((256, 7), (3,))
    one, two = (attention_mass(model, [each], [(0, 1)], 1) for each in (SEQUENCE, other))
    both = attention_mass(model, [SEQUENCE, other], [(0, 1), (0, 1)], 1)
    assert one is not None
    assert two is not None
    assert both == pytest.approx((3 * one + two) / 4, rel=1e-5)


def test_what_is_steered_before_the_blocks_changes_it_and_after_them_not() -> None:
    model = fresh()
    vector = SteeringVector({0: torch.ones(32), 2: torch.ones(32)})
    base = attention_mass(model, [SEQUENCE], [(1, 4)], 1)
    with model.steer(activate(vector, 2, 5.0)):
        assert attention_mass(model, [SEQUENCE], [(1, 4)], 1) == pytest.approx(base, abs=1e-7)
    with model.steer(activate(vector, 0, 5.0)):
        assert attention_mass(model, [SEQUENCE], [(1, 4)], 1) != pytest.approx(base, abs=1e-4)


def test_families_hand_out_their_weights(model: SteerableModel) -> None:
    found = attention_mass(model, [SEQUENCE], [(1, 4)], 0)
    assert found is not None
    assert 0 < found < 1


@pytest.mark.parametrize("message", ["Tea or coffee?", "x", "xylophone", "y"])
def test_the_turn_is_the_message_and_nothing_around_it(message: str) -> None:
    model = tiny("llama")
    start, end = turn_of(model, message)
    said = str(model.tokenizer.decode(list(model.render(message)[start:end])))
    # One of the letters that the other message has in the same place may be left out.
    assert said in message
    assert len(said) >= len(message) - 1
