"""What a start still lacks behind the steered blocks, made good by the writers of a block above: a closed form."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from engrain.core.compile.passage import Passage, Seen
from engrain.core.compile.regression import moments, scope_moments, solve, tokens
from engrain.core.compile.target import WRITERS, Matrix, choose_matrices, mlp_writer, oriented
from engrain.core.edit import Edit
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector

# Weight of the retained texts, and ridge as a share of the mean square of an input.
RETAINING, RIDGE = 1.0, 0.01


@dataclass(frozen=True)
class Gap:
    """The same texts in the teacher and in the student as it is so far, up to a block behind all that are steered.

    Attributes:
        teacher: steered in scope, the base on what is to be retained.
        student: the same packs.
    """

    teacher: Passage
    student: Passage

    def onward(self, layer: int, teacher: Edit, student: Edit) -> "Gap":
        """Return the gap up to ``layer``, with what makes each of the two on the blocks between."""
        return Gap(self.teacher.onward(layer, teacher), self.student.onward(layer, student))


def correct(
    model: SteerableModel,
    start: TaskVector,
    layer: int,
    matrices: Mapping[str, Matrix],
    scope: Gap,
    retain: Gap,
) -> TaskVector:
    """Return a start with deltas on the writers of one block more, each fitted to what is missing of the teacher.

    With x a writer's input and s the residual stream behind it in the student, and t that stream in the teacher, dW
    makes E|t - s - dW x|^2 least: over scope, weighed as in ``compile_rank1``, plus ``RETAINING`` times the same over
    retain plus a ridge. The attention's writer comes first, and the MLP's is fitted to what is left behind it. Both
    read what attention has gathered of the text since, which the blocks below could not.

    Args:
        model: the base, which nothing is on.
        start: deltas on blocks below.
        layer: the block, up to which the texts have been run.
        matrices: which may be changed, by name; writers that are not among them are left out.
        scope: the texts in scope.
        retain: the texts to be retained.

    Raises:
        InputError: the block has no one MLP.
    """
    last, module = mlp_writer(model, layer)
    attention = {name: one for name, one in choose_matrices(model, WRITERS, [layer]).items() if name != last}
    writers = {name: one for name, one in {**attention, last: module}.items() if name in matrices}
    made = start
    for name, writer in writers.items():
        behind = _behind_block if name == last else partial(_behind_attention, name)
        look = partial(_look, layer, name, writer, behind, partial(model.compiled, made))
        inside = scope_moments(scope.student, partial(look, scope))
        (outside,) = moments(retain.student, partial(look, retain), (tokens,))
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
    gap: Gap,
    number: int,
) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return the writer's input in the student, and what is missing behind it."""
    wanted = behind(gap.teacher.see(number, layer, {name: writer}))
    with student():
        seen = gap.student.see(number, layer, {name: writer})
    return {name: (seen.inputs[name], wanted - behind(seen))}
