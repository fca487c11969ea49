"""Matrices that are split over processes: where Apollo has to ask the others, and what all have whole split likewise.

Split matrices are DTensors as ``fully_shard`` (FSDP2) or tensor parallelism make them, oriented [..., channels, side];
any dimension may be split, on a mesh of any number of dimensions. Plain tensors pass through. DTensor is imported when
the first one comes: its module takes a second.
"""

from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether the tensor is a DTensor."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Tensor:
    """Return what this process holds."""
    held: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return held


def layout(tensor: Any) -> object:
    """Return a key that is the same for tensors split alike."""
    return (tensor.device_mesh, tensor.placements) if is_sharded(tensor) else None


def split_as(like: Any, whole: Tensor) -> Any:
    """Return a tensor that every process has whole, split as another is."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def gradient(parameter: Any) -> Tensor:
    """Return the gradient, split as the parameter is."""
    found: Any = parameter.grad
    if is_sharded(parameter) and found.placements != parameter.placements:
        found = found.redistribute(placements=parameter.placements)
    held: Tensor = found
    return held


def project(rows: Any, projection: Tensor) -> Any:
    """Return ``rows @ projection``, [..., channels, rank], never split along the rank.

    Where the sum runs over a split side, its parts are summed up and the channels split instead (one reduce-scatter).
    """
    if not is_sharded(rows):
        return rows @ projection
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    # Local products with explicit placements: DTensor's own product may lay an uneven split out otherwise.
    mesh, side = rows.device_mesh, rows.ndim - 1
    whole = DTensor.from_local(projection, mesh, [Replicate()] * mesh.ndim, run_check=False)
    dims = [getattr(place, "dim", None) for place in rows.placements]
    matching = [
        _moved(place, side - 1) if dim == side else Replicate() if dim == side - 1 else place
        for dim, place in zip(dims, rows.placements, strict=True)
    ]
    part = local(rows) @ local(whole.redistribute(placements=matching))
    summed = [Partial() if dim == side else place for dim, place in zip(dims, rows.placements, strict=True)]
    split = [Shard(side - 1) if dim == side else place for dim, place in zip(dims, rows.placements, strict=True)]
    shape = [*rows.shape[:-1], projection.shape[-1]]
    return _wrap(part, rows, shape, summed).redistribute(placements=split)


def total(squares: Tensor, matrices: Any) -> Tensor:
    """Return sums over the local part of each matrix, summed over the processes that hold the rest of it."""
    if not is_sharded(matrices):
        return squares
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = matrices.device_mesh
    parts = [Partial() if _splits(place, matrices) else Replicate() for place in matrices.placements]
    summed = DTensor.from_local(squares, mesh, parts, run_check=False)
    return summed.redistribute(placements=[Replicate()] * mesh.ndim).to_local()


def spread(factors: Tensor, reduced: Any, rows: Any) -> Tensor:
    """Return the factors, [..., channels, 1], of the local channels of ``reduced`` for those of ``rows``."""
    if not is_sharded(rows):
        return factors
    from torch.distributed.tensor import Replicate

    held = _wrap(factors, reduced, [*reduced.shape[:-1], 1], reduced.placements)
    # Split along the side, it needs the factors of all channels.
    side = rows.ndim - 1
    wanted = [Replicate() if getattr(place, "dim", None) == side else place for place in rows.placements]
    spread: Tensor = held.redistribute(placements=wanted).to_local()
    return spread


def norms(reduced: Any, dtype: torch.dtype) -> Tensor:
    """Return a zero for each matrix, [..., 1, 1], split as the stack of matrices is and whole otherwise."""
    zeros = torch.zeros(*local(reduced).shape[:-2], 1, 1, dtype=dtype, device=reduced.device)
    if not is_sharded(reduced):
        return zeros
    from torch.distributed.tensor import Replicate

    places = [Replicate() if _splits(place, reduced) else place for place in reduced.placements]
    split: Tensor = _wrap(zeros, reduced, [*reduced.shape[:-2], 1, 1], places)
    return split


def _moved(place: Any, dim: int) -> Any:
    """Return the placement for another dimension; FSDP2 on top of tensor parallelism splits in strides."""
    strided = {"split_factor": place.split_factor} if hasattr(place, "split_factor") else {}
    return type(place)(dim, **strided)


def _wrap(part: Tensor, like: Any, shape: list[int], places: Any) -> Any:
    """Return the DTensor of global ``shape`` of which ``part`` is local, on the mesh of ``like``."""
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, like.device_mesh, places, run_check=False, shape=torch.Size(shape), stride=stride)


def _splits(place: Any, matrices: Any) -> bool:
    """Return whether the placement splits matrices, rather than the stack of them or nothing."""
    return bool(getattr(place, "dim", -1) >= matrices.ndim - 2)
