"""Attention over a token tree branch by branch: no token is held against what its own branch cannot see.

Attention over a whole pack takes 4 * tokens^2 * d_model operations a block, most of them masked. The tokens that one
group of sequences brought into the tree see themselves and some of those before them; each such branch is computed over
these alone, with the attention that the model has anyway. What differs is which masked scores are never computed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "engrain_tree"


@dataclass(frozen=True)
class Branch:
    """Tokens that stand next to each other in a tree, and what they see.

    Attributes:
        first: number of the first token.
        end: number behind the last one.
        keys: what any of them sees, among the keys of the whole pass, [keys].
        mask: what is added to the scores, [1, 1, end - first, keys].
    """

    first: int
    end: int
    keys: Tensor
    mask: Tensor


_BRANCHES: ContextVar[Sequence[Branch]] = ContextVar("branches")


def branches(cuts: Sequence[int], mask: Tensor) -> list[Branch]:
    """Return the branches between the cuts.

    Args:
        cuts: where branches begin, and at last where the tree ends.
        mask: of the whole tree, [1, 1, seq, keys]: 0 where a token sees a key.
    """
    found = []
    for first, end in pairwise(cuts):
        rows = mask[:, :, first:end]
        keys = (rows[0, 0] == 0).any(dim=0).nonzero()[:, 0]
        found.append(Branch(first, end, keys, rows[..., keys].contiguous()))
    return found


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: Any
) -> tuple[Tensor, None]:
    """Return [batch, seq, heads, head_dim] from query, key and value [batch, heads, tokens, head_dim]."""
    parts = [
        sdpa_attention_forward(
            module,
            query[:, :, branch.first : branch.end],
            key.index_select(2, branch.keys),
            value.index_select(2, branch.keys),
            branch.mask,
            **how,
        )[0]
        for branch in _BRANCHES.get()
    ]
    return torch.cat(parts, dim=1), None


AttentionInterface.register(NAME, _attention)


@contextmanager
def by_branches(config: Any, found: Sequence[Branch]) -> Iterator[None]:
    """Compute attention branch by branch inside this context, where the model's own is torch's.

    Args:
        config: the configuration that the model's attention reads.
        found: the branches of the tree that is run.
    """
    own = config._attn_implementation
    if own != "sdpa" or len(found) < 2:
        yield
        return
    config._attn_implementation = NAME
    token = _BRANCHES.set(found)
    try:
        yield
    finally:
        _BRANCHES.reset(token)
        config._attn_implementation = own
