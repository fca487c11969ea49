"""What replies attend to: the share of attention that goes to the last turn of the user."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded


def turn_of(model: SteerableModel, message: str) -> tuple[int, int]:
    """Return the place of the first token of a user's message in its rendered prompt, and the one behind its last.

    What two messages are rendered alike around them is the template's.
    """
    own = model.render(message)
    other = model.render("x" if not message.startswith("x") else "y")
    before, behind = _alike(own, other), _alike(own[::-1], other[::-1])
    return before, max(before + 1, len(own) - behind)


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(map(len, (one, other)))
    )


@torch.no_grad()
def attention_mass(
    model: SteerableModel, sequences: Sequence[Encoded], turns: Sequence[tuple[int, int]], first: int
) -> float | None:
    """Return the share of attention that the tokens of replies pay to a part of their prompt.

    The mean over reply tokens, heads and the blocks from ``first`` on, of the softmax's weights on the keys of that
    part. Attention is computed in full for it (``eager``), a sequence at a time.

    Args:
        model: the model, with whatever is on it.
        sequences: prompts with replies, none empty.
        turns: for each, the place of the part's first token and the one behind its last.
        first: decoder block, counted from 0.

    Returns:
        From 0 to 1, or None for a family whose blocks hand out no weights (linear attention).
    """
    total, count = 0.0, 0
    for sequence, (start, end) in zip(sequences, turns, strict=True):
        with _weights(model, first) as seen:
            model.decoder(torch.tensor([sequence.prompt + sequence.reply], device=model.hf.device), use_cache=False)
        for weights in seen:
            # A reply's token is predicted one place before it.
            mass = weights[0, :, len(sequence.prompt) - 1 : -1, start:end].float().sum(dim=-1)
            total += float(mass.sum())
            count += mass.numel()
    return total / count if count else None


@contextmanager
def _weights(model: SteerableModel, first: int) -> Iterator[list[Tensor]]:
    """Give what the blocks' attention weighs with, [batch, heads, seq, keys] each, in the passes inside."""
    seen: list[Tensor] = []
    config = model.hf.config.get_text_config(decoder=True)
    own = config._attn_implementation

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        found = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(found, Tensor) and found.dim() == 4 and found.shape[-1] == found.shape[-2]:
            seen.append(found)

    with ExitStack() as stack:
        stack.callback(setattr, config, "_attn_implementation", own)
        config._attn_implementation = "eager"
        for block in model.blocks[first:]:
            for child in block.children():
                stack.callback(child.register_forward_hook(look).remove)
        yield seen
