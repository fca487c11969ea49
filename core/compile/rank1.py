"""The backend ``rank1``: a vector written by a matrix where its input is what the behavior's replies put into it."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from engrain.core.compile.bias import exact_biases
from engrain.core.compile.compiler import Order
from engrain.core.compile.measure import Closeness, Measure
from engrain.core.compile.passage import Passage
from engrain.core.compile.regression import moments, scope_moments, solve, tokens
from engrain.core.compile.target import mlp_writer, oriented
from engrain.core.model import SteerableModel
from engrain.core.progress import Progress
from engrain.core.task_vector import TaskVector

NAME = "rank1"
# Weight of the retained texts, and ridge as a share of the mean square of an input: every pair is tried.
RETAINING = (1.0, 4.0)
RIDGE = (0.01, 0.1)


def compile_rank1(model: SteerableModel, order: Order, progress: Progress) -> TaskVector:
    """Return dW = a w^T on the MLP's writer of each block that is steered, a being strength * vector.

    With x the writer's input, w makes the mean over scope of |a w.x - a|^2 plus mu times the mean over retain of
    |a w.x|^2 plus a ridge least: w = (C_in + mu C_out + lam I)^-1 m_in, with C = E[x x^T] and m = E[x]. In scope both
    are those where replies are predicted plus ``PROMPTS`` times those of the tokens before, elsewhere those of every
    token. Of all pairs (mu, lam) the one is taken whose student is the closest on the held-out parts of the corpus;
    ``origin`` says which and how close. The solve is in float64.

    Raises:
        InputError: no corpus, or a part of it is empty; the spec ``faithful`` (a bias is that), and whatever
            ``compile_bias`` refuses.
    """
    biases = exact_biases(model, order, NAME, "selective")
    corpus = order.texts(NAME)
    scope, retain = (Passage(model, texts, biases.layers[0]) for texts in (corpus.scope, corpus.retain))
    write = writing(model, order, biases, scope, retain)
    teacher = partial(model.steer, *order.actives)
    measure = Measure(model, teacher, corpus.held_scope, corpus.held_retain, biases.layers[0])
    found: list[tuple[Closeness, float, float, TaskVector]] = []
    for mu in RETAINING:
        for ridge in RIDGE:
            made = write(mu, ridge)
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


def writing(
    model: SteerableModel, order: Order, biases: TaskVector, scope: Passage, retain: Passage
) -> Callable[[float, float], TaskVector]:
    """Return what gives the dW of ``compile_rank1`` for a weight mu of the retained texts and a ridge.

    Args:
        model: the base.
        order: what is asked for.
        biases: the vectors as ``exact_biases``.
        scope: texts in scope, up to the first of the blocks that are steered.
        retain: texts to be retained, likewise.
    """
    last = biases.layers[-1]
    writers = dict(mlp_writer(model, layer) for layer in biases.layers)

    def look(passage: Passage, number: int) -> Mapping[str, tuple[Tensor, Tensor]]:
        inputs = passage.see(number, last, writers).inputs
        return {name: (x, torch.ones_like(x[:, :1])) for name, x in inputs.items()}

    with model.steer(*order.actives):
        inside = scope_moments(scope, partial(look, scope))
    (outside,) = moments(retain, partial(look, retain), (tokens,))
    # Where nothing is to be written.
    outside = {name: (square, torch.zeros_like(mean)) for name, (square, mean) in outside.items()}

    def write(mu: float, ridge: float) -> TaskVector:
        tensors = {}
        for name, module in writers.items():
            readout = solve(inside[name], outside[name], mu, ridge)[:, 0]
            shift = biases.tensors[f"{name}.bias"].to(readout)
            tensors[f"{name}.weight"] = oriented(module, torch.outer(shift, readout)).float()
        return TaskVector(order.name, tensors, model.fingerprint)

    return write
