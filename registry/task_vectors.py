"""Task vectors in the registry: published with what they were made from, read by reference or from a folder."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engrain.core.edit import Applied
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.task_vector import DELTA, TaskVector
from engrain.registry.provenance import Provenance
from engrain.registry.reference import Reference, locate
from engrain.registry.store import Parent, Store, Version
from engrain.registry.vectors import parse_steering

if TYPE_CHECKING:
    from engrain.core.profile import Profile


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


def read_edits(model: SteerableModel, store: Store, text: str) -> dict[str, Applied]:
    """Return the task vectors that ``text`` names (``REF=SCALE`` comma-separated), by what they were called in it.

    Raises:
        FingerprintError: one was made on another model.
        StrengthError: a scale that is not a finite number.
        InputError: one is named twice.
    """
    found: dict[str, Applied] = {}
    for where, scale in parse_steering(text, "scale"):
        if where in found:
            raise InputError(f"The task vector '{where}' is named twice; once, with one scale, is meant.")
        found[where] = _applied(model, store, where, scale)
    return found


def read_profile_edits(
    model: SteerableModel, store: Store, profile: "Profile", *, disabled: bool = False
) -> dict[str, Applied]:
    """Return the task vectors of a profile, by behavior; its vectors are ``activate_profile``.

    Args:
        model: what they are to be applied to.
        store: where references are resolved.
        profile: the inference configuration.
        disabled: include the entries that are off.

    Raises:
        FingerprintError: one was made on another model.
    """
    entries = profile.behaviors if disabled else profile.enabled
    return {
        name: _applied(model, store, entry.task_vector, entry.scale)
        for name, entry in entries.items()
        if entry.task_vector is not None
    }


def _applied(model: SteerableModel, store: Store, where: str, scale: float | None) -> Applied:
    task_vector = read_task_vector(store, where)
    model.check_task_vector(task_vector)
    return Applied(task_vector, 1.0 if scale is None else scale)


def read_task_vector(store: Store, where: str) -> TaskVector:
    """Return the task vector of a reference (a name alone means the kind ``task-vector``) or of a folder.

    Raises:
        VectorError: the folder holds no task vector.
        UnknownNameError: nothing in the registry is called so.
        InputError: the reference is to something else.
    """
    place = locate(where, "task-vector")
    if isinstance(place, Path):
        return TaskVector.load(place)
    version = resolve_task_vector(store, place)
    return TaskVector.read(version.path(DELTA), version.config, source=version.reference)


def resolve_task_vector(store: Store, reference: Reference) -> Version:
    """Return the task vector that a reference means now.

    Raises:
        UnknownNameError: nothing in the registry is called so.
        InputError: the reference is to something else.
    """
    version = store.resolve(reference)
    if version.kind != "task-vector":
        raise InputError(f"'{reference}' is a {version.kind}, a task vector is needed.")
    return version
