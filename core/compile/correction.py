"""What a start still lacks behind the steered blocks, made good by the writers of a block above: a closed form."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial

from torch import Tensor

from engrain.core.compile.compiler import Order
from engrain.core.compile.passage import Passage, Seen
from engrain.core.compile.passes import Edit
from engrain.core.compile.regression import moments, scope_moments, solve, tokens
from engrain.core.compile.target import WRITERS, Matrix, choose_matrices, mlp_writer, oriented
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector

# Weight of the retained texts, and ridge as a share of the mean square of an input.
RETAINING, RIDGE = 1.0, 0.01


def correct(
    model: SteerableModel,
    order: Order,
    start: TaskVector,
    layer: int,
    matrices: Mapping[str, Matrix],
    scope: Passage,
    retain: Passage,
) -> TaskVector:
    """Return a start with deltas on the writers of one block more, each fitted to what is missing of the teacher.

    With x a writer's input and s the residual stream behind it in the student as it is so far, and t that stream in the
    teacher, steered in scope and the base on retain, dW makes E|t - s - dW x|^2 least: over scope, weighed as in
    ``compile_rank1``, plus ``RETAINING`` times the same over retain plus a ridge. The attention's writer comes first,
    and the MLP's is fitted to what is left behind it. Both read what attention has gathered of the text since, which
    the blocks below could not.

    Args:
        model: the base, which nothing is on.
        order: what is compiled.
        start: deltas on blocks below.
        layer: the block, behind all that are steered.
        matrices: which may be changed, by name; writers that are not among them are left out.
        scope: the texts in scope, up to a block that neither start nor steering changes anything below.
        retain: the texts to be retained, likewise.

    Raises:
        InputError: the block has no one MLP.
    """
    teacher = partial(model.steer, *order.actives)
    last, module = mlp_writer(model, layer)
    attention = {name: one for name, one in choose_matrices(model, WRITERS, [layer]).items() if name != last}
    writers = {name: one for name, one in {**attention, last: module}.items() if name in matrices}
    made = start
    for name, writer in writers.items():
        behind = _behind_block if name == last else partial(_behind_attention, name)
        look = partial(_look, layer, name, writer, behind, partial(model.compiled, made))
        inside = scope_moments(scope, partial(look, teacher, scope))
        (outside,) = moments(retain, partial(look, nullcontext, retain), (tokens,))
        delta = solve(inside[name], outside[name], RETAINING, RIDGE).T
        tensors = {**made.tensors, f"{name}.weight": oriented(writer, delta).float().contiguous()}
        made = TaskVector(made.name, tensors, model.fingerprint, made.origin)
    return made


def _behind_block(seen: Seen) -> Tensor:
    return seen.after


def _behind_attention(name: str, seen: Seen) -> Tensor:
    return seen.before + seen.outputs[name]


def _look(
    layer: int,
    name: str,
    writer: Matrix,
    behind: Callable[[Seen], Tensor],
    student: Edit,
    teacher: Edit,
    passage: Passage,
    number: int,
) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return the writer's input in the student, and what is missing behind it."""
    with teacher():
        wanted = behind(passage.see(number, layer, {name: writer}))
    with student():
        seen = passage.see(number, layer, {name: writer})
    return {name: (seen.inputs[name], wanted - behind(seen))}
