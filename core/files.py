"""Reading JSON lines that strangers wrote, and writing files that are never half there."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engrain.core.errors import DataError, InputError, OutputExistsError


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a UTF-8 JSON lines file; blank lines are passed over.

    Raises:
        DataError: the file cannot be read, a line is not UTF-8, not JSON, or not an object.
    """
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                if not raw.strip():
                    continue
                yield number, parse_object(raw, path, number)
    except OSError as error:
        raise DataError(path, None, f"cannot be read ({error.strerror or error}).") from error


def parse_object(raw: bytes, path: object, line: int | None) -> dict[str, Any]:
    """Return the JSON object in ``raw``.

    Raises:
        DataError: not UTF-8, not JSON (NaN and Infinity are not JSON), or not an object.
    """
    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=_refuse_constant)
        # Lone surrogates survive json.loads and fail only when written or tokenized.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(path, line, f"not UTF-8 at byte {error.start}; save the file as UTF-8.") from error
    except UnicodeEncodeError as error:
        raise DataError(path, line, "holds half of a surrogate pair, which is not text; take it out.") from error
    except RecursionError as error:
        raise DataError(path, line, "nested too deeply to be data of ours.") from error
    except ValueError as error:
        raise DataError(path, line, f"not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise DataError(path, line, f"a JSON object is needed, this is {type(value).__name__}.")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def write_atomically(path: Path, data: bytes, *, force: bool = False) -> None:
    """Write ``data`` to ``path`` by a temporary file beside it, so that the file is whole or not there.

    Raises:
        OutputExistsError: ``path`` exists and ``force`` is false.
        InputError: the folder cannot be written to.
    """
    if path.exists() and not force:
        raise OutputExistsError(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A result is as readable as any other new file.
        with drafted(path.parent, [data], 0o644, prefix=f".{path.name}.") as draft:
            os.replace(draft, path)
    except OSError as error:
        raise InputError(f"'{path}' cannot be written ({error.strerror or error}).") from error


def check_folder(folder: Path, mark: str | None = None, *, force: bool = False) -> None:
    """Check that a folder may be written; arguments and errors as ``folder_atomically``."""
    if os.path.lexists(folder) and not force:
        raise OutputExistsError(folder)
    if mark and folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise InputError(f"'{folder}' holds no {mark}, so it is left alone also with --force; choose another path.")


@contextmanager
def drafted(folder: Path, pieces: Iterable[bytes], mode: int, prefix: str = "") -> Iterator[Path]:
    """Yield a temporary file that holds ``pieces`` and is on the disk; what gives it no name has it removed.

    Args:
        folder: where it is, on the file system that it is to stay on.
        pieces: its bytes.
        mode: who may read and write it; a temporary file is private by itself.
        prefix: how its name begins.

    Raises:
        OSError: the disk.
    """
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=prefix)
    try:
        with open(handle, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        yield Path(temporary)
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def folder_atomically(folder: Path, mark: str | None = None, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``folder`` when the context ends; after an error there is none.

    Args:
        folder: where; the folders above it are made.
        mark: a file that every folder of this kind has: one with other things in it is somebody's, named by mistake,
            and is not replaced.
        force: replace a folder that is there, with all that is in it.

    Raises:
        OutputExistsError: ``folder`` exists and ``force`` is false.
        InputError: it is no folder of this kind, or cannot be written.
    """
    check_folder(folder, mark, force=force)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            draft = Path(temporary) / "draft"
            draft.mkdir()
            yield draft
            for path in draft.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            if os.path.lexists(folder):
                folder.rename(Path(temporary) / "before")
            draft.rename(folder)
    except OSError as error:
        raise InputError(f"'{folder}' cannot be written ({error.strerror or error}).") from error
