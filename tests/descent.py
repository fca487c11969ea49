"""Parameters and gradients to take steps with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# APOLLO and APOLLO-Mini.
KINDS: list[dict[str, Any]] = [{"rank": 4, "scale_type": "channel"}, {"rank": 1, "scale_type": "tensor"}]


def parameter(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))


def gradients(shape: Sequence[int], steps: int, seed: int = 1) -> list[Tensor]:
    """Gradients of changing size and with a common part, so that the limiter acts and moments matter."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    sizes = 10 ** (torch.rand(steps, generator=generator, dtype=torch.float64) * 3 - 4)
    return [size * (common + torch.randn(tuple(shape), generator=generator, dtype=torch.float64)) for size in sizes]


def drive(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], found: Sequence[Sequence[Tensor]]
) -> None:
    """Take one step for each list of gradients, one for each parameter."""
    for row in found:
        for one, gradient in zip(parameters, row, strict=True):
            one.grad = gradient.to(one.dtype)
        optimizer.step()
