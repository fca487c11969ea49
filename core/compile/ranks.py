"""Several processes that train one task vector: the base is split among them, packs are dealt out, gradients summed.

The split is torch's own (``fully_shard``, FSDP2; Zhao et al. 2023, arXiv 2304.11277), a block at a time. Every process
has the deltas and their optimizer whole: they are what is trained, and small beside the base. All look at the same
held-out texts, so that they agree on what is best.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from engrain.core.errors import ModelError
from engrain.core.model import SteerableModel
from engrain.core.precision import has_half_units

Part = TypeVar("Part")


def rank() -> int:
    """Return the number of this process, from 0; 0 where there is only one."""
    return dist.get_rank() if _are_several() else 0


def count() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if _are_several() else 1


def shard(model: SteerableModel, device: str = "cpu") -> None:
    """Split the blocks among the processes: each keeps a part of every parameter, and gathers a block as it runs.

    What stands before and behind the blocks stays whole. Nothing of the model learns any more. To be called by all
    processes at the same point, like every pass from then on.

    Args:
        model: the base, whole, in the memory of the processor.
        device: where this process computes, as torch names devices.

    Raises:
        ModelError: half-precision weights where the processor has no units for them.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if device == "cpu" and model.hf.dtype.itemsize < 4 and not has_half_units(next(model.hf.parameters())):
        raise ModelError(f"'{model.source}' is {model.hf.dtype}, which this processor has no units for; use GPUs.")
    # Of the whole weights, while they are there.
    _ = model.fingerprint
    model.hf.requires_grad_(False)
    mesh = init_device_mesh(torch.device(device).type, (count(),))
    for block in model.blocks:
        split = fully_shard(block, mesh=mesh, reshard_after_forward=True)
        # What it gathers into is made at the first use; made in generation's inference mode, training could not use it.
        split.unshard()
        split.reshard()
    torch.nn.Module.to(model.hf, device)


def dealt(parts: Sequence[Part]) -> Sequence[Part]:
    """Return this process's share of what all have to do; all get as many, where their number divides that."""
    return parts[rank() :: count()]


def summed(number: float) -> float:
    """Return the sum of a number over the processes."""
    if count() == 1:
        return number
    # NCCL sums what lies on GPUs alone.
    held = torch.tensor(number, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(held)
    return float(held)


def sum_up(gradients: Iterable[Tensor]) -> None:
    """Make each tensor the sum of what the processes hold of it."""
    if count() > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized()
