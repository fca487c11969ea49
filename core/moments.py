"""Second moments of what goes into linear modules: the measure in which a change of their weights is felt."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engrain.core.blocks import linear_modules
from engrain.core.capture import PackRunner
from engrain.core.errors import InputError, UnknownNameError
from engrain.core.packing import Encoded
from engrain.core.progress import Count

if TYPE_CHECKING:
    from engrain.core.model import SteerableModel


def second_moments(
    model: "SteerableModel",
    sequences: Sequence[Encoded],
    modules: Iterable[str],
    progress: Count | None = None,
) -> dict[str, Tensor]:
    """Return E[x x^T] of the inputs x of linear modules, over all tokens of all sequences, each weighing the same.

    The sums are float64: 8 bytes times d_in squared for each module, however many the sequences.

    Args:
        model: the model, with whatever is on it.
        sequences: what it reads.
        modules: names of linear modules inside of the decoder blocks.
        progress: called with the number of sequences done.

    Returns:
        By name, float64 [d_in, d_in] on the module's device.

    Raises:
        UnknownNameError: no such linear module.
        InputError: no token to look at.
    """
    known, wanted = linear_modules(model.hf, model.blocks), sorted(set(modules))
    for name in wanted:
        if name not in known:
            raise UnknownNameError(f"linear module in the blocks of '{model.source}' called", name, known)
    if not any(sequence.prompt or sequence.reply for sequence in sequences):
        raise InputError("Second moments need sequences to read; there is no token in these.")
    sums: dict[str, Tensor] = {}
    tokens = 0
    places = torch.empty(0, dtype=torch.long)

    def watch(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            seen = inputs[0].detach().flatten(0, -2)
            seen = seen[places.to(seen.device)].float()
            moment = (seen.T @ seen).double()
            sums[name] = sums[name] + moment if name in sums else moment

        return hook

    # Rows: in a tree a token that several sequences share would count once.
    runner = PackRunner(model, sequences, [max(known[name][1] for name in wanted)], float32=True, trees=False)
    with ExitStack() as stack:
        for name in wanted:
            stack.callback(known[name][0].register_forward_pre_hook(watch(name)).remove)
        for pack in runner.packs():
            places = torch.cat(pack.paths)
            tokens += len(places)
            runner.observe(pack, lambda layer, hidden: None)
            if progress is not None:
                progress(len(pack.members))
    return {name: sums[name] / tokens for name in wanted}
