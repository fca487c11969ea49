"""Finding what is to be exported."""

from collections.abc import Sequence
from pathlib import Path

from engrain.core.errors import InputError
from engrain.core.task_vector import MANIFEST, TaskVector
from engrain.core.vector import SteeringVector
from engrain.registry.store import Store
from engrain.registry.task_vectors import read_task_vector
from engrain.registry.vectors import read_vector


def read_artifact(store: Store, where: str, kinds: Sequence[str], format_name: str) -> SteeringVector | TaskVector:
    """Return the vector or task vector of a reference, a vector's file or a task vector's folder.

    Args:
        store: where references are resolved; a name alone means the first of the kinds.
        where: what is wanted.
        kinds: what the format can hold.
        format_name: of the format, for messages.

    Raises:
        InputError: it is of another kind than the format can hold.
        UnknownNameError: nothing in the registry is called so.
    """
    path = Path(where)
    if path.is_file() or where.endswith(".safetensors"):
        kind = "vector"
    elif (path / MANIFEST).is_file() or where.startswith((".", "/", "~")):
        kind = "task-vector"
    else:
        version = store.resolve(where, default_kind=kinds[0])
        kind, where = version.kind, version.reference
    if kind not in kinds:
        mend = {"vector": "compile it first: engrain compile", "task-vector": "export it as peft or hf"}.get(kind, "")
        raise InputError(
            f"'{where}' is a {kind}, and {format_name} holds a {' or a '.join(kinds)}; {mend}".rstrip("; ")
        )
    return read_vector(store, where) if kind == "vector" else read_task_vector(store, where)
