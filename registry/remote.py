"""Where registries meet: five verbs over keys and bytes, and a folder that has them.

::

    objects/sha256/ab/cdef...                 as in a registry
    manifests/sha256/ab/cdef...               as in a registry
    names/<kind>/<name>/versions/<number>     the version's line
    names/<kind>/<name>/tombstones/<number>   as in a registry
    refs/<kind>/<name>/<alias>                as in a registry

Everything but an alias is created once and never written again; an alias is swapped.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from engrain.core.errors import InputError
from engrain.core.names import NAME
from engrain.registry.blob import chunks, content, create, make_folder, read_now, replace

_HEX = r"sha256/[0-9a-f]{2}/[0-9a-f]{62}"
_NAME = rf"[a-z-]+/{NAME.pattern}"
KEY = re.compile(
    rf"(?:objects|manifests)/{_HEX}|names/{_NAME}/(?:versions|tombstones)/[1-9][0-9]{{0,14}}"
    rf"|refs/{_NAME}/{NAME.pattern}|check/[0-9a-f]{{32}}"
)


class Remote(Protocol):
    """A place that registries are pushed to and pulled from. Keys match `KEY`.

    Every method raises InputError when the place cannot be reached, read or written.
    """

    @property
    def where(self) -> str:
        """What a person calls it."""

    def check(self) -> None:
        """Refuse a place in which two writers could overwrite each other. Called before anything is put.

        Raises:
            InputError: it does not honor conditions, or is something else altogether.
        """

    def get(self, key: str) -> Iterable[bytes] | None:
        """Return the pieces of what has that key, or None when nothing has."""

    def put(self, key: str, source: bytes | Path) -> bool:
        """Create what has that key; return whether it was not there before, else it stays as it was."""

    def swap(self, key: str, raw: bytes, expect: bytes | None) -> bool:
        """Replace what has that key if it is ``expect`` (None: nothing is there); return whether it was."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield the keys that begin so, with their sizes in bytes; what is no key of ours is passed over."""


def check_key(key: str) -> str:
    """Return a key that is one, and so no way out of the remote.

    Raises:
        InputError: it is none.
    """
    if not KEY.fullmatch(key):
        raise InputError(f"{key!r} is no key of a registry; nothing was read or written under it.")
    return key


class FolderRemote:
    """A folder, as on a shared disk. No link in it is followed.

    Args:
        folder: it need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder.expanduser().absolute()

    @property
    def where(self) -> str:
        """Its path."""
        return str(self._root)

    def check(self) -> None:
        """Refuse a folder that is a registry itself: there, only its own commands keep the journal."""
        if (self._root / "registry.json").exists():
            raise InputError(f"'{self._root}' is a registry itself. Push to another folder, or pull from it there.")

    def get(self, key: str) -> Iterable[bytes] | None:
        """See `Remote`."""
        path = self._path(key)
        return self._pieces(path) if os.path.lexists(path) else None

    def put(self, key: str, source: bytes | Path) -> bool:
        """See `Remote`."""
        path = self._path(key)
        try:
            return create(path, content(source), self._prepare(path))
        except OSError as error:
            raise self._refusal(error) from error

    def swap(self, key: str, raw: bytes, expect: bytes | None) -> bool:
        """See `Remote`."""
        path = self._path(key)
        try:
            temporary_folder = self._prepare(path)
            with FileLock(self._root / "locks" / "refs.lock").acquire(poll_interval=0.01):
                if read_now(path) != expect:
                    return False
                replace(path, raw, temporary_folder)
        except OSError as error:
            raise self._refusal(error) from error
        return True

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See `Remote`."""
        for folder, _, files in os.walk(self._root / prefix.rstrip("/"), followlinks=False):
            for file in sorted(files):
                path = Path(folder, file)
                key = path.relative_to(self._root).as_posix()
                about = path.lstat()
                if KEY.fullmatch(key) and stat.S_ISREG(about.st_mode):
                    yield key, about.st_size

    def _path(self, key: str) -> Path:
        path = self._root / check_key(key)
        for folder in path.parents:
            if folder == self._root:
                break
            if folder.is_symlink():
                raise InputError(f"'{folder}' is a symbolic link, which is not followed. Put the folder itself there.")
        return path

    def _pieces(self, path: Path) -> Iterator[bytes]:
        try:
            yield from chunks(path)
        except OSError as error:
            raise self._refusal(error) from error

    def _prepare(self, path: Path) -> Path:
        for folder in (path.parent, self._root / "tmp", self._root / "locks"):
            make_folder(folder)
        return self._root / "tmp"

    def _refusal(self, error: OSError) -> InputError:
        return InputError(f"The remote '{self._root}' cannot be used ({error.strerror or error}); check the folder.")
