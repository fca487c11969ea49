"""A page: a headline and sections of plots, tables and replies, as one HTML file that asks for nothing else.

Every text in it may be anybody's: the template escapes what is not a drawing of ``report/plots.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from engrain.report.plots import Plot


@dataclass(frozen=True)
class Badge:
    """A word that says how something ended.

    Attributes:
        word: as ``passed``.
        good: whether that is good.
    """

    word: str
    good: bool


Cell = str | Badge | Plot


@dataclass(frozen=True)
class Table:
    """A table; on a phone each row becomes a list.

    Attributes:
        head: the names of the columns.
        rows: as many cells each; the first one names the row.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Reply:
    """What base and edited model say to the same prompt."""

    prompt: str
    base: str
    edited: str


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        sentence: what to look for.
        plots: side by side where there is room.
        tables: below them.
        points: sentences, as a list.
        replies: side by side.
    """

    title: str
    sentence: str
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    points: Sequence[str] = ()
    replies: Sequence[Reply] = ()


@dataclass(frozen=True)
class Fact:
    """A number worth being large: its name, itself, and what it is held against."""

    name: str
    value: str
    beside: str


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: what it is on.
        about: what that is, in a sentence, or empty.
        badge: how it ended.
        headline: the verdict in a sentence.
        facts: the few numbers that matter.
        sections: everything else, in order.
        footer: where it comes from, a phrase each.
    """

    title: str
    about: str
    badge: Badge
    headline: str
    facts: Sequence[Fact]
    sections: Sequence[Section]
    footer: Sequence[str]

    def to_html(self) -> bytes:
        """Return the page, UTF-8; the same page is the same bytes."""
        # A reply may end in half of a surrogate pair, which no encoding has.
        return _template().render(page=self).encode("utf-8", "replace")


@cache
def _template() -> Template:
    loader = PackageLoader("engrain.report", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.jinja")
