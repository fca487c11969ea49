"""Texts that were run up to a block once, and are run from there on as often as somebody looks at what lies behind."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engrain.core.capture import PackRunner
from engrain.core.compile.entry import entering
from engrain.core.edit import Edit
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded, Pack


@dataclass(frozen=True)
class Seen:
    """One pack in one pass, its tokens flattened to one axis.

    Attributes:
        before: what enters the block that the pass ends with, [tokens, d_model].
        after: what leaves it, [tokens, d_model].
        inputs: of the modules that were watched, by name, [tokens, d_in].
        outputs: likewise, [tokens, d_out].
    """

    before: Tensor
    after: Tensor
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class Passage:
    """Texts under the base up to a block, in packs, as if learning: every token of a text is on its path.

    Half-precision weights are computed with in float32 where the processor has no units for them.

    Args:
        model: the base, which nothing is on.
        sequences: the texts.
        entry: the first block that is run at every look, counted from 0.

    Attributes:
        packs: the texts' tokens.
    """

    def __init__(self, model: SteerableModel, sequences: Sequence[Encoded], entry: int) -> None:
        self._model = model
        self._sequences = sequences
        self._entry = entry
        self.packs: tuple[Pack, ...] = tuple(self._runner(entry).packs())
        self._states: list[Tensor] = []
        if entry:
            self._states = [self._run(number, entry - 1) for number in range(len(self))]

    def __len__(self) -> int:
        """The number of packs."""
        return len(self.packs)

    def see(self, number: int, last: int, modules: Mapping[str, nn.Module]) -> Seen:
        """Run a pack from the entry up to the end of a block, with whatever is on the model now.

        Args:
            number: of the pack.
            last: the block, not before the entry.
            modules: what to watch, by name; none of them behind that block.
        """
        before: list[Tensor] = []
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}

        def watch(name: str) -> Any:
            def hook(module: nn.Module, entering: Any, leaving: Tensor) -> None:
                inputs[name], outputs[name] = (one.flatten(0, -2).float() for one in (entering[0], leaving))

            return hook

        def arrive(module: nn.Module, entering: Any) -> None:
            before.append(entering[0].flatten(0, 1).float())

        with ExitStack() as stack:
            stack.callback(self._model.blocks[last].register_forward_pre_hook(arrive).remove)
            for name, module in modules.items():
                stack.callback(module.register_forward_hook(watch(name)).remove)
            after = self._run(number, last)
        return Seen(before[0], after.float(), inputs, outputs)

    def onward(self, entry: int, edit: Edit) -> "Passage":
        """Return the same texts up to a block further on, with what ``edit`` puts on the blocks between.

        Args:
            entry: the first block that the new one runs at every look.
            edit: makes a context in which they are run up to there.
        """
        found = copy(self)
        with edit():
            found._states = [self._run(number, entry - 1) for number in range(len(self))]
        found._entry = entry
        return found

    @torch.no_grad()
    def _run(self, number: int, last: int) -> Tensor:
        """Run a pack from what is known of it up to the end of a block, and return the states, [tokens, d_model]."""
        pack = self.packs[number]
        found: list[Tensor] = []
        with ExitStack() as stack:
            if self._states:
                states = self._states[number].unflatten(0, pack.tokens.shape)
                stack.enter_context(entering(self._model, self._entry, states))
            self._runner(last).observe(pack, lambda layer, states: found.append(states))
        return found[0]

    def _runner(self, last: int) -> PackRunner:
        return PackRunner(self._model, self._sequences, [last], float32=True, learning=True)
