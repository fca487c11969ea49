"""Two versions side by side."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engrain.registry.manifest import titled
from engrain.registry.version import Version


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same.

    Attributes:
        where: ``config.KEY.KEY``, ``file TITLE`` or ``parent ROLE``.
        first, second: what it is in either version; None where it is not there.
    """

    where: str
    first: Any
    second: Any


def compare(first: Version, second: Version) -> list[Difference]:
    """Return where two versions differ: in the config, key by key, in their files and their parents, by digest."""
    found = []
    for where, one, other in (
        ("config", dict(_flat("config", first.config)), dict(_flat("config", second.config))),
        ("file", _files(first), _files(second)),
        ("parent", _parents(first), _parents(second)),
    ):
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                name = key if where == "config" else f"{where} {key}"
                found.append(Difference(name, one.get(key), other.get(key)))
    return found


def _flat(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{where}.{key}", inner)
    else:
        yield where, value


def _files(version: Version) -> dict[str, str]:
    return {title: f"{layer['digest']} ({layer['size']} bytes)" for title, layer in titled(version.manifest).items()}


def _parents(version: Version) -> dict[str, str]:
    roles: dict[str, list[str]] = {}
    for parent in version.parents:
        roles.setdefault(parent.role, []).append(parent.digest)
    return {role: ", ".join(digests) for role, digests in roles.items()}
