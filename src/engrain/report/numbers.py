"""Numbers for a page, as text."""

from collections.abc import Sequence


def between(ci95: Sequence[float] | None) -> str:
    """Return an interval as text, empty for none."""
    return "" if ci95 is None else "{:+.3f} to {:+.3f}".format(*ci95)
