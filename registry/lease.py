"""Leases: what a running process uses, so that `gc` leaves it alone.

A lease is a file that its process keeps locked; the system lets go of the lock when the process ends, however it ends.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from engrain.core.errors import IntegrityError
from engrain.registry.blob import is_whole, make_folder
from engrain.registry.reference import check_digest
from engrain.registry.store import Store, writing_to
from engrain.registry.version import Version


@contextmanager
def lease(store: Store, version: Version) -> Iterator[None]:
    """Keep the files of a version in the registry while the context lasts.

    Raises:
        InputError: the registry cannot be written.
        IntegrityError: the files are gone already.
    """
    folder = store.root / "leases"
    path = folder / f"{version.digest.removeprefix('sha256:')}.{uuid.uuid4().hex}"
    lock = FileLock(path, thread_local=False)  # it may end in another thread than it began in
    with writing_to(store.root):
        make_folder(folder)
        lock.acquire()
    try:
        # Only now: a collector that looked before the lease was there may have been at work.
        for digest, size in version.blobs.items():
            if not is_whole(store.object_path(digest), size):
                raise IntegrityError(f"'{version.reference}' was removed meanwhile; take another version.")
        yield
    finally:
        lock.release()
        path.unlink(missing_ok=True)


def leased(store: Store) -> set[str]:
    """Return the manifest digests that running processes hold; leases of ended ones are removed. Call while writing."""
    folder = store.root / "leases"
    found = set()
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if _held(path):
            digest = f"sha256:{path.name.partition('.')[0]}"
            check_digest(digest)
            found.add(digest)
        else:
            path.unlink(missing_ok=True)
    return found


def _held(path: Path) -> bool:
    try:
        with FileLock(path).acquire(blocking=False):
            return False
    except Timeout:
        return True
