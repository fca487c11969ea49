"""Numbers for a page: as text, and checked where they are anybody's."""

from collections.abc import Sequence
from typing import Any

from engrain.core.number import finite


def between(ci95: Sequence[float] | None) -> str:
    """Return an interval as text, empty for none."""
    return "" if ci95 is None else "{:+.3f} to {:+.3f}".format(*ci95)


def checked(rows: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows if each of them has a finite number, or yes or no, under every name, else none.

    An artifact's origin is plain JSON of whoever made the artifact.
    """

    def good(row: Any) -> bool:
        return isinstance(row, dict) and all(isinstance(row.get(name), bool) or finite(row.get(name)) for name in names)

    return rows if isinstance(rows, list) and all(map(good, rows)) else []
