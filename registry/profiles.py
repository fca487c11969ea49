"""Profiles in the registry: published with what every reference in them meant at that moment."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engrain.core.errors import InputError, ProfileError
from engrain.registry.reference import locate
from engrain.registry.store import Parent, Store, Version

if TYPE_CHECKING:
    from engrain.core.profile import Entry, Profile

SCHEMA = "engrain.profile/1"


def publish_profile(store: Store, name: str, profile: "Profile") -> Version:
    """Publish an inference configuration, each of its references pinned to a version.

    The config is ``{"schema", "model", "behaviors", "resolved"}``: ``behaviors`` is the profile with numbered
    references, ``resolved`` says for each behavior what was asked for (an alias, or the highest version), and the
    reference and digest that it was. Those versions are the parents. An alias that moves later changes nothing of it.

    Raises:
        ProfileError: an entry that names a file or a folder, or what is not in the registry.
    """
    behaviors: dict[str, dict[str, Any]] = {}
    resolved: dict[str, dict[str, str]] = {}
    parents = []
    for behavior, entry in profile.behaviors.items():
        kind = "vector" if entry.vector is not None else "task-vector"
        asked = str(entry.vector if entry.vector is not None else entry.task_vector)
        version = _resolve(store, behavior, asked, kind)
        pinned = {"vector" if kind == "vector" else "task_vector": version.reference}
        behaviors[behavior] = _given(entry) | pinned
        resolved[behavior] = {"asked": asked, "reference": version.reference, "digest": version.digest}
        parents.append(Parent(kind, version.digest))
    config = {"schema": SCHEMA, "model": profile.model, "behaviors": behaviors, "resolved": resolved}
    return store.publish("profile", name, config=config, files={}, parents=parents)


def _resolve(store: Store, behavior: str, asked: str, kind: str) -> Version:
    mend = "A profile is published with references only; a file has to be published first: engrain import."
    try:
        place = locate(asked, kind)
        if isinstance(place, Path):
            raise InputError(f"'{asked}' is a path.")
        version = store.resolve(place)
    except InputError as error:
        raise ProfileError(f"behaviors.{behavior}: {error} {mend}") from error
    if version.kind != kind:
        raise ProfileError(f"behaviors.{behavior}: '{asked}' is a {version.kind}; name a {kind}.")
    return version


def _given(entry: "Entry") -> dict[str, Any]:
    return {key: value for key, value in asdict(entry).items() if value is not None}
