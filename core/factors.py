"""Deltas as products of two thin matrices, chosen by what they do to the inputs that the matrix really gets."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engrain.core.errors import VectorError
from engrain.core.task_vector import TaskVector


@dataclass(frozen=True)
class Factors:
    """A delta as ``b @ a``.

    Attributes:
        a: float32 [rank, d_in].
        b: float32 [d_out, rank].
    """

    a: Tensor
    b: Tensor

    @property
    def delta(self) -> Tensor:
        """The product, float32 [d_out, d_in]."""
        return self.b @ self.a


@dataclass(frozen=True)
class Decomposition:
    """A delta of one matrix, taken apart once and cut off at any rank.

    At each rank the product P of the factors minimises ``E ||(delta - P) x||^2`` over all matrices of that rank, where
    x are the matrix's inputs. With C their second moment that is ``||(delta - P) C^(1/2)||_F``, and the minimiser
    projects the delta onto the leading eigenvectors of ``delta C delta^T``: neither a root nor an inverse of C is
    needed, and C may be singular.

    Law: at full rank the product is the delta.

    Attributes:
        delta: float64 [d_out, d_in].
        basis: float64 [d_out, full], orthonormal columns, the most telling first; full is min(d_out, d_in).
        energies: float64 [full], what each column adds to ``E ||delta x||^2``, falling.
        transposed: whether the weight lies the other way round, [d_in, d_out], as that of GPT-2's ``Conv1D``.
    """

    delta: Tensor
    basis: Tensor
    energies: Tensor
    transposed: bool = False

    @property
    def full(self) -> int:
        """The rank at which nothing is lost."""
        return int(self.energies.numel())

    def at(self, rank: int) -> Factors:
        """Return the factors at a rank; above the full rank, those at the full rank."""
        basis = self.basis[:, :rank]
        a = basis.T @ self.delta
        # Both factors of one size: half-precision copies of them lose the least.
        size = a.norm(dim=1).sqrt()
        size[size == 0] = 1
        return Factors((a / size[:, None]).float(), (basis * size).float())

    def weight(self, rank: int) -> Tensor:
        """Return the product at a rank, float32, lying as the weight does."""
        product = self.at(rank).delta
        return product.T if self.transposed else product

    def lost(self, rank: int) -> float:
        """Return ``||(delta - P) C^(1/2)|| / ||delta C^(1/2)||`` at a rank, the share of the change that is lost."""
        total = float(self.energies.sum())
        return (float(self.energies[rank:].sum()) / total) ** 0.5 if total > 0 else 0.0

    def rank_within(self, bound: float) -> int:
        """Return the smallest power of two (at most the full rank) at which no more than ``bound`` is lost."""
        return next(rank for rank in _powers_of_two(self.full) if rank == self.full or self.lost(rank) <= bound)


def decompose(delta: Tensor, second_moment: Tensor | None = None, *, transposed: bool = False) -> Decomposition:
    """Take a delta apart.

    Args:
        delta: [d_out, d_in], or [d_in, d_out] where it is ``transposed``.
        second_moment: E[x x^T] of the matrix's inputs, [d_in, d_in]; None weighs every direction of the input the same,
            which makes it the singular value decomposition.
        transposed: whether the weight lies the other way round.

    Raises:
        VectorError: shapes that do not fit.
    """
    delta = delta.T if transposed and delta.dim() == 2 else delta
    if delta.dim() != 2 or (second_moment is not None and second_moment.shape != (delta.shape[1],) * 2):
        moment = None if second_moment is None else list(second_moment.shape)
        raise VectorError(f"A delta of shape {list(delta.shape)} with a second moment of {moment} has no factors.")
    wide = delta.double()
    # Of a tall delta only the space of its columns is looked at, so that the full rank is exact whatever C is.
    frame, inner = (None, wide) if wide.shape[0] <= wide.shape[1] else torch.linalg.qr(wide)
    moved = inner if second_moment is None else inner @ second_moment.to(wide.device, wide.dtype)
    gram = moved @ inner.T
    energies, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    vectors, energies = vectors.flip(1), energies.flip(0).clamp(min=0)
    return Decomposition(wide, vectors if frame is None else frame @ vectors, energies, transposed)


def truncated(task_vector: TaskVector, parts: Mapping[str, Decomposition], rank: int) -> TaskVector:
    """Return the task vector with the decomposed tensors cut off at a rank; the others as they are."""
    cut = {name: part.weight(rank) for name, part in parts.items()}
    return replace(task_vector, tensors={**task_vector.tensors, **cut})


def smallest_rank(
    task_vector: TaskVector,
    parts: Mapping[str, Decomposition],
    recovered: Callable[[TaskVector], float],
    keep: float = 0.97,
) -> int:
    """Return the smallest power of two as the rank of all matrices that keeps the effect.

    Args:
        task_vector: the whole change.
        parts: its matrices, taken apart, by the names of its tensors.
        recovered: how much of the steered behavior a task vector brings about; it is asked once for each rank tried.
        keep: which share of what the whole change recovers must be kept.

    Returns:
        The rank, the largest full rank where none below it is enough.
    """
    full = max(part.full for part in parts.values())
    whole = recovered(task_vector)
    for rank in _powers_of_two(full):
        if rank == full or recovered(truncated(task_vector, parts, rank)) >= keep * whole:
            return rank
    raise AssertionError("the full rank ends the loop")


def _powers_of_two(full: int) -> Iterator[int]:
    rank = 1
    while rank < full:
        yield rank
        rank *= 2
    yield full
