"""What the teacher makes of text, recorded once, and what the student makes of it, with gradients."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engrain.core.blocks import block_output
from engrain.core.capture import PackRunner
from engrain.core.compile.entry import entering
from engrain.core.edit import Edit
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded, Pack
from engrain.core.scoring import scored_places

# What a course keeps of its teacher, bytes: some six thousand tokens of the demo model.
MEMORY = 48 << 20
# Fewer than a pass without gradients takes: what the demo model's blocks keep of them is a third of its weights.
PACK_TOKENS = 256


@dataclass(frozen=True)
class Recorded:
    """One pack as the teacher sees it.

    Attributes:
        pack: the tokens.
        places: where replies are predicted, into the flattened pack, [places].
        entry: what enters the first block that may change, [batch, seq, d_model]; None where that is block 0, in front
            of which nothing is saved.
        targets: the teacher's hidden states at the places, by layer, [places, d_model]; the last block's among them.
    """

    pack: Pack
    places: Tensor
    entry: Tensor | None
    targets: dict[int, Tensor]

    @property
    def nbytes(self) -> int:
        """The size of the states, in bytes."""
        return sum(states.nbytes for states in (self.entry, *self.targets.values()) if states is not None)


class Course:
    """Sequences with a teacher: packs of them, the teacher's states on each, the student's computed.

    The teacher's states are kept from the first use of a pack on, as long as there is room; those of the packs after
    that are computed again at each use.

    Args:
        model: the base.
        sequences: conversations with replies, raw text as a reply without a prompt.
        entry: the first block that may change; the teacher changes none below it.
        layers: blocks from ``entry`` on whose outputs are compared; the last one is always among them.
        teacher: makes a context in which the model is the teacher; None for the base.
        memory: bytes that may be kept.
    """

    def __init__(
        self,
        model: SteerableModel,
        sequences: Sequence[Encoded],
        entry: int,
        layers: Sequence[int] = (),
        teacher: Edit | None = None,
        memory: int = MEMORY,
    ) -> None:
        self._model = model
        self._runner = PackRunner(model, sequences, tokens=PACK_TOKENS, learning=True)
        self._entry = entry
        self._teacher = teacher or nullcontext
        self._room = memory
        self._kept: dict[int, Recorded] = {}
        self.layers = tuple(sorted({*layers, len(model.blocks) - 1}))
        placed = ((pack, scored_places(pack)[0]) for pack in self._runner.packs())
        self._packs = [(pack, places) for pack, places in placed if len(places)]

    def __len__(self) -> int:
        """The number of packs."""
        return len(self._packs)

    @property
    def places(self) -> int:
        """The number of places where something is predicted, in all packs."""
        return sum(len(places) for _, places in self._packs)

    def places_of(self, number: int) -> int:
        """Return the number of places in one pack."""
        return len(self._packs[number][1])

    def __getitem__(self, number: int) -> Recorded:
        """Return one pack under the teacher."""
        if number in self._kept:
            return self._kept[number]
        pack, places = self._packs[number]
        with torch.no_grad(), self._teacher():
            found = self._states(pack, None)
        entry = found.pop(self._entry - 1) if self._entry else None
        one = Recorded(pack, places, entry, {layer: found[layer].flatten(0, 1)[places] for layer in self.layers})
        if one.nbytes <= self._room:
            self._room -= one.nbytes
            self._kept[number] = one
        return one

    def __iter__(self) -> Iterator[Recorded]:
        """Yield every pack under the teacher."""
        return (self[number] for number in range(len(self)))

    def states(self, recorded: Recorded) -> dict[int, Tensor]:
        """Return the model's own hidden states at the places, by layer, [places, d_model], with gradients."""
        found = self._states(recorded.pack, recorded.entry)
        return {layer: found[layer].flatten(0, 1)[recorded.places] for layer in self.layers}

    def _states(self, pack: Pack, entry: Tensor | None) -> dict[int, Tensor]:
        """Return the outputs of the layers, and what enters the entry block under the number before it, if any is."""
        found: dict[int, Tensor] = {}

        def watch(layer: int) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                found[layer] = block_output(output)

            return hook

        with ExitStack() as stack:
            if entry is not None:
                stack.enter_context(entering(self._model, self._entry, entry))
            elif self._entry:
                stack.callback(self._model.blocks[self._entry - 1].register_forward_hook(watch(self._entry - 1)).remove)
            for layer in self.layers:
                stack.callback(self._model.blocks[layer].register_forward_hook(watch(layer)).remove)
            self._runner.run(pack)
        return found


def next_token_logits(model: SteerableModel, states: Tensor) -> Tensor:
    """Return the logits that the last block's output leads to.

    Args:
        model: the model; only what stands behind its blocks is run.
        states: outputs of the last block, [places, d_model].

    Returns:
        [places, vocabulary], float32, with gradients when ``states`` has them.
    """
    tokens = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
    with entering(model, len(model.blocks), states[None]):
        logits: Tensor = model.hf(input_ids=tokens, use_cache=False).logits[0]
    return logits.float()
