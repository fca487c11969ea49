"""Immutable files named by their digest: read in pieces, hashed, and never taken for what they are not."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from engrain.core.errors import ConflictError, InputError, IntegrityError
from engrain.core.files import drafted
from engrain.registry.reference import check_digest

MEND = "Restore it from a copy, or from a remote: engrain registry verify --repair --remote REMOTE."
_CHUNK = 1 << 20
REHASH_LIMIT = 256 << 20  # bytes; sha256 runs at 1 GB/s or more, so hashing below it costs at most 0.3 s


def fan_out(folder: Path, digest: str) -> Path:
    """Return ``folder/sha256/ab/cdef...``; raises InputError when it is not a digest."""
    check_digest(digest)
    return folder / "sha256" / digest[7:9] / digest[9:]


def digest_of(path: Path) -> str:
    """Return the digest that `fan_out` made a path of; ``digest_of(fan_out(folder, digest)) == digest``."""
    return f"sha256:{path.parent.name}{path.name}"


def sha256(raw: bytes) -> str:
    """Return the digest of ``raw``, ``sha256:<64 hex>``."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """Open a file for unbuffered reading, unless it is a link, a folder, or anything that could block.

    Raises:
        OSError: it is, or it cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, not the file itself", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(handle, "rb", buffering=0)


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a regular file, 1 MiB at a time.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path) as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def content(source: bytes | Path) -> Iterator[bytes]:
    """Yield what a caller wants stored, in pieces.

    Raises:
        InputError: it is a path that cannot be read.
    """
    if isinstance(source, bytes):
        yield source
        return
    try:
        yield from chunks(source)
    except OSError as error:
        raise InputError(f"'{source}' cannot be read ({error.strerror}). Give a regular file of yours.") from error


def measure(pieces: Iterable[bytes]) -> tuple[str, int]:
    """Return the digest and the number of all the bytes."""
    hasher, size = hashlib.sha256(), 0
    for piece in pieces:
        hasher.update(piece)
        size += len(piece)
    return "sha256:" + hasher.hexdigest(), size


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says about a file of the store into what to do about it.

    Raises:
        InputError: the caller may not read it.
        IntegrityError: it is missing or broken.
    """
    try:
        yield
    except (PermissionError, NotADirectoryError) as error:
        mend = "Set ENGRAIN_HOME to a folder of yours."
        raise InputError(f"'{path}' cannot be read ({error.strerror}). {mend}") from error
    except OSError as error:
        raise IntegrityError(f"'{path}' cannot be read ({error.strerror}). {MEND}") from error


def is_whole(path: Path, size: int) -> bool:
    """Return whether a regular file of that size is there; its bytes are not read."""
    try:
        about = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(about.st_mode) and about.st_size == size


def is_intact(path: Path, digest: str, size: int) -> bool:
    """Return whether a file is whole and, where that is quick, whether its bytes are those of the digest."""
    try:
        return is_whole(path, size) and (size >= REHASH_LIMIT or measure(chunks(path))[0] == digest)
    except OSError:
        return False


def load(path: Path, digest: str) -> bytes:
    """Return the bytes of a stored file, hashed again.

    Raises:
        InputError: the caller may not read it.
        IntegrityError: it is missing, or not what the digest says.
    """
    with reading(path):
        raw = b"".join(chunks(path))
    if sha256(raw) != digest:
        raise IntegrityError(f"'{path}' does not hold the bytes that its name says. {MEND}")
    return raw


def read_now(path: Path) -> bytes | None:
    """Return a small file that may be appended to meanwhile, or None when there is none.

    Raises:
        InputError: the caller may not read it.
        IntegrityError: it is not a regular file.
    """
    with reading(path):
        try:
            with open_regular(path) as stream:
                # One read: between two, a writer may replace a cut-off line, and the halves would not fit.
                return stream.read(os.fstat(stream.fileno()).st_size)
        except FileNotFoundError:
            return None


def write(path: Path, source: bytes | Path, digest: str, temporary_folder: Path) -> None:
    """Write a file that is whole, on the disk and read-only before it has its name.

    Args:
        path: the name, on the same file system as ``temporary_folder``.
        source: bytes, or a regular file that is read in pieces.
        digest: what it must hash to.
        temporary_folder: where it is written to.

    Raises:
        InputError: the source is not what was measured, or cannot be read.
        OSError: the disk.
    """
    if not write_pieces(path, content(source), digest, temporary_folder):
        raise InputError(f"'{source!s}' changed while it was published; publish again when it is finished.")


def write_pieces(path: Path, pieces: Iterable[bytes], digest: str, temporary_folder: Path) -> bool:
    """Write a file as `write` does, from pieces; return whether they were what ``digest`` says.

    Raises:
        OSError: the disk.
    """
    hasher = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for piece in pieces:
            hasher.update(piece)
            yield piece

    with drafted(temporary_folder, hashed(), 0o444) as draft:
        if "sha256:" + hasher.hexdigest() != digest:
            return False
        os.replace(draft, path)
    sync_folder(path.parent)
    return True


def create(path: Path, pieces: Iterable[bytes], temporary_folder: Path) -> bool:
    """Write a file that is not there yet, as `write` does; return False and change nothing when it is there.

    Raises:
        OSError: the disk.
    """
    with drafted(temporary_folder, pieces, 0o444) as draft:
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
    sync_folder(path.parent)
    return True


def replace(path: Path, raw: bytes, temporary_folder: Path) -> None:
    """Put a small file in the place of another, or where there was none; a reader sees the one or the other.

    Raises:
        OSError: the disk.
    """
    make_folder(path.parent)
    write(path, raw, sha256(raw), temporary_folder)


def append_line(path: Path, whole: int, raw: bytes) -> None:
    """Append a line to a file that has ``whole`` bytes; a line after these that was cut off is removed.

    Raises:
        ConflictError: a whole line stands there already, so that another writer came between.
        OSError: the disk.
    """
    line = raw + b"\n"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size < whole or b"\n" in os.pread(handle, size - whole, whole):
            raise _conflict(path)
        if size > whole:
            os.ftruncate(handle, whole)
        if os.write(handle, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        # The lock keeps writers apart; where it does not work, as on some network folders, this does.
        if os.pread(handle, len(line), whole) != line:
            raise _conflict(path)
        os.fsync(handle)
    finally:
        os.close(handle)
    if whole == 0:
        sync_folder(path.parent)


def _conflict(path: Path) -> ConflictError:
    return ConflictError(f"'{path}' was written by somebody else meanwhile; nothing is lost. Run the command again.")


def remove(path: Path) -> None:
    """Remove a file, if it is there, and have that on the disk.

    Raises:
        OSError: the disk.
    """
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each on the disk before the next."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
