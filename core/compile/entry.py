"""Passes that save work or memory: from a block in the middle on, or with blocks computed again on the way back."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
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

    with ExitStack() as stack:
        for place in range(layer):
            block = model.blocks[place]
            stack.callback(model.blocks.__setitem__, place, block)
            model.blocks[place] = _StandIn(block, states if place == layer - 1 else None)
        yield


class _StandIn(nn.Module):
    """Stands in the place of a block and does nothing, not even call the block's hooks, which would gather its shards.

    Whatever else the model asks of it, the block answers.
    """

    def __init__(self, block: nn.Module, states: Tensor | None) -> None:
        super().__init__()
        # Beside the modules: it is no part of this one.
        self.__dict__ |= {"block": block, "states": states}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what was recorded, or what came in."""
        found: Tensor = hidden if self.__dict__["states"] is None else self.__dict__["states"]
        return found


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
