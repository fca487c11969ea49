"""The HTML report: a verdict as one page that needs nothing but a browser. Needs ``engrain[report]``."""

from importlib.util import find_spec

MISSING = "no HTML report: pip install 'engrain[report]'"


def available() -> bool:
    """Return whether the packages that make a report are installed."""
    return all(find_spec(name) is not None for name in ("jinja2", "matplotlib"))
