"""Numbers that strangers wrote: Python's integers have no bound, a float, a tensor and ``int`` of a text have one."""

import math
from typing import TypeGuard

_MOST_DIGITS = 9


def finite(value: object) -> TypeGuard[float]:
    """Return whether a value is a number that is finite as a float; an integer of 400 digits is not, nor is a bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def whole(text: str) -> bool:
    """Return whether a text is a whole number of at most 9 digits, which every integer type holds."""
    return len(text) <= _MOST_DIGITS and text.isascii() and text.isdigit()
