"""The backend ``distill``: deltas trained until the model's own activations and replies are the steered ones."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from engrain.core.compile.bias import exact_biases
from engrain.core.compile.checkpoint import Checkpoint
from engrain.core.compile.compiler import Order, Progress, check_base
from engrain.core.compile.corpus import Corpus
from engrain.core.compile.correction import correct
from engrain.core.compile.delta import TrainableDelta, frozen
from engrain.core.compile.entry import checkpointing
from engrain.core.compile.lesson import Lesson
from engrain.core.compile.measure import Measure
from engrain.core.compile.objective import Objective
from engrain.core.compile.passage import Passage
from engrain.core.compile.passes import Course
from engrain.core.compile.rank1 import compile_rank1
from engrain.core.compile.student import LOOK, Student
from engrain.core.compile.target import WRITERS, choose_matrices
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector

NAME = "distill"
# Blocks below the steered one that are trained where none are named.
_BELOW = 3


def compile_distill(model: SteerableModel, order: Order, progress: Progress) -> TaskVector:
    """Return deltas with which the model is like the steered one in scope and like the base on the retained texts.

    Starts from ``rank1`` where that is possible, and trains the writers of the steered block and of the three below it
    where nothing else is ordered. The loss is that of ``Objective`` on scope, plus ``recipe.retain`` times the same on
    retain, with hidden states compared at the steered block, in the middle above it and at the last one. For the spec
    ``faithful`` the teacher is steered on retain as well. The closest on the held-out texts is kept; training ends when
    three looks in a row are no better, or where the loss is no number. ``origin`` has the curve and why it ended.

    Where no matrices are ordered, the writers of the block above are then fitted to what is still missing
    (``correct``). This is kept where it comes closer on the held-out texts; ``origin`` says so.

    With a workspace it goes on where it was interrupted, and ends the same to the bit.

    Raises:
        InputError: no corpus or an empty part of it, something is on the model, steering changes nothing on the texts,
            or the recipe's optimizer projects none of the matrices.
        UnknownNameError: no matrix is called like the target.
    """
    check_base(model)
    corpus = order.texts(NAME)
    steered = sorted({layer for active in order.actives for layer in active.layers})
    layers = order.layers or tuple(range(max(0, steered[0] - _BELOW), steered[-1] + 1))
    matrices = choose_matrices(model, order.target or WRITERS, layers)
    key = _key(model, order, sorted(matrices))
    before = None if order.workspace is None else Checkpoint.load(order.workspace, key)

    start = _start(model, order, progress) if before is None else None
    student = Student(TrainableDelta(model, matrices, start), order.recipe, order.seed)
    lessons, measure = _taught(model, order, corpus, min(*layers, *steered), steered)
    if before is not None:
        student.restore(before)
        progress(NAME, student.step)
    else:
        _look(student, order, measure, key)
    while student.goes_on:
        with frozen(model), checkpointing(model, min(layers)) if order.recipe.checkpointing else nullcontext():
            student.learn(lessons)
        progress(NAME, 1)
        if student.step % LOOK == 0 or not student.goes_on:
            _look(student, order, measure, key)
    student.take_best()
    trained = student.delta.task_vector(order.name, {})
    found, best = trained, student.best
    if order.target is None and order.layers is None:
        found, best = _corrected(model, order, trained, best, measure, layers)
    made = {
        "recipe": order.recipe.to_json(),
        "seed": order.seed,
        "matrices": len(found.tensors),
        "corpus": corpus.digest,
        "curve": student.curve,
        "stopped": student.stopped,
        "step": student.best["step"],
        "corrected": found is not trained,
        **{name: best[name] for name in ("kl_recovered", "drift")},
    }
    return TaskVector(order.name, found.tensors, model.fingerprint, order.origin(NAME, **made))


def _corrected(
    model: SteerableModel,
    order: Order,
    trained: TaskVector,
    best: dict[str, Any],
    measure: Measure,
    layers: Sequence[int],
) -> tuple[TaskVector, dict[str, Any]]:
    """Return the task vector with the block above fitted, and how close that is, or both as they were."""
    above = max(layers) + 1
    if above == len(model.blocks):
        return trained, best
    corpus = order.texts(NAME)
    try:
        # Told from a block's structure: one without a norm behind its MLP adds what its writers write as it is.
        exact_biases(model, replace(order, spec="selective"), NAME, "selective")
        scope, retain = (Passage(model, texts, min(layers)) for texts in (corpus.scope, corpus.retain))
        made = correct(model, order, trained, above, scope, retain)
    except InputError:
        return trained, best
    seen = measure.closeness(partial(model.compiled, made))
    short = 1 - seen.kl_recovered if order.spec == "faithful" else seen.loss
    if short >= best["short"]:
        return trained, best
    return made, {"kl_recovered": seen.kl_recovered, "drift": seen.drift, "short": short}


def _look(student: Student, order: Order, measure: Measure, key: str) -> None:
    student.look(measure, faithful=order.spec == "faithful")
    if order.workspace is not None:
        student.save(order.workspace, key)


def _start(model: SteerableModel, order: Order, progress: Progress) -> TaskVector | None:
    """Return the closed form, or None where there is none: for experts, norms behind the MLP, or some positions."""
    try:
        return compile_rank1(model, replace(order, spec="selective", target=None, layers=None), progress)
    except InputError:
        return None


def _taught(
    model: SteerableModel, order: Order, corpus: Corpus, entry: int, steered: Sequence[int]
) -> tuple[list[Lesson], Measure]:
    """Return what is taught, and by what the student is judged."""
    teacher = partial(model.steer, *order.actives)
    compared = (*steered, (steered[-1] + len(model.blocks)) // 2)
    faithful = order.spec == "faithful"
    scope = Course(model, corpus.scope, entry, compared, teacher)
    retain = Course(model, corpus.retain, entry, compared, teacher if faithful else None)
    lessons = [
        Lesson(scope, Objective(model, scope, hidden=order.recipe.hidden)),
        Lesson(
            retain,
            Objective(model, retain, nullcontext if faithful else teacher, order.recipe.hidden),
            order.recipe.retain,
        ),
    ]
    held = (*corpus.held_scope, *corpus.held_retain) if faithful else corpus.held_scope
    return lessons, Measure(model, teacher, held, corpus.held_retain, entry)


def _key(model: SteerableModel, order: Order, matrices: Sequence[str]) -> str:
    """Return what a checkpoint is of: from anything else, training starts anew."""
    vectors = [hashlib.sha256(active.vector.to_safetensors()).hexdigest() for active in order.actives]
    made = order.origin(NAME, recipe=order.recipe.to_json(), corpus=order.texts(NAME).digest, seed=order.seed)
    whole = [model.fingerprint.to_json(), made, vectors, list(matrices), torch.__version__]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
