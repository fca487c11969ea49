"""Directions from gradients: in which direction a shift of the hidden states raises the preference margin most."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from engrain.core.blocks import block_output, replace_output
from engrain.core.capture import PackRunner
from engrain.core.contrast import ContrastPair
from engrain.core.model import SteerableModel
from engrain.core.scoring import reply_log_probabilities


def margin_gradients(model: SteerableModel, pairs: Sequence[ContrastPair], layers: Sequence[int]) -> Iterator[Tensor]:
    """Yield the gradient of each pair's preference margin by a shift of all hidden states at a layer, at no shift.

    Args:
        model: the model, unsteered.
        pairs: contrast pairs.
        layers: decoder blocks, counted from 0.

    Yields:
        For each pair in order, float32 [layers, d_model], nats per token and unit of length.
    """
    shifts = [torch.zeros(model.width, device=model.hf.device, requires_grad=True) for _ in layers]

    def shifted(shift: Tensor) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            hidden = block_output(output)
            return replace_output(output, (hidden + shift.to(hidden.device)).to(hidden.dtype))

        return hook

    with ExitStack() as stack:
        for layer, shift in zip(layers, shifts, strict=True):
            stack.callback(model.blocks[layer].register_forward_hook(shifted(shift)).remove)
        for pair in pairs:
            sequences = model.encode_pair(pair)
            runner = PackRunner(model, sequences, group=2, learning=True)
            (pack,) = runner.packs()
            means = [found.mean() for found in reply_log_probabilities(runner, pack, sequences)]
            sides = dict(zip(pack.members, means, strict=True))
            gradients = torch.autograd.grad(sides[0] - sides[1], shifts)
            yield torch.stack([gradient.float().cpu() for gradient in gradients])


class MarginGradient:
    """Mean gradient of the preference margin: the steepest direction, where the mean difference is a typical one.

    It is the first step of what Cao et al. (arXiv 2406.00045) optimise for many. Its length is that of the mean
    difference, so that its strength reads as that one's does.
    """

    def __init__(self, width: int) -> None:
        self._difference = torch.zeros(width, dtype=torch.float64)
        self._gradient = torch.zeros(width, dtype=torch.float64)
        self._pairs = 0

    def update(self, positive: Tensor, negative: Tensor) -> None:
        """Take in some pairs' hidden states, both [pairs, d_model]."""
        self._difference += (positive - negative).double().sum(dim=0)
        self._pairs += len(positive)

    def update_gradient(self, gradient: Tensor) -> None:
        """Take in the gradient of one pair's margin, [d_model]."""
        self._gradient += gradient.double()

    def direction(self) -> Tensor:
        """Return the direction, [d_model]; zeros where no shift changes the margin."""
        length = self._difference.norm() / self._pairs
        steepest = self._gradient.norm()
        return (self._gradient * (length / steepest if steepest > 0 else 0.0)).float()
