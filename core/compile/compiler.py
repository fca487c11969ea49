"""What a backend of compiling is asked for, and what it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from engrain.core.compile.corpus import Corpus
from engrain.core.compile.recipe import Recipe
from engrain.core.composition import Active
from engrain.core.errors import InputError, UnknownNameError
from engrain.core.model import SteerableModel
from engrain.core.names import check_name
from engrain.core.packing import Encoded
from engrain.core.progress import Progress
from engrain.core.task_vector import TaskVector

Spec = Literal["selective", "faithful"]
SPECS: tuple[str, ...] = get_args(Spec)

# Enough to see how a block is built; any tokens will do, and every vocabulary has these.
PROBE = (Encoded((1, 2, 3, 4), (5, 6)), Encoded((7, 5), (8, 2, 6)))


@dataclass(frozen=True)
class Order:
    """What is to be compiled, and how.

    Attributes:
        name: of the task vector.
        actives: the vectors in use that the compiled weights take the place of.
        spec: ``faithful``, like the steered model on every text; ``selective``, like it in scope and like the base
            elsewhere.
        corpus: the texts, for backends that look at any.
        target: which matrices, as ``choose_matrices`` takes it; None leaves the choice to the backend.
        layers: which decoder blocks, counted from 0; None leaves the choice to the backend.
        seed: of all drawing.
        recipe: how a backend that trains does it.
        workspace: folder of a backend that can be interrupted; without one it starts anew.

    Raises:
        InputError: a name that names nothing, or no vector.
        UnknownNameError: a spec that there is not.
    """

    name: str
    actives: tuple[Active, ...]
    spec: Spec
    corpus: Corpus | None = None
    target: str | None = None
    layers: tuple[int, ...] | None = None
    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    workspace: Path | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "task vector")
        if self.spec not in SPECS:
            raise UnknownNameError("spec", self.spec, SPECS)
        if not self.actives:
            raise InputError(f"There is nothing to compile into '{self.name}'; name at least one vector.")

    def texts(self, backend: str) -> Corpus:
        """Return the corpus, for a backend that cannot do without.

        Raises:
            InputError: there is none, or a part of it is empty.
        """
        if self.corpus is None:
            raise InputError(f"'{backend}' looks at texts; order it with a corpus.")
        for part in ("scope", "retain", "held_scope", "held_retain"):
            if not any(one.prompt or one.reply for one in getattr(self.corpus, part)):
                raise InputError(
                    f"The corpus of '{self.name}' has no text in '{part}'; '{backend}' needs some of each part."
                )
        return self.corpus

    def origin(self, backend: str, **made: Any) -> Mapping[str, Any]:
        """Return what a task vector says of its making; plain JSON."""
        vectors = [{"name": active.vector.name, **active.to_json()} for active in self.actives]
        return {"backend": backend, "spec": self.spec, "vectors": vectors, **made}


class Compiler(Protocol):
    """A backend: makes the task vector that takes the place of steering.

    It leaves the model as it was, and raises ``InputError`` with the reason for what it cannot do: nothing is compiled
    into less than was ordered.
    """

    def __call__(self, model: SteerableModel, order: Order, progress: Progress, /) -> TaskVector: ...


def check_base(model: SteerableModel) -> None:
    """Check that nothing is on the model: what is compiled is a change of the base.

    Raises:
        InputError: a task vector or a steering vector is on it.
    """
    on = [*model.edits.applied, *(handle.active.vector.name for handle in model.steering.handles)]
    if on:
        raise InputError(f"'{on[0]}' is on '{model.source}'; take it off before something is compiled.")


def check_closed_form(order: Order, backend: str, operation: str, spec: Spec = "faithful") -> None:
    """Check that a backend that knows its matrices, at every token, is asked for nothing else.

    Args:
        order: what is asked for.
        backend: its name.
        operation: the only one that it compiles.
        spec: likewise.

    Raises:
        InputError: another operation, a part of the tokens, kept norms, or a spec or choice of matrices it has not.
    """
    for active in order.actives:
        what = f"'{active.vector.name}' cannot be compiled as '{backend}'"
        if active.operation != operation:
            raise InputError(f"{what}: its operation is '{active.operation}', this backend compiles '{operation}'.")
        if active.positions != "all":
            raise InputError(
                f"{what}: it acts at positions '{active.positions}', and weights act at every token. "
                f"Calibrate it with the positions 'all', or keep steering."
            )
        if active.preserve_norm:
            raise InputError(f"{what}: it keeps the length of hidden states, which no fixed change of weights does.")
    if order.spec != spec:
        raise InputError(f"'{backend}' compiles the spec '{spec}' alone; order that, or take another backend.")
    if order.target is not None or order.layers is not None:
        raise InputError(f"'{backend}' has no choice of matrices or blocks; leave target and layers out.")
