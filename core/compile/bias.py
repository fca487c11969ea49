"""The backend ``bias``: what is added to a block's output, as the bias of the matrix that writes it last."""

import math

import torch
from torch import Tensor

from engrain.core.capture import PackRunner
from engrain.core.compile.compiler import PROBE, Order, Spec, check_base, check_closed_form
from engrain.core.compile.target import mlp_writer
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.progress import Progress
from engrain.core.task_vector import TaskVector

NAME = "bias"
# Of the shift. A bias that goes through a norm is wrong by as much as it is long.
_TOLERANCE = 0.02


def compile_bias(model: SteerableModel, order: Order, progress: Progress) -> TaskVector:
    """Return the vectors as biases: strength * vector on the MLP's writer in each of their blocks.

    A block's output is h + MLP(norm(h)), and the last thing that the MLP does is to multiply with its writer; so a bias
    there is the vector at the block's output, at every token. Logits are the steered model's up to rounding. That the
    block is built this way is tried on a few tokens and not read off the family's name.

    Raises:
        InputError: a spec, operation or positions that no bias has; a block with experts; a block that does not add its
            MLP's output as it is (a norm behind the MLP), or something is on the model.
    """
    made = exact_biases(model, order, NAME, "faithful")
    progress(NAME, 1)
    return made


def exact_biases(model: SteerableModel, order: Order, backend: str, spec: Spec) -> TaskVector:
    """Return the biases that are the vectors, for a backend that starts from them.

    Raises:
        InputError: as ``compile_bias``, for this backend and spec.
    """
    check_closed_form(order, backend, "add", spec)
    check_base(model)
    tensors: dict[str, Tensor] = {}
    for active in order.actives:
        for layer in active.layers:
            name = f"{mlp_writer(model, layer)[0]}.bias"
            shift = active.strength * active.vector.at(layer).float()
            tensors[name] = tensors[name] + shift if name in tensors else shift
    made = TaskVector(order.name, tensors, model.fingerprint, order.origin(backend))
    _check_exact(model, order, made)
    return made


def _check_exact(model: SteerableModel, order: Order, made: TaskVector) -> None:
    layers = sorted({layer for active in order.actives for layer in active.layers})
    base = _outputs(model, layers)
    with model.steer(*order.actives):
        steered = _outputs(model, layers)
    with model.compiled(made):
        compiled = _outputs(model, layers)
    for layer, before, wanted, found in zip(layers, base, steered, compiled, strict=True):
        # Token by token: some tokens are a thousand times as long as the others, and rounded as much more coarsely.
        allowed = _TOLERANCE * (wanted - before).norm(dim=-1) + _rounding(model, layer) * wanted.norm(dim=-1)
        if ((found - wanted).norm(dim=-1) > allowed).any():
            raise InputError(
                f"Block {layer} of '{model.source}' does not add its MLP's output to the residual stream as it is "
                f"(there is a norm behind it), so that no bias there is the vector; keep steering."
            )


def _rounding(model: SteerableModel, layer: int) -> float:
    """Return how far apart two ways to compute a block's output may be, relative to it: a few roundings a block."""
    return 2 * math.sqrt(layer + 1) * torch.finfo(model.hf.dtype).eps


def _outputs(model: SteerableModel, layers: list[int]) -> list[Tensor]:
    """Return the outputs of the layers on the probe, [tokens, d_model] each, float32."""
    runner = PackRunner(model, PROBE, layers, trees=False)
    found: dict[int, Tensor] = {}
    for pack in runner.packs():
        kept = torch.cat(pack.paths)
        runner.observe(pack, lambda layer, hidden, kept=kept: found.__setitem__(layer, hidden.float()[kept]))  # type: ignore[misc]
    return [found[layer] for layer in layers]
