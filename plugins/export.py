"""What an exporter is handed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engrain.core.contrast import ContrastPair
    from engrain.core.model import SteerableModel
    from engrain.core.task_vector import TaskVector
    from engrain.core.vector import SteeringVector


@dataclass(frozen=True)
class Export:
    """Something to be written in another program's format.

    Attributes:
        artifact: a vector or a task vector, of a kind that the format was registered for.
        out: the file or folder to write, whole or not at all.
        force: overwrite what is there.
        open_model: loads the model that it was made on; a format that does not need one does not call it.
        rank: for formats of low rank; None leaves the choice to the exporter.
        pairs: contrast pairs of the behavior that no verdict is on, to see what of it is kept; or none.
    """

    artifact: "SteeringVector | TaskVector"
    out: Path
    force: bool
    open_model: "Callable[[], SteerableModel]"
    rank: int | None = None
    pairs: "tuple[ContrastPair, ...]" = ()
