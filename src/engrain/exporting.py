"""Finding what is to be exported, and pairs that say what of it is kept."""

from collections.abc import Callable, Sequence
from pathlib import Path

from engrain.compiling import subjects_of
from engrain.core.contrast import ContrastPair
from engrain.core.errors import InputError, PluginError
from engrain.core.task_vector import TaskVector
from engrain.core.vector import SteeringVector
from engrain.plugins.manager import Plugins
from engrain.registry.reference import locate
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
    place = locate(where, kinds[0])
    if isinstance(place, Path):
        kind = "vector" if place.is_file() or where.endswith(".safetensors") else "task-vector"
    else:
        version = store.resolve(place)
        kind, where = version.kind, version.reference
    if kind not in kinds:
        mend = {"vector": "compile it first: engrain compile", "task-vector": "export it as peft or hf"}.get(kind, "")
        raise InputError(
            f"'{where}' is a {kind}, and {format_name} holds a {' or a '.join(kinds)}; {mend}".rstrip("; ")
        )
    return read_vector(store, where) if kind == "vector" else read_task_vector(store, where)


def calibration_pairs(
    plugins: Plugins, store: Store, where: str, say: Callable[[str], None]
) -> tuple[ContrastPair, ...]:
    """Return ordinary calibration pairs of the behaviors in a task vector; none for a folder, or of unknown behaviors.

    Args:
        plugins: where behaviors are found.
        store: where references are resolved.
        where: what is exported, as ``read_artifact`` takes it.
        say: tells the person which behaviors are unknown, and what follows of it for an adapter.

    Raises:
        IntegrityError: a stored file is damaged.
        PluginError: a plugin is broken.
    """
    try:
        place = locate(where, "task-vector")
        if isinstance(place, Path):
            return ()
        subjects = subjects_of(plugins, store, store.resolve(place))
    except PluginError:
        raise
    except InputError as error:
        say(f"note: without calibration pairs of its behaviors the rank follows the size of the change alone ({error})")
        return ()
    return tuple(pair for subject in subjects for pair in subject.calibration.ordinary)
