"""The operator that stands in the model's graph: opaque to compilers, it looks up what to do when it runs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.library import Library, register_fake

from engrain.plugins.vllm.bank import Plan

NAME = "engrain::steer"

# What the forward pass that this process is about to run steers. Tensors that a graph closed over could be baked into
# a compiled artefact; this is read at run time.
_plan: Plan | None = None


def set_plan(plan: Plan | None) -> None:
    """Say what the next forward pass steers; None for nothing."""
    global _plan
    _plan = plan


def _steer(hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    if _plan is not None:
        _plan.apply(layer, hidden, residual)


def _library() -> Library:
    library = Library("engrain", "FRAGMENT")
    # In place: an idle layer costs a call and moves no bytes.
    library.define("steer(Tensor(a!) hidden, Tensor? residual, int layer) -> ()")
    library.impl("steer", _steer, "CompositeExplicitAutograd")
    register_fake(NAME, lambda hidden, residual, layer: None, lib=library)
    return library


_LIBRARY = _library()


def arm(block: nn.Module, layer: int) -> None:
    """Put the operator behind a decoder block.

    vLLM's blocks return the residual stream, or a pair whose sum it is; adding to the first is adding to the stream.
    """

    def steer(module: nn.Module, inputs: Any, output: Any) -> None:
        hidden, residual = output[:2] if isinstance(output, tuple) else (output, None)
        torch.ops.engrain.steer(hidden, residual, layer)

    block.register_forward_hook(steer)
