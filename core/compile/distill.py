"""The backend ``distill``: deltas trained until the model's own activations and replies are the steered ones."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch

from engrain.core.compile import ranks
from engrain.core.compile.bias import exact_biases
from engrain.core.compile.checkpoint import Checkpoint
from engrain.core.compile.compiler import Order, check_base
from engrain.core.compile.corpus import Corpus
from engrain.core.compile.correction import RETAINING, RIDGE, Gap, correct
from engrain.core.compile.delta import TrainableDelta, frozen
from engrain.core.compile.entry import checkpointing
from engrain.core.compile.lesson import Lesson
from engrain.core.compile.measure import Measure
from engrain.core.compile.objective import Objective
from engrain.core.compile.passage import Passage
from engrain.core.compile.passes import MEMORY, Course
from engrain.core.compile.rank1 import writing
from engrain.core.compile.student import LOOK, Student
from engrain.core.compile.target import WRITERS, Matrix, choose_matrices, mlp_writer
from engrain.core.edit import Edit
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.progress import Progress
from engrain.core.task_vector import TaskVector

NAME = "distill"
# Blocks below the first steered one and above the last that are trained where none are named.
BELOW, ABOVE = 3, 2


def compile_distill(model: SteerableModel, order: Order, progress: Progress) -> TaskVector:
    """Return deltas with which the model is like the steered one in scope and like the base on the retained texts.

    Starts from the readout of ``rank1``, and from what the writers of the two blocks above can make good of it
    (``correct``), where that is possible, and elsewhere from nothing with ``Recipe.from_nothing``. Trains the writers
    of the steered block, of the three below it and of the two above where nothing else is ordered. The loss is that of
    ``Objective`` on scope, plus ``recipe.retain`` times the same on retain, with hidden states compared at the steered
    block, in the middle above it and at the last one. For the spec ``faithful`` the teacher is steered on retain as
    well. The closest on the held-out texts is kept, and scaled up within ``recipe.drift``; training ends when three
    looks in a row are no better, or where the loss is no number. ``origin`` has the curve, why it ended, and the scale.

    With a workspace it goes on where it was interrupted, and ends the same to the bit. On a model that is split among
    processes (``ranks.shard``) each of them learns from its share of a step's packs, and all return the same.

    Raises:
        InputError: no corpus or an empty part of it, something is on the model, steering changes nothing on the texts,
            or the recipe's optimizer projects none of the matrices.
        UnknownNameError: no matrix is called like the target.
    """
    check_base(model)
    corpus = order.texts(NAME)
    steered = sorted({layer for active in order.actives for layer in active.layers})
    above = range(steered[-1] + 1, min(steered[-1] + 1 + ABOVE, len(model.blocks)))
    layers = order.layers or tuple(range(max(0, steered[0] - BELOW), above.stop))
    matrices = choose_matrices(model, order.target or WRITERS, layers)
    biases = _closed_form(model, order, above, matrices)
    if biases is None:
        order = replace(order, recipe=order.recipe.from_nothing())
    order = replace(order, recipe=order.recipe.dealt_to(ranks.count()))
    key = _key(model, order, sorted(matrices))
    before = None if order.workspace is None else Checkpoint.load(order.workspace, key)

    start = None if before or biases is None else _start(model, order, biases, above, matrices, progress)
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
    taken = student.turn_up(measure, math.inf if order.spec == "faithful" else order.recipe.drift)
    made = {
        "recipe": order.recipe.to_json(),
        "seed": order.seed,
        "matrices": len(matrices),
        "corpus": corpus.digest,
        "curve": student.curve,
        "stopped": student.stopped,
        "step": student.best["step"],
        **taken,
    }
    return student.delta.task_vector(order.name, order.origin(NAME, **made))


def _look(student: Student, order: Order, measure: Measure, key: str) -> None:
    student.look(measure, faithful=order.spec == "faithful")
    if order.workspace is not None:
        student.save(order.workspace, key)


def _closed_form(
    model: SteerableModel, order: Order, above: Sequence[int], matrices: Mapping[str, Matrix]
) -> TaskVector | None:
    """Return what ``rank1`` starts from, or None: for experts, norms behind the MLP, vectors at some positions, or
    where the matrix that it would be written by is not to be changed.
    """
    order = replace(order, spec="selective", target=None, layers=None)
    try:
        for layer in above:
            mlp_writer(model, layer)
        biases = exact_biases(model, order, NAME, "selective")
        return biases if all(mlp_writer(model, layer)[0] in matrices for layer in biases.layers) else None
    except InputError:
        return None


def _start(
    model: SteerableModel,
    order: Order,
    biases: TaskVector,
    above: Sequence[int],
    matrices: Mapping[str, Matrix],
    progress: Progress,
) -> TaskVector:
    """Return the closed forms: ``rank1``, and what the blocks above make good of it."""
    corpus = order.texts(NAME)
    scope, retain = (Passage(model, texts, biases.layers[0]) for texts in (corpus.scope, corpus.retain))
    made = writing(model, order, biases, scope, retain)(RETAINING, RIDGE)
    progress("closed forms", 1)
    gaps = [Gap(scope, scope), Gap(retain, retain)]
    teachers: tuple[Edit, Edit] = (partial(model.steer, *order.actives), nullcontext)
    # The states of all texts behind a block are 90 MB of the demo model; those behind the one before are let go.
    del scope, retain
    for layer in above:
        for at, teacher in enumerate(teachers):
            gaps[at] = gaps[at].onward(layer, teacher, partial(model.compiled, made))
        made = correct(model, made, layer, matrices, *gaps)
        progress("closed forms", 1)
    return made


def _taught(
    model: SteerableModel, order: Order, corpus: Corpus, entry: int, steered: Sequence[int]
) -> tuple[list[Lesson], Measure]:
    """Return what is taught, and by what the student is judged."""
    teacher = partial(model.steer, *order.actives)
    compared = (*steered, (steered[-1] + len(model.blocks)) // 2)
    faithful = order.spec == "faithful"
    # A process that has kept its pack would not take part in the pass that the others make: then nothing is kept.
    memory = MEMORY if ranks.count() == 1 else 0
    scope = Course(model, corpus.scope, entry, compared, teacher, memory)
    retain = Course(model, corpus.retain, entry, compared, teacher if faithful else None, memory)
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
