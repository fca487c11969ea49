"""The numbered versions of one name: ``names/<kind>/<name>/versions.jsonl``, only ever appended to.

A line stands at the place of its number. One whose number was there before lost a race in which the lock did not work:
its writer was told so, and it counts for nothing.
"""

import os
from pathlib import Path
from typing import Any

from engrain.core.errors import IntegrityError
from engrain.registry.blob import append_line, make_folder, open_regular, read_now, reading
from engrain.registry.manifest import VersionLine
from engrain.registry.sealed import seal

_TAIL = 4096  # bytes; a line has 250 or so


class History:
    """Reads and appends version lines. Bytes after the last line feed are a write that was cut off, and passed over.

    Args:
        folder: of the name.

    Every method raises InputError when the file may not be read, and IntegrityError when it is not a regular file or a
    line that is asked for is damaged; other lines do not matter then.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "versions.jsonl"

    def raw_lines(self) -> list[bytes]:
        """Return the whole lines, without their line feeds and unchecked."""
        lines = self._every()
        if not lines or _number(lines[-1]) == len(lines):
            return lines
        kept: list[bytes] = []
        for raw in lines:
            if not self._lost(raw, len(kept)):
                kept.append(raw)
        return kept

    def lines(self) -> list[VersionLine]:
        """Return all versions, lowest first."""
        return [self.parse(raw, number) for number, raw in enumerate(self.raw_lines(), 1)]

    def parse(self, raw: bytes, number: int) -> VersionLine:
        """Check the line of a version."""
        return VersionLine.parse(raw, self.path, number)

    def last(self) -> VersionLine | None:
        """Return the highest version, or None; the rest of the file is not read."""
        self._check_folder()
        with reading(self.path):
            try:
                stream = open_regular(self.path)
            except FileNotFoundError:
                return None
            with stream:
                size = os.fstat(stream.fileno()).st_size
                stream.seek(max(0, size - _TAIL))
                # The first piece may be half a line, the last one is empty or was cut off.
                *lines, _ = stream.read(min(size, _TAIL)).split(b"\n")
        if len(lines) < 3 or _number(lines[-1]) != _number(lines[-2]) + 1:
            every = self.lines()
            return every[-1] if every else None
        return self.parse(lines[-1], _number(lines[-1]))

    def append(self, fields: dict[str, Any]) -> VersionLine:
        """Write the line of the next version.

        Raises:
            ConflictError: somebody else wrote one meanwhile.
            OSError: the disk.
        """
        whole = sum(len(kept) + 1 for kept in self._every())
        raw = seal(fields)
        line = self.parse(raw, len(self.raw_lines()) + 1)
        make_folder(self.folder)
        append_line(self.path, whole, raw)
        return line

    def _every(self) -> list[bytes]:
        self._check_folder()
        return (read_now(self.path) or b"").split(b"\n")[:-1]

    def _lost(self, raw: bytes, count: int) -> bool:
        number = _number(raw)
        try:
            return 1 <= number <= count and self.parse(raw, number).number == number
        except IntegrityError:
            return False  # damaged: it keeps its place, and is an error there

    def _check_folder(self) -> None:
        if self.folder.is_symlink():
            raise IntegrityError(f"'{self.folder}' is a symbolic link, which a name never is. Put the folder there.")


def _number(raw: bytes) -> int:
    digits = raw.rpartition(b'"v":')[2].removesuffix(b"}")
    # 15 digits, as in a reference: more are no number of ours, and thousands of them would be an error of int().
    return int(digits) if digits.isdigit() and len(digits) <= 15 else 0
