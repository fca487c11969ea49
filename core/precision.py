"""Half-precision models computed in float32, one block at a time, where the processor has no half-precision units.

On such a processor a bfloat16 product runs seven times slower than the float32 one (AVX2: 16 against 115 GFLOP/s).
Turning a block's weights to float32 costs a few bytes moved per weight, once for each pack of hundreds of tokens.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_HALF = (torch.bfloat16, torch.float16)


def has_half_units(parameter: Tensor) -> bool:
    """Return whether the device of ``parameter`` multiplies its half-precision type in hardware."""
    if parameter.device.type != "cpu":
        return True
    # torch has no public name for this in 2.13.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return parameter.dtype == torch.bfloat16 and any(getattr(torch.cpu, check, bool)() for check in checks)


@contextmanager
def float32_compute(decoder: nn.Module, blocks: nn.ModuleList) -> Iterator[None]:
    """Compute the blocks of a half-precision model in float32 inside this context, where that is the faster way.

    Embeddings are looked up as stored and handed on as float32; a block's weights are float32 while it runs and the
    stored tensors themselves before and after, so the model is the same to the bit when the context ends.
    """
    first = next(decoder.parameters())
    if first.dtype not in _HALF or has_half_units(first):
        yield
        return
    stored: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, args: Any) -> None:
        for parameter in module.parameters():
            if parameter.dtype in _HALF and parameter not in stored:
                stored[parameter] = parameter.data
                parameter.data = parameter.data.float()

    def restore(module: nn.Module) -> None:
        for parameter in module.parameters():
            if parameter in stored:
                parameter.data = stored.pop(parameter)

    inside = {id(module) for block in blocks for module in block.modules()}
    with ExitStack() as stack:
        for block in blocks:
            stack.callback(restore, block)  # also for a block that was left by an exception
            stack.callback(block.register_forward_pre_hook(widen).remove)
            stack.callback(block.register_forward_hook(lambda module, args, output: restore(module)).remove)
        for module in decoder.modules():
            if isinstance(module, nn.Embedding) and id(module) not in inside:
                stack.callback(module.register_forward_hook(lambda module, args, output: output.float()).remove)
        yield
