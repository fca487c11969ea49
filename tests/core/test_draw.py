"""Drawing against the distribution that transformers' own filters leave."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from engrain.core import draw
from engrain.core.draw import Draw

_NONE = torch.zeros(1, 0, dtype=torch.long)


def wanted(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """The probabilities that tokens are drawn with, [batch, vocabulary]: sorted whole."""
    warm = TemperatureLogitsWarper(temperature)(_NONE, logits)
    kept: Tensor = warm if top_p == 1 else TopPLogitsWarper(top_p)(_NONE, warm)
    return kept.softmax(-1)


@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
@pytest.mark.parametrize("spread", [0.1, 3.0])
@pytest.mark.parametrize("few", [4, 256])
def test_tokens_are_as_frequent_as_they_are_probable(
    top_p: float, spread: float, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "_FEW", few)
    logits = spread * torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    probable = wanted(logits, 0.8, top_p)[0]
    count = 100_000
    drawn = Draw(0.8, top_p, 1)(_NONE, logits.expand(count, -1)).argmax(-1)
    seen = drawn.bincount(minlength=50).double()
    assert seen[probable == 0].sum() == 0
    inside = probable > 0
    expected = count * probable[inside].double()
    # Chi-squared, whose mean is its degrees of freedom and whose variance is twice that; five deviations.
    freedom = int(inside.sum()) - 1
    assert ((seen[inside] - expected).square() / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5 + 1e-9


@settings(max_examples=200)
@given(
    st.integers(1, 40),
    st.integers(0, 2**16),
    st.floats(0.05, 5),
    st.floats(0.01, 1),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_one_token_is_left_and_it_could_be_drawn(
    vocabulary: int, seed: int, temperature: float, top_p: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (10 * torch.randn(5, vocabulary, generator=generator)).to(dtype)
    left = Draw(temperature, top_p, seed)(_NONE, logits)
    assert torch.equal((left == 0).sum(-1), torch.ones(5, dtype=torch.long))
    assert torch.equal((left == -torch.inf).sum(-1), torch.full((5,), vocabulary - 1))
    # A hair's breadth wider: where a sum meets top_p, both round in their own way.
    kept = wanted(logits.float(), temperature, min(1.0, top_p + 1e-5)) > 0
    # Of tokens that are equally probable each may be the last.
    least = logits.float().where(kept, torch.inf).amin(-1)
    assert (logits.float().gather(1, left.argmax(-1, keepdim=True))[:, 0] >= least).all()


def test_a_seed_draws_the_same_and_leaves_the_worlds_numbers_alone() -> None:
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    ahead = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (Draw(1.0, 0.95, seed)(_NONE, logits) for seed in (3, 3, 4))
    assert torch.equal(torch.rand(3), ahead)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_what_cannot_be_said_is_never_said() -> None:
    logits = torch.full((1000, 20), -torch.inf)
    logits[:, 7] = 0.0
    logits[:, 11] = -1.0
    drawn = Draw(1.0, 1.0, 0)(_NONE, logits).argmax(-1)
    assert set(drawn.tolist()) == {7, 11}
