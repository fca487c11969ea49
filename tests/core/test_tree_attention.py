"""Attention branch by branch: what attention over the whole tree computes, on every family, and less of it."""

import pytest
import torch
from torch import Tensor
from transformers.integrations import sdpa_attention

from engrain.core import tree_attention
from engrain.core.capture import PackRunner
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from tiny import byte_tokenizer, random_model

# Prompts that share a start, and replies that open alike: some branches see tokens of those before them.
SEQUENCES = [
    Encoded((1, 2, 3, *prompt), reply)
    for prompt in ((4, 5), (4, 6, 7), (8,))
    for reply in ((9, 10, 11, 12), (9, 10, 13), (14,))
]


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many scores each call computed."""
    found: list[int] = []
    own = sdpa_attention.sdpa_attention_forward

    def count(module: torch.nn.Module, query: Tensor, key: Tensor, *rest: object, **how: object) -> object:
        found.append(query.shape[2] * key.shape[2])
        return own(module, query, key, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(tree_attention, "sdpa_attention_forward", count)
    return found


def states(model: SteerableModel, *, group: int = 1, trees: bool | None = None, learning: bool = False) -> list[Tensor]:
    """Return each sequence's reply states at the last block, [reply, d_model]."""
    last = len(model.blocks) - 1
    runner = PackRunner(model, SEQUENCES, [last], group=group, trees=trees, learning=learning, branch=1)
    found: dict[int, Tensor] = {}
    for pack in runner.packs():
        seen: list[Tensor] = []
        runner.observe(pack, lambda layer, hidden, seen=seen: seen.append(hidden))  # type: ignore[misc]
        found |= {member: seen[0][pack.reply(place)] for place, member in enumerate(pack.members)}
    return [found[number] for number in range(len(SEQUENCES))]


@pytest.mark.parametrize("group", [1, 3])
def test_it_is_the_models_own_attention(model: SteerableModel, scores: list[int], group: int) -> None:
    config = model.hf.config.get_text_config(decoder=True)
    by_trees = PackRunner(model, SEQUENCES).trees and config._attn_implementation == "sdpa"
    scores.clear()
    for branch, row in zip(states(model, group=group), states(model, trees=False), strict=True):
        torch.testing.assert_close(branch, row, rtol=1e-4, atol=1e-5)
    assert config._attn_implementation != tree_attention.NAME
    assert bool(scores) == by_trees


def test_scores_that_are_masked_are_not_computed(scores: list[int]) -> None:
    model = SteerableModel(random_model("llama"), byte_tokenizer(), "tiny")
    (pack,) = PackRunner(model, SEQUENCES, [0], group=3, branch=1).packs()
    scores.clear()
    states(model, group=3)
    tokens, start = pack.tokens.shape[1], 3
    one_pass = scores[: len(pack.cuts) - 1]
    assert len(one_pass) == 3
    assert sum(one_pass) < 0.6 * tokens * (start + tokens)
    # Each branch: its own tokens, and the start; the second also the one prompt token that it shares with the first.
    lengths = [after - before for before, after in zip(pack.cuts, pack.cuts[1:], strict=False)]
    assert one_pass == [length * (start + length + shared) for length, shared in zip(lengths, (0, 1, 0), strict=True)]


def test_with_gradients_it_is_the_whole_tree_for_blocks_may_be_computed_again(scores: list[int]) -> None:
    model = SteerableModel(random_model("llama"), byte_tokenizer(), "tiny")
    with torch.no_grad():
        quick = states(model, learning=True)
    assert scores
    scores.clear()
    slow = states(model, learning=True)
    assert not scores
    for one, other in zip(quick, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_exception_leaves_the_models_own_attention(scores: list[int]) -> None:
    model = SteerableModel(random_model("llama"), byte_tokenizer(), "tiny")
    runner = PackRunner(model, SEQUENCES, [0], branch=1)
    (pack,) = runner.packs()

    def fail(layer: int, hidden: Tensor) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        runner.observe(pack, fail)
    assert model.hf.config._attn_implementation == "sdpa"


def test_a_family_whose_attention_cannot_be_cut_is_run_as_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **how: object) -> object:
        raise RuntimeError("The size of tensor a must match the size of tensor b")

    monkeypatch.setattr(tree_attention, "sdpa_attention_forward", refuse)
    model = SteerableModel(random_model("llama"), byte_tokenizer(), "tiny")
    assert not model.sees_trees
    assert len(states(model)) == len(SEQUENCES)
