"""Which tokens are steered: the same ones with and without a cache, padded or not, batched or one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from engrain.core.cache import cache_argument
from engrain.core.composition import TokenLayout, activate
from engrain.core.model import SteerableModel
from engrain.core.vector import SteeringVector

POSITIONS = ("all", "prompt", "generated", "from:5", "from:14")
PAD = 258


@pytest.fixture
def vector() -> SteeringVector:
    generator = torch.Generator().manual_seed(3)
    return SteeringVector({layer: torch.randn(32, generator=generator) / 2 for layer in range(3)}, "v")


def tokens_of(seed: int, length: int) -> Tensor:
    return torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(seed))


def whole(model: SteerableModel, tokens: Tensor, prompt: int) -> Tensor:
    """Logits of one full forward pass in which the first ``prompt`` tokens are the prompt."""
    index = torch.arange(len(tokens))[None]
    with torch.no_grad(), model.steering.layout(TokenLayout(index, index >= prompt)):
        found: Tensor = model.hf(tokens[None], use_cache=False).logits[0]
    return found


def cached(model: SteerableModel, tokens: Tensor, cache: DynamicCache) -> Any:
    return model.hf(tokens, use_cache=True, **{cache_argument(model.hf): cache})


@pytest.mark.parametrize("positions", POSITIONS)
def test_cached_decoding_equals_the_full_forward(clean: SteerableModel, vector: SteeringVector, positions: str) -> None:
    tokens, prompt = tokens_of(0, 20), 11
    with clean.steer(activate(vector, "all", 1.5, positions)), torch.no_grad():
        expected = whole(clean, tokens, prompt)
        cache = DynamicCache()
        found = [cached(clean, tokens[None, :prompt], cache).logits[0]]
        for token in tokens[prompt:]:
            found.append(cached(clean, token.reshape(1, 1), cache).logits[0])
    assert torch.allclose(torch.cat(found), expected, atol=2e-4)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(clean: SteerableModel, vector: SteeringVector, positions: str, side: str) -> None:
    rows = [tokens_of(1, 17), tokens_of(2, 9)]
    padded, mask = torch.full((2, 17), PAD), torch.zeros(2, 17, dtype=torch.long)
    places = [slice(17 - len(row), 17) if side == "left" else slice(0, len(row)) for row in rows]
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        padded[number, place], mask[number, place] = row, 1
    ids = (mask.cumsum(-1) - 1).clamp_min(0)
    with clean.steer(activate(vector, "all", 1.5, positions)), torch.no_grad():
        together = clean.hf(padded, attention_mask=mask, position_ids=ids, use_cache=False).logits
        alone = [clean.hf(row[None], use_cache=False).logits[0] for row in rows]
    for number, place in enumerate(places):
        assert torch.allclose(together[number, place], alone[number], atol=2e-4)


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_batch_generates_what_each_row_does_alone(
    clean: SteerableModel, vector: SteeringVector, positions: str
) -> None:
    rows = [tokens_of(4, 14), tokens_of(5, 8), tokens_of(6, 11)]
    padded, mask = torch.full((3, 14), PAD), torch.zeros(3, 14, dtype=torch.long)
    for number, row in enumerate(rows):
        padded[number, 14 - len(row) :], mask[number, 14 - len(row) :] = row, 1
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": PAD}
    with clean.steer(activate(vector, "all", 1.5, positions)), torch.no_grad():
        together = clean.hf.generate(padded, attention_mask=mask, **options)[:, 14:]
        for number, row in enumerate(rows):
            alone = clean.hf.generate(row[None], attention_mask=torch.ones(1, len(row)), **options)[0, len(row) :]
            assert together[number].tolist() == alone.tolist()


def changed(model: SteerableModel, vector: SteeringVector, positions: str, prompt: int, length: int) -> list[bool]:
    """Which tokens' block outputs the steering changes, in a generation of one token after another."""
    tokens = tokens_of(7, length)
    seen: list[Tensor] = []
    with torch.no_grad():
        for active in ([], [activate(vector, 0, 1.0, positions)]):
            with model.steer(*active):
                hook = model.blocks[0].register_forward_hook(lambda *noted: seen.append(noted[2][0]))
                cache = DynamicCache()
                cached(model, tokens[None, :prompt], cache)
                for token in tokens[prompt:]:
                    cached(model, token.reshape(1, 1), cache)
                hook.remove()
    steps = len(seen) // 2
    before, after = torch.cat(seen[:steps]), torch.cat(seen[steps:])
    return [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("all", range(9)),
        ("prompt", range(6)),
        ("generated", range(6, 9)),
        ("from:2", range(2, 9)),
        ("from:7", range(7, 9)),
        ("from:0", range(9)),
        ("from:999999999", range(0)),
    ],
)
def test_exactly_the_named_tokens_are_changed(
    llama: SteerableModel, vector: SteeringVector, positions: str, expected: range
) -> None:
    found = changed(llama, vector, positions, prompt=6, length=9)
    assert [place for place, is_changed in enumerate(found) if is_changed] == list(expected)


def test_a_new_generation_does_not_remember_the_last_ones_prompt(llama: SteerableModel, vector: SteeringVector) -> None:
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": PAD}
    long, short = tokens_of(8, 15)[None], tokens_of(9, 4)[None]
    with torch.no_grad(), llama.steer(activate(vector, "all", 2.0, "generated")):
        expected = llama.hf.generate(short, attention_mask=torch.ones_like(short), **options).tolist()
        llama.hf.generate(long, attention_mask=torch.ones_like(long), **options)
        assert llama.hf.generate(short, attention_mask=torch.ones_like(short), **options).tolist() == expected


def test_padding_is_never_past_a_token_on(llama: SteerableModel, vector: SteeringVector) -> None:
    padded = torch.cat([torch.full((5,), PAD), tokens_of(1, 6)])[None]
    mask = (torch.arange(11) >= 5).long()[None]
    seen: list[Tensor] = []
    with torch.no_grad():
        for active in ([], [activate(vector, 0, 1.0, "from:0")]):
            with llama.steer(*active):
                hook = llama.blocks[0].register_forward_hook(lambda *noted: seen.append(noted[2][0]))
                llama.hf(padded, attention_mask=mask, use_cache=False)
                hook.remove()
    assert torch.equal(seen[0][:5], seen[1][:5])
    assert not torch.equal(seen[0][5], seen[1][5])
