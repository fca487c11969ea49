"""Gaussian matrices from a seed: made anew wherever they are needed, so that nobody has to keep them.

Counter-based: entry ``i`` is a function of the seed and of ``i`` alone (splitmix64, then Box-Muller). No generator is
read or moved, the integers are the same on every device, and what follows from them differs by rounding only.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 1 << 64
# Where every chain of words starts. Any number would do, but no other ever again: checkpoints keep seeds, not matrices.
_START = int.from_bytes(b"APOLLO", "big")
# splitmix64: the increment, then shift and factor of each round (Steele, Lea and Flood, OOPSLA 2014).
_INCREMENT = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def mix(*words: int) -> int:
    """Return a number in [0, 2^63) that depends on every word and on their order; the same in every process."""
    state = _START
    for word in words:
        state = (state + word + _INCREMENT) % _WORD
        for shift, factor in _ROUNDS:
            state = (state ^ (state >> shift)) * factor % _WORD
    return state >> 1


def gaussian(seeds: Sequence[int], rows: int, columns: int, variance: float, device: torch.device) -> Tensor:
    """Return a matrix of independent N(0, ``variance``) entries for each seed, [seeds, rows, columns] in float32."""
    pairs = (rows * columns + 1) // 2
    keys = torch.tensor(seeds, dtype=torch.int64).to(device, non_blocking=True)
    words = torch.arange(1, pairs + 1, dtype=torch.int64, device=device).mul_(_signed(_INCREMENT))
    words = words + keys[:, None]
    for shift, factor in _ROUNDS:
        # torch shifts the sign in from the left; the mask takes it out again.
        words.bitwise_xor_((words >> shift).bitwise_and_((1 << (64 - shift)) - 1))
        if factor != 1:
            words.mul_(_signed(factor))
    halves = words.view(torch.int32).view(len(seeds), pairs, 2)
    # In (0, 1], with all 31 bits near zero, where the tails of the Gaussian come from.
    uniform = halves[..., 0].bitwise_and(0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31)
    radius = uniform.log_().mul_(-2 * variance).sqrt_()
    angle = halves[..., 1].to(torch.float32).mul_(math.pi * 2.0**-31)
    drawn = torch.empty(len(seeds), 2, pairs, dtype=torch.float32, device=device)
    torch.mul(radius, angle.cos(), out=drawn[:, 0])
    torch.mul(radius, angle.sin_(), out=drawn[:, 1])
    return drawn.view(len(seeds), -1)[:, : rows * columns].view(len(seeds), rows, columns)


def _signed(word: int) -> int:
    """Return the 64 bits of ``word`` as torch takes them."""
    return word - _WORD if word >> 63 else word
