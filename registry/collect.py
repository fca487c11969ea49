"""Garbage collection: removes what nothing needs, only on request; what is needed is found out anew each time."""

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engrain.core.errors import IntegrityError
from engrain.registry.blob import remove
from engrain.registry.journal import read_chain
from engrain.registry.lease import leased
from engrain.registry.manifest import parents_of
from engrain.registry.mark import aliases, read_tombstone
from engrain.registry.reference import KINDS, Reference
from engrain.registry.state import replay
from engrain.registry.store import Store

KEPT_TARGETS = 10  # of every alias: a roll back has somewhere to go
GRACE = 24 * 3600  # seconds: a publish that is still at work has written files that nothing refers to yet


@dataclass(frozen=True)
class Collected:
    """What was removed, or would be.

    Attributes:
        files: of objects, manifests and left-over temporary files.
        size: of them all, in bytes.
        kept: versions that were deleted and stay, each with why.
    """

    files: tuple[Path, ...]
    size: int
    kept: tuple[tuple[str, str], ...]


def collect(store: Store, *, dry_run: bool = True, grace: float = GRACE) -> Collected:
    """Remove the objects that no version, no alias's last targets and no running process need.

    The files of a deleted version go; its manifest stays while something that was made from it is there.

    Args:
        store: where.
        dry_run: only say what would be removed.
        grace: files younger than this many seconds stay.

    Raises:
        IntegrityError: the journal or a version is damaged, so that what is needed is not certain; nothing is removed.
    """
    with store.writing() as journal:
        manifests, blobs, kept = _needed(store)
        old = time.time() - grace
        found = dict(_unneeded(store, manifests, blobs))
        files = [path for path, about in found.items() if about.st_mtime <= old]
        size = sum(found[path].st_size for path in files)
        if not dry_run and files:
            intent = journal.begin("gc", files=len(files), size=size)
            for path in files:
                remove(path)
            journal.commit(intent)
    return Collected(tuple(files), size, tuple(kept))


def _needed(store: Store) -> tuple[set[Path], set[Path], list[tuple[str, str]]]:
    """Return the manifests and the blobs that stay, and the deleted versions that stay whole."""
    chain = read_chain(store.root / "journal")
    if chain.faults:
        raise IntegrityError(f"{chain.faults[0].problem} Nothing was removed.")
    targets: dict[str, str] = {}
    for what, track in replay(chain.settled).tracks.items():
        latest: dict[str, None] = dict.fromkeys(target.digest for target in reversed(track.every))
        targets |= dict.fromkeys(list(latest)[:KEPT_TARGETS], f"one of the last {KEPT_TARGETS} targets of {what}")
    running = leased(store)
    whole: dict[str, str] = {}
    deleted: dict[str, tuple[str, str]] = {}
    provenance: set[str] = set()
    kept = []
    for kind in KINDS:
        for name in store.names(kind):
            history = store.history(kind, name)
            for alias in aliases(store.root, kind, name):
                store.ref(alias)  # damaged, it could hide what it points at
            for line in history.lines():
                reference = str(Reference(kind, name, line.number))
                if line.provenance is not None:
                    provenance.add(line.provenance)
                if read_tombstone(history.folder, line.number) is None:
                    whole[line.digest] = kind
                elif line.digest in targets.keys() | running:
                    whole[line.digest] = kind
                    kept.append((reference, targets.get(line.digest, "a running process uses it")))
                else:
                    deleted[line.digest] = (kind, reference)
    manifests, blobs = set(), {store.object_path(digest) for digest in provenance}
    parents: set[str] = set()
    for digest, kind in whole.items():
        manifest = store.read_manifest(digest, kind)
        manifests.add(store.manifest_path(digest))
        blobs |= {store.object_path(layer["digest"]) for layer in (manifest["config"], *manifest["layers"])}
        parents |= {parent.digest for parent in parents_of(manifest)}
    while parents:
        digest = parents.pop()
        path = store.manifest_path(digest)
        if digest in deleted and path not in manifests and path.exists():
            manifests.add(path)
            parents |= {parent.digest for parent in parents_of(store.read_manifest(digest, deleted[digest][0]))}
    return manifests, blobs, kept


def _unneeded(store: Store, manifests: set[Path], blobs: set[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    needed = manifests | blobs
    for pattern in ("objects/sha256/*/*", "manifests/sha256/*/*", "tmp/*"):
        for path in sorted(store.root.glob(pattern)):
            try:
                about = path.lstat()
            except FileNotFoundError:
                continue  # a publisher had it in tmp/, and has given it its name
            if path not in needed and stat.S_ISREG(about.st_mode):
                yield path, about
