"""What a version was made from, and what was made from it, by digest."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engrain.core.errors import EngrainError
from engrain.registry.manifest import Parent, parents_of
from engrain.registry.reference import KINDS, Reference
from engrain.registry.store import Store, Version

_DIGEST = re.compile(rb'"manifest":"(sha256:[0-9a-f]{64})"')


@dataclass(frozen=True)
class Node:
    """One version in a tree.

    Attributes:
        digest: of its manifest.
        references: what it is called in this registry; the same content may have several names, or none here.
        role: what it is to the node above; empty at the root.
        aliases: what points at it.
        below: the next ones.
        again: it stands in the tree before, and what is below it is drawn there.
    """

    digest: str
    references: tuple[str, ...]
    role: str = ""
    aliases: tuple[str, ...] = ()
    below: tuple["Node", ...] = field(default=())
    again: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return {
            "digest": self.digest,
            "references": list(self.references),
            "role": self.role,
            "aliases": list(self.aliases),
            "below": [node.to_json() for node in self.below],
            "again": self.again,
        }


class Lineage:
    """All edges of a registry, read once.

    Args:
        store: the registry.
        downward: also read what was made from what, for which every manifest is opened.
    """

    def __init__(self, store: Store, *, downward: bool = True) -> None:
        self._store = store
        self._names: dict[str, list[str]] = defaultdict(list)
        self._kinds: dict[str, str] = {}
        self._aliases: dict[str, list[str]] = defaultdict(list)
        self._children: dict[str, list[Parent]] = defaultdict(list)
        for kind in KINDS:
            for name in store.names(kind):
                self._read_name(kind, name)
        if downward:
            for digest in self._kinds:
                for parent in self._parents(digest):
                    self._children[parent.digest].append(Parent(parent.role, digest))

    def names(self, digest: str) -> list[str]:
        """Return what a manifest is called in this registry."""
        return self._names.get(digest, [])

    def ancestors(self, version: Version) -> Node:
        """Return the tree of what a version was made from."""
        return self._tree(version.digest, "", self._parents, set())

    def descendants(self, version: Version) -> Node:
        """Return the tree of what was made from a version."""
        return self._tree(version.digest, "", lambda digest: self._children.get(digest, []), set())

    def _read_name(self, kind: str, name: str) -> None:
        try:
            lines = self._store.history(kind, name).raw_lines()
        except EngrainError:
            return  # a damaged name; `verify` says so
        for number, raw in enumerate(lines, 1):
            if found := _DIGEST.search(raw):
                digest = found[1].decode()
                self._names[digest].append(str(Reference(kind, name, number)))
                self._kinds[digest] = kind
        for alias, ref in self._store.aliases(kind, name).items():
            self._aliases[ref.target.digest].append(f"{kind}/{name}:{alias}")

    def _parents(self, digest: str) -> list[Parent]:
        try:
            return list(parents_of(self._store.read_manifest(digest, self._kinds[digest])))
        except (EngrainError, KeyError):
            return []  # damaged, removed, or in another registry

    def _tree(self, digest: str, role: str, edges: Callable[[str], list[Parent]], drawn: set[str]) -> Node:
        # What is reached by several ways is drawn once: the ways double with each step. A hostile index could even
        # pretend a ring.
        next_ones = edges(digest)
        again = digest in drawn and bool(next_ones)
        drawn.add(digest)
        below = () if again else tuple(self._tree(one.digest, one.role, edges, drawn) for one in next_ones)
        return Node(digest, tuple(self.names(digest)), role, tuple(self._aliases.get(digest, ())), below, again)
