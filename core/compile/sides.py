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
from engrain.core.scoring import scored_places

BASE = "base"
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Side:
    """What one model makes of a pack, where replies are predicted.

    Attributes:
        states: outputs of the layers that are looked at, [places, d_model] each.
        log_probabilities: of the next token, float32, [places, vocabulary].
        following: which token it is, -1 where the text ends, [places].
    """

    states: Mapping[int, Tensor]
    log_probabilities: Tensor
    following: Tensor


def each_side(
    model: SteerableModel,
    sequences: Sequence[Encoded],
    edits: Mapping[str, Edit],
    entry: int,
    look: Callable[[Side, Side], _Found],
    *,
    layers: Sequence[int] = (),
    reference: str = BASE,
) -> Iterator[tuple[Pack, dict[str, _Found]]]:
    """Yield every pack of the texts with what is seen of the base and of each edit, by name.

    Args:
        model: the base, with nothing on it.
        sequences: conversations with replies, raw text as a reply without a prompt.
        edits: contexts in which the model is edited, by name.
        entry: the first block that any of them changes.
        look: called with the reference's side and with each one's, the reference's own among them.
        layers: blocks from ``entry`` on whose outputs are looked at.
        reference: the base's name, or that of an edit.
    """
    course = Course(model, sequences, entry, layers, memory=0)
    known: dict[str, Edit | None] = {BASE: None, **edits}
    for recorded in course:
        beside = _side(model, course, recorded, known[reference])
        # One after the other: the distributions of all of them at once would be many times the weights.
        yield (
            recorded.pack,
            {
                name: look(beside, beside if name == reference else _side(model, course, recorded, edit))
                for name, edit in known.items()
            },
        )


def _side(model: SteerableModel, course: Course, recorded: Recorded, edit: Edit | None) -> Side:
    """Return the side of an edit, or of the base for None."""
    with torch.no_grad(), nullcontext() if edit is None else edit():
        states = recorded.targets if edit is None else course.states(recorded)
        # At the last block it would act once more, on what stands in for that block's output.
        for handle in model.steering.handles:
            handle.enabled = False
        scores = next_token_logits(model, states[course.layers[-1]]).log_softmax(-1)
    return Side(states, scores, scored_places(recorded.pack)[1])


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
