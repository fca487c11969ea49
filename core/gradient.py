"""Directions from gradients: in which direction a shift of the hidden states raises the preference margin most."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from engrain.core.blocks import block_output, replace_output
from engrain.core.capture import PackRunner
from engrain.core.contrast import ContrastPair
from engrain.core.model import SteerableModel
from engrain.core.progress import Count
from engrain.core.scoring import reply_log_probabilities


def margin_gradient(
    model: SteerableModel,
    pairs: Sequence[ContrastPair],
    layers: Sequence[int],
    weights: Sequence[float] | Tensor | None = None,
    progress: Count | None = None,
) -> Tensor:
    """Return the gradient of the pairs' summed preference margins by a shift of all hidden states at a layer.

    Args:
        model: the model, unsteered.
        pairs: contrast pairs.
        layers: decoder blocks, counted from 0.
        weights: how much each pair counts in the sum; 1 for None.
        progress: called with the number of pairs done since the last call.

    Returns:
        float32 [layers, d_model], nats per token and unit of length.
    """
    sequences = [one for pair in pairs for one in model.encode_pair(pair)]
    runner = PackRunner(model, sequences, group=2, learning=True)
    counts = torch.ones(len(pairs)) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    shifts = [torch.zeros(model.width, device=model.hf.device, requires_grad=True) for _ in layers]
    total = torch.zeros(len(layers), model.width)

    def shifted(shift: Tensor) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            hidden = block_output(output)
            return replace_output(output, (hidden + shift.to(hidden.device)).to(hidden.dtype))

        return hook

    with ExitStack() as stack:
        for layer, shift in zip(layers, shifts, strict=True):
            stack.callback(model.blocks[layer].register_forward_hook(shifted(shift)).remove)
        for pack in runner.packs():
            means = [found.mean() for found in reply_log_probabilities(runner, pack, sequences)]
            # The positive replies have the even numbers.
            signs = [float(counts[member // 2]) * (1 if member % 2 == 0 else -1) for member in pack.members]
            margin = torch.stack([sign * mean for sign, mean in zip(signs, means, strict=True)]).sum()
            gradients = torch.autograd.grad(margin, shifts)
            total += torch.stack([gradient.float().cpu() for gradient in gradients])
            if progress is not None:
                progress(len(pack.members) // 2)
    return total


class MarginGradient:
    """Gradient of the preference margin: the steepest direction, where the mean difference is a typical one.

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
        """Take in the gradient of some pairs' summed margins, [d_model]."""
        self._gradient += gradient.double()

    def direction(self) -> Tensor:
        """Return the direction, [d_model]; zeros where no shift changes the margin."""
        length = self._difference.norm() / self._pairs
        steepest = self._gradient.norm()
        return (self._gradient * (length / steepest if steepest > 0 else 0.0)).float()
