"""Passes that save work or memory: from a block in the middle on, or with blocks computed again on the way back."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from engrain.core.model import SteerableModel


@contextmanager
def entering(model: SteerableModel, layer: int, states: Tensor) -> Iterator[None]:
    """Run forward passes from block ``layer`` on, on hidden states that were recorded before.

    The model's own forward still makes masks and position embeddings; the blocks below do nothing.

    Args:
        model: the model.
        layer: the first block that runs, counted from 0; the number of blocks for none of them.
        states: what enters it, [batch, seq, d_model], which the passes inside have as their shape.
    """

    def stand_in(place: int, block: Any) -> Any:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return states if place == layer - 1 else hidden

        return forward

    with ExitStack() as stack:
        for place, block in enumerate(model.blocks[:layer]):
            stack.callback(block.__dict__.pop, "forward", None)
            block.forward = stand_in(place, block)
        yield


@contextmanager
def checkpointing(model: SteerableModel, layer: int) -> Iterator[None]:
    """Keep of each block from ``layer`` on its input alone for the backward pass, and compute the rest again there.

    Chen et al. (2016), arXiv 1604.06174. The model's own switch does so in training mode only, with its dropout.
    """
    with ExitStack() as stack:
        for block in model.blocks[layer:]:
            forward: Any = block.forward
            stack.callback(block.__dict__.pop, "forward", None)
            block.forward = partial(checkpoint, forward, use_reentrant=False)
        yield
