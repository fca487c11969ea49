"""The backend ``ablate``: a direction taken out of everything that writes the residual stream."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from engrain.core.capture import PackRunner
from engrain.core.compile.compiler import PROBE, Order, check_base, check_closed_form
from engrain.core.compile.target import WRITERS, choose_matrices, mlp_writer, oriented
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.progress import Progress
from engrain.core.task_vector import TaskVector

NAME = "ablate"
# Of what a block writes. A norm behind a writer lets a share of the direction back in.
_TOLERANCE = 0.01


def compile_ablate(model: SteerableModel, order: Order, progress: Progress) -> TaskVector:
    """Return the weights' change W <- (I - s u u^T) W, u the unit direction and s the strength (Arditi et al., 2024).

    It is made for both writers of each block at which the vector acts, their biases too, with the direction of that
    block; and, where it acts at every block, for the embeddings of tokens and places, with the first block's direction.

    What equals what: with s = 1 nothing that these matrices write has a part along u, so that, with one direction at
    every block, the residual stream has none anywhere; with any s it has 1 - s of it in each write. This is not the
    steered model, which takes the direction out of a block's output alone: there the block's own MLP still reads what
    its attention, and its attention what the blocks before, wrote along u. Where embeddings and unembedding are one
    matrix the unembedding loses the direction too. (arXiv 2406.11717)

    Raises:
        InputError: another spec, operation or positions; two directions at one block; a block with experts; a block
            that does not add what its writers write as it is (a norm behind them), or something is on the model.
    """
    check_closed_form(order, NAME, "ablate")
    check_base(model)
    directions: dict[int, tuple[float, Tensor]] = {}
    for active in order.actives:
        for layer in active.layers:
            if layer in directions:
                raise InputError(f"Block {layer} is given two directions to ablate; compile them one after the other.")
            vector = active.vector.at(layer).double()
            directions[layer] = (active.strength, nn.functional.normalize(vector, dim=0))
    parameters = dict(model.hf.named_parameters())
    whole: dict[str, Tensor] = {}
    strengths: dict[str, float] = {}

    def project(name: str, strength: float, direction: Tensor, columns: Tensor) -> Tensor:
        strengths[name] = strength
        unit = direction.to(columns.device)
        return -torch.outer(unit, unit @ columns.detach().double())

    for layer, (strength, direction) in directions.items():
        mlp_writer(model, layer)
        for path, module in choose_matrices(model, WRITERS, [layer]).items():
            name = f"{path}.weight"
            whole[name] = oriented(module, project(name, strength, direction, oriented(module, module.weight)))
            if module.bias is not None:
                name = f"{path}.bias"
                whole[name] = project(name, strength, direction, module.bias[:, None])[:, 0]
        progress(NAME, 1)
    if directions.keys() == set(range(len(model.blocks))):
        for name in _embeddings(model, parameters):
            whole[name] = project(name, *directions[0], parameters[name].T).T
    origin = order.origin(NAME)
    complete = TaskVector(order.name, {name: delta.float() for name, delta in whole.items()}, model.fingerprint, origin)
    _check_exact(model, directions, complete)
    scaled = {name: strengths[name] * delta for name, delta in complete.tensors.items()}
    return TaskVector(order.name, scaled, model.fingerprint, origin)


def _embeddings(model: SteerableModel, parameters: dict[str, nn.Parameter]) -> Iterator[str]:
    """Yield the names of what the residual stream starts with: the embeddings of tokens and, in GPT-2, of places."""
    starts = {
        module.weight
        for module in model.decoder.modules()
        if isinstance(module, nn.Embedding) and module.embedding_dim == model.width
    }
    yield from (name for name, parameter in parameters.items() if parameter in starts)


def _check_exact(model: SteerableModel, directions: dict[int, tuple[float, Tensor]], complete: TaskVector) -> None:
    with model.compiled(complete):
        written = _written(model)
    for layer, (_, direction) in directions.items():
        along = (written[layer] @ direction.to(written[layer])).abs()
        # Half precision rounds the states that the difference is taken of, and the weights themselves.
        allowed = _TOLERANCE + 4 * torch.finfo(model.hf.dtype).eps
        if (along > allowed * written[layer].norm(dim=-1)).any():
            raise InputError(
                f"Block {layer} of '{model.source}' does not add what its matrices write to the residual stream as it "
                f"is (there is a norm behind them), so that their change takes no direction out; keep steering."
            )


def _written(model: SteerableModel) -> list[Tensor]:
    """Return what every block adds to the residual stream on the probe, [tokens, d_model] each, float32."""
    entered: list[Tensor] = []
    left: list[Tensor] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        entered.append(inputs[0].float().flatten(0, 1))

    # A pack for all of the probe: padded rows, of which the padding is left out.
    runner = PackRunner(model, PROBE, range(len(model.blocks)), trees=False)
    (pack,) = runner.packs()
    with ExitStack() as stack:
        for block in model.blocks:
            stack.callback(block.register_forward_pre_hook(enter).remove)
        runner.observe(pack, lambda layer, hidden: left.append(hidden.float()))
    kept = torch.cat(pack.paths)
    return [(after - before)[kept] for before, after in zip(entered, left, strict=True)]
