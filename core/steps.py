"""Long work in named steps whose results are kept, so that an interrupted run goes on where it was."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from engrain.core.errors import DataError
from engrain.core.files import parse_object, write_atomically

SCHEMA = "engrain.steps/1"


class Steps:
    """Results of finished steps, in a file of JSON.

    Args:
        path: the file, or None to keep nothing.
        key: what the work depends on; results of other work are passed over.
    """

    def __init__(self, path: Path | None = None, key: str = "") -> None:
        self._path = path
        self._key = key
        self._done: dict[str, Any] = {}
        if path is not None and path.is_file():
            try:
                found = parse_object(path.read_bytes(), path, None)
            except DataError:
                # Only a cache: what cannot be read is made again.
                return
            if found.get("schema") == SCHEMA and found.get("key") == key and isinstance(found.get("done"), dict):
                self._done = found["done"]

    @classmethod
    def of(cls, key: str, folder: Path) -> Self:
        """Return the steps of one work among many that a folder keeps."""
        return cls(folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json", key)

    @property
    def finished(self) -> tuple[str, ...]:
        """The names of the steps whose results are there."""
        return tuple(self._done)

    def do(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the step's result: of the earlier run, or of ``work``, which must return plain JSON."""
        if name not in self._done:
            self._done[name] = work()
            if self._path is not None:
                state = {"schema": SCHEMA, "key": self._key, "done": self._done}
                write_atomically(self._path, json.dumps(state, allow_nan=False).encode(), force=True)
        return self._done[name]

    def forget(self) -> None:
        """Take the file away: the work is finished and its result stands elsewhere."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
