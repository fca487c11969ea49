"""Which matrices are compiled into: the ones that write the residual stream, or others by name."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engrain.core.blocks import linear_modules
from engrain.core.errors import InputError, UnknownNameError
from engrain.core.model import SteerableModel

WRITERS = "writers"
ALL_LINEAR = "all-linear"
# What families call the two matrices of a block whose output is added to the residual stream.
_WRITER = re.compile(r"(o_proj|out_proj|down_proj|c_proj|dense|dense_4h_to_h|fc2|w2)")
_MLP_WRITER = re.compile(r"\.mlp\.(down_proj|c_proj|dense_4h_to_h|fc2|w2)\Z")

Matrix = nn.Linear | Conv1D


def choose_matrices(model: SteerableModel, target: str, layers: Sequence[int]) -> dict[str, Matrix]:
    """Return the linear modules that are meant, by name.

    Args:
        model: the model.
        target: ``writers`` (what writes the residual stream), ``all-linear``, the last part of a name (``q_proj``), or
            a regular expression that is found in the name.
        layers: decoder blocks, counted from 0.

    Raises:
        InputError: not a regular expression.
        LayerError: a layer that is not in the model, or none at all.
        UnknownNameError: no matrix in these blocks is meant; the nearest names are offered.
    """
    chosen = model.choose_layers(layers)
    here = {name: module for name, (module, at) in linear_modules(model.hf, model.blocks).items() if at in chosen}
    return match_matrices(here, target, f"the blocks {', '.join(map(str, chosen))} of '{model.source}'")


def match_matrices(here: Mapping[str, Matrix], target: str, where: str) -> dict[str, Matrix]:
    """Return those of some linear modules that a target means; see ``choose_matrices``.

    Args:
        here: the modules to choose from, by name.
        target: what is meant.
        where: they are, for messages.
    """
    if target == ALL_LINEAR:
        chosen = dict(here)
    elif target == WRITERS:
        chosen = {name: module for name, module in here.items() if _WRITER.fullmatch(_leaf(name))}
    else:
        try:
            wanted = re.compile(target)
        except re.error as error:
            raise InputError(
                f"The target {target!r} is neither {WRITERS}, {ALL_LINEAR} nor a name or regular expression: {error}."
            ) from error
        # A whole last part first: "o_proj" does not mean "qko_proj" as well.
        chosen = {name: module for name, module in here.items() if wanted.fullmatch(_leaf(name))} or {
            name: module for name, module in here.items() if wanted.search(name)
        }
    if not chosen:
        raise UnknownNameError(f"matrix in {where} called", target, {WRITERS, ALL_LINEAR, *map(_leaf, here)})
    return chosen


def mlp_writer(model: SteerableModel, layer: int) -> tuple[str, Matrix]:
    """Return the matrix with which the block's MLP writes the residual stream, with its name.

    Raises:
        LayerError: the layer is not in the model.
        InputError: the block has no one such matrix (several experts), so that nothing closed can be said of it.
    """
    model.choose_layers([layer])
    found = [
        (name, module)
        for name, (module, at) in linear_modules(model.hf, model.blocks).items()
        if at == layer and _MLP_WRITER.search(name)
    ]
    if len(found) != 1:
        raise InputError(
            f"Block {layer} of '{model.source}' has {len(found)} matrices with which one MLP writes its output, and a "
            f"closed form needs exactly one (experts have one each). Keep steering there, or choose another block."
        )
    return found[0]


def oriented(module: nn.Module, delta: Tensor) -> Tensor:
    """Return a delta [d_out, d_in] as the module stores its matrix, or back: Conv1D stores it transposed."""
    return delta.T if isinstance(module, Conv1D) else delta


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
