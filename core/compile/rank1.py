"""The backend ``rank1``: a vector written by a matrix where its input is what the behavior's replies put into it."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engrain.core.capture import PackRunner
from engrain.core.compile.bias import exact_biases
from engrain.core.compile.compiler import Order, Progress
from engrain.core.compile.measure import Closeness, Measure
from engrain.core.compile.target import Matrix, mlp_writer, oriented
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.scoring import scored_places
from engrain.core.task_vector import TaskVector

NAME = "rank1"
# Weight of the retained texts, and ridge as a share of the mean square of an input: every pair is tried.
RETAINING = (0.0, 1.0, 4.0)
RIDGE = (0.01, 0.1)


def compile_rank1(model: SteerableModel, order: Order, progress: Progress) -> TaskVector:
    """Return dW = a w^T on the MLP's writer of each block that is steered, a being strength * vector.

    With x the writer's input, w makes the mean over scope of |a w.x - a|^2 plus mu times the mean over retain of
    |a w.x|^2 plus a ridge least: w = (C_in + mu C_out + lam I)^-1 m_in, with C = E[x x^T] and m = E[x]. In scope that
    is where replies are predicted, elsewhere every token. Of all pairs (mu, lam) the one is taken whose student is the
    closest on the held-out parts of the corpus; ``origin`` says which and how close. The solve is in float64.

    Raises:
        InputError: no corpus, or a part of it is empty; the spec ``faithful`` (a bias is that), and whatever
            ``compile_bias`` refuses.
    """
    biases = exact_biases(model, order, NAME, "selective")
    corpus = order.texts(NAME)
    teacher = partial(model.steer, *order.actives)
    writers = dict(mlp_writer(model, layer) for layer in biases.layers)
    with teacher():
        inside = _moments(model, corpus.scope, writers, biases.layers, replies=True)
    outside = _moments(model, corpus.retain, writers, biases.layers, replies=False)
    measure = Measure(model, teacher, corpus.held_scope, corpus.held_retain, biases.layers[0])
    found: list[tuple[Closeness, float, float, TaskVector]] = []
    for mu in RETAINING:
        for ridge in RIDGE:
            tensors = {}
            for name, module in writers.items():
                readout = solve(*inside[name], outside[name][0], mu, ridge)
                shift = biases.tensors[f"{name}.bias"].to(readout)
                tensors[f"{name}.weight"] = oriented(module, torch.outer(shift, readout)).float()
            made = TaskVector(order.name, tensors, model.fingerprint)
            found.append((measure.closeness(partial(model.compiled, made)), mu, ridge, made))
            progress(NAME, 1)
    closeness, mu, ridge, made = min(found, key=lambda one: one[0].loss)
    chosen = {
        "retaining": mu,
        "ridge": ridge,
        "kl_recovered": closeness.kl_recovered,
        "drift": closeness.drift,
        "corpus": corpus.digest,
    }
    return TaskVector(order.name, made.tensors, model.fingerprint, order.origin(NAME, **chosen))


def solve(inside: Tensor, mean: Tensor, outside: Tensor, mu: float, ridge: float) -> Tensor:
    """Return w = (C_in + mu C_out + lam I)^-1 m_in, lam being ``ridge`` times the mean of the sum's diagonal.

    Args:
        inside: C_in, [d_in, d_in].
        mean: m_in, [d_in].
        outside: C_out, [d_in, d_in].
        mu: how much the retained texts weigh.
        ridge: share of the mean square of an input.

    Returns:
        [d_in], float64.
    """
    total = inside + mu * outside
    eye = torch.eye(len(total), dtype=total.dtype, device=total.device)
    found: Tensor = torch.linalg.solve(total + ridge * total.diagonal().mean() * eye, mean)
    return found


def _moments(
    model: SteerableModel,
    sequences: Sequence[Encoded],
    writers: dict[str, Matrix],
    layers: Sequence[int],
    *,
    replies: bool,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return E[x x^T] and E[x] of the writers' inputs, where replies are predicted or at every token, float64."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            seen[name] = inputs[0].detach().flatten(0, -2).float()

        return hook

    sums: dict[str, tuple[Tensor, Tensor]] = {}
    tokens = 0
    # The last block's output is of no use, but ends the pass behind it. As if learning: with every token of a sequence
    # on its path, one that several share counts for each of them, the start that all share among these.
    runner = PackRunner(model, sequences, [max(layers)], float32=True, learning=True)
    with ExitStack() as stack, torch.no_grad():
        for name, module in writers.items():
            stack.callback(module.register_forward_pre_hook(watch(name)).remove)
        for pack in runner.packs():
            runner.observe(pack, lambda layer, states: None)
            places = scored_places(pack)[0] if replies else torch.cat(pack.paths)
            tokens += len(places)
            for name, inputs in seen.items():
                own = inputs[places.to(inputs.device)]
                square, total = (own.T @ own).double(), own.double().sum(0)
                before = sums.get(name)
                sums[name] = (square, total) if before is None else (before[0] + square, before[1] + total)
    return {name: (square / tokens, total / tokens) for name, (square, total) in sums.items()}
