"""What is still missing behind the steered blocks, made good by the writers of the block above: a second closed form."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
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
    and the MLP's is fitted to what is left behind it. Their inputs say more of the text than those that the start could
    read: it writes wherever a token looks like the scope, here whole replies have been attended to since.

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
    for name in writers:
        behind = _behind_block if name == last else partial(_behind_attention, name)
        student = partial(model.compiled, made)
        inside = scope_moments(scope, partial(_look, scope, layer, {name: writers[name]}, behind, teacher, student))
        (outside,) = moments(
            retain, partial(_look, retain, layer, {name: writers[name]}, behind, nullcontext, student), (tokens,)
        )
        delta = solve(inside[name], outside[name], RETAINING, RIDGE).T
        tensors = {**made.tensors, f"{name}.weight": oriented(writers[name], delta).float().contiguous()}
        made = TaskVector(made.name, tensors, model.fingerprint, made.origin)
    return made


def _behind_block(seen: Seen) -> Tensor:
    return seen.after


def _behind_attention(name: str, seen: Seen) -> Tensor:
    return seen.before + seen.outputs[name]


def _look(
    passage: Passage,
    layer: int,
    writers: Mapping[str, Matrix],
    behind: Callable[[Seen], Tensor],
    teacher: Edit,
    student: Callable[[], AbstractContextManager[object]],
    number: int,
) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return the inputs of the one writer in the student, and what is missing behind it."""
    with teacher():
        wanted = behind(passage.see(number, layer, writers))
    with student():
        seen = passage.see(number, layer, writers)
    return {name: (seen.inputs[name], wanted - behind(seen)) for name in writers}
