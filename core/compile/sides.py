"""The same texts under the base and under several edits: what lies below the first change is computed once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from engrain.core.compile.passes import Course, Recorded, next_token_logits
from engrain.core.edit import Edit
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded, Pack
from engrain.core.scoring import CHUNK, scored_places

BASE = "base"
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Side:
    """What one model makes of some places of a pack where replies are predicted.

    Attributes:
        states: outputs of the layers that are looked at, [places, d_model] each.
        logits: of the next token, float32, [places, vocabulary].
        following: which token it is, -1 where the text ends, [places].
    """

    states: Mapping[int, Tensor]
    logits: Tensor
    following: Tensor


_Look = Callable[[Side, Side], Sequence[Tensor]]


def each_side(
    model: SteerableModel,
    sequences: Sequence[Encoded],
    edits: Mapping[str, Edit],
    entry: int,
    look: _Look,
    *,
    layers: Sequence[int] = (),
    reference: str = BASE,
) -> Iterator[tuple[Pack, dict[str, list[Tensor]]]]:
    """Yield every pack of the texts with what is seen of the base and of each edit, by name.

    The distributions of all places of a pack are there of the reference alone.

    Args:
        model: the base, with nothing on it.
        sequences: conversations with replies, raw text as a reply without a prompt.
        edits: contexts in which the model is edited, by name.
        entry: the first block that any of them changes.
        look: called with some places of the reference's side and the same of each one's, the reference's own among
            them; returns tensors with a row a place, which are put together.
        layers: blocks from ``entry`` on whose outputs are looked at.
        reference: the base's name, or that of an edit.
    """
    course = Course(model, sequences, entry, layers, memory=0)
    known: dict[str, Edit | None] = {BASE: None, **edits}
    for recorded in course:
        beside = _seen(model, course, recorded, known[reference], lambda side: side)
        yield (
            recorded.pack,
            {name: _compared(model, course, recorded, edit, beside, look) for name, edit in known.items()},
        )


def _compared(
    model: SteerableModel, course: Course, recorded: Recorded, edit: Edit | None, beside: Sequence[Side], look: _Look
) -> list[Tensor]:
    """Return what is seen of a pack under an edit, beside the pieces of the reference."""
    pieces = iter(beside)
    seen = _seen(model, course, recorded, edit, lambda side: look(next(pieces), side))
    return list(map(torch.cat, zip(*seen, strict=True)))


def _seen(
    model: SteerableModel, course: Course, recorded: Recorded, edit: Edit | None, see: Callable[[Side], _Found]
) -> list[_Found]:
    """Return what is seen of the places of a pack, ``CHUNK`` at a time, under an edit, or in the base for None."""
    following = scored_places(recorded.pack)[1]
    found = []
    with torch.no_grad(), nullcontext() if edit is None else edit():
        states = recorded.targets if edit is None else course.states(recorded)
        # At the last block it would act once more, on what stands in for that block's output.
        for handle in model.steering.handles:
            handle.enabled = False
        for start in range(0, len(following), CHUNK):
            rows = slice(start, start + CHUNK)
            own = {layer: of_layer[rows] for layer, of_layer in states.items()}
            logits = next_token_logits(model, own[course.layers[-1]])
            found.append(see(Side(own, logits, following[rows])))
    return found


def of_members(pack: Pack, values: Tensor) -> dict[int, Tensor]:
    """Return what belongs to each member of the pack.

    Args:
        pack: the pack.
        values: one for each place where replies are predicted, [places].
    """
    lengths = [
        len(path) - length if length else len(path)
        for path, length in zip(pack.paths, pack.prompt_lengths, strict=True)
    ]
    return dict(zip(pack.members, values.split(lengths), strict=True))
