"""Numbers that strangers wrote: Python's integers have no bound, a float, a tensor and ``int`` of a text have one."""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

_MOST_DIGITS = 9


def finite(value: object) -> TypeGuard[float]:
    """Return whether a value is a number that is finite as a float; an integer of 400 digits is not, nor is a bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def checked(rows: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows if each of them has a finite number, or yes or no, under every name, else none.

    An artifact's origin is plain JSON of whoever made the artifact.
    """

    def good(row: Any) -> bool:
        return isinstance(row, dict) and all(isinstance(row.get(name), bool) or finite(row.get(name)) for name in names)

    return rows if isinstance(rows, list) and all(map(good, rows)) else []


def whole(text: str) -> bool:
    """Return whether a text is a whole number of at most 9 digits, which every integer type holds."""
    return len(text) <= _MOST_DIGITS and text.isascii() and text.isdigit()
