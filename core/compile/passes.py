"""What the teacher makes of text, recorded once, and what the student makes of it, with gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engrain.core.blocks import block_output
from engrain.core.capture import PackRunner
from engrain.core.compile.entry import entering
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded, Pack
from engrain.core.scoring import scored_places

Edit = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Recorded:
    """One pack as the teacher sees it.

    Attributes:
        pack: the tokens.
        places: where replies are predicted, into the flattened pack, [places].
        entry: what enters the first block that may change, [batch, seq, d_model].
        targets: the teacher's hidden states at the places, by layer, [places, d_model]; the last block's among them.
    """

    pack: Pack
    places: Tensor
    entry: Tensor
    targets: dict[int, Tensor]


class Course:
    """Sequences with a teacher: packs of them, the teacher's states recorded, the student's computed.

    Args:
        model: the base.
        sequences: conversations with replies, raw text as a reply without a prompt.
        entry: the first block that may change.
        layers: blocks from ``entry`` on whose outputs are compared; the last one is always among them.
    """

    def __init__(
        self, model: SteerableModel, sequences: Sequence[Encoded], entry: int, layers: Sequence[int] = ()
    ) -> None:
        self._model = model
        self._runner = PackRunner(model, sequences, learning=True)
        self._entry = entry
        self.layers = tuple(sorted({*layers, len(model.blocks) - 1}))

    def record(self, teacher: Edit | None = None) -> Iterator[Recorded]:
        """Yield every pack under the teacher: the model inside of ``teacher()``, or the base."""
        for pack in self._runner.packs():
            places, _ = scored_places(pack)
            with torch.no_grad():
                base = self._states(pack, nullcontext(), None)
                entry = base.pop(self._entry - 1)
                taught = base if teacher is None else self._states(pack, teacher(), entry)
            targets = {layer: taught[layer].flatten(0, 1)[places] for layer in self.layers}
            yield Recorded(pack, places, entry, targets)

    def states(self, recorded: Recorded) -> dict[int, Tensor]:
        """Return the model's own hidden states at the places, by layer, [places, d_model], with gradients."""
        found = self._states(recorded.pack, nullcontext(), recorded.entry)
        return {layer: found[layer].flatten(0, 1)[recorded.places] for layer in self.layers}

    def _states(self, pack: Pack, edit: AbstractContextManager[object], entry: Tensor | None) -> dict[int, Tensor]:
        """Return the outputs of the layers, and what enters the entry block under the number before it."""
        found: dict[int, Tensor] = {}

        def watch(layer: int) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                found[layer] = block_output(output)

            return hook

        with ExitStack() as stack:
            stack.enter_context(edit)
            if entry is not None:
                stack.enter_context(entering(self._model, self._entry, entry))
            else:
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
