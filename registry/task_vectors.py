"""Task vectors in the registry: published with what they were made from, read by reference or from a folder."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from engrain.core.errors import InputError
from engrain.core.task_vector import DELTA, MANIFEST, TaskVector
from engrain.registry.provenance import Provenance
from engrain.registry.store import Parent, Store, Version


def publish_task_vector(
    store: Store,
    name: str,
    task_vector: TaskVector,
    parents: Sequence[Parent] = (),
    provenance: Provenance | None = None,
) -> Version:
    """Publish a task vector; its manifest is the version's config.

    Args:
        store: where.
        name: under which name.
        task_vector: the task vector.
        parents: what it was made from, as ``Parent("vector", digest)``.
        provenance: how it was made; by default compiled, as its own manifest and the parents say.
    """
    manifest = task_vector.manifest()
    if provenance is None:
        decided = {key: manifest[key] for key in ("origin", "base")}
        provenance = Provenance("compile", decided, data={one.role: one.digest for one in parents})
    # By way of a file, so that a delta of many gigabytes is not held twice.
    with tempfile.TemporaryDirectory() as temporary:
        delta = Path(temporary) / DELTA
        task_vector.write_delta(delta)
        return store.publish(
            "task-vector",
            name,
            config=manifest,
            files={DELTA: delta},
            parents=parents,
            media_types={DELTA: "application/vnd.safetensors"},
            provenance=provenance,
        )


def read_task_vector(store: Store, where: str) -> TaskVector:
    """Return the task vector of a reference (a name alone means the kind ``task-vector``) or of a folder.

    Raises:
        VectorError: the folder holds no task vector.
        UnknownNameError: nothing in the registry is called so.
        InputError: the reference is to something else.
    """
    if (Path(where) / MANIFEST).is_file() or where.startswith((".", "/", "~")):
        return TaskVector.load(where)
    version = store.resolve(where, default_kind="task-vector")
    if version.kind != "task-vector":
        raise InputError(f"'{where}' is a {version.kind}, a task vector is needed.")
    return TaskVector.read(version.path(DELTA), version.config, source=version.reference)
