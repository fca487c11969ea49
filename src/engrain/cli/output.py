"""What commands print: results on stdout, talk and progress on stderr."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress


def print_json(result: Any) -> None:
    """Print one JSON object on stdout."""
    click.echo(json.dumps(result, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """Tell the person something, on stderr."""
    click.echo(text, err=True)


def printable(text: str) -> str:
    """Return text that somebody else wrote without what a terminal would obey, as escape sequences."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def describe_change(what: str, change: dict[str, Any]) -> str:
    """Return a line on a score of base and edited model."""
    interval = "" if change["ci95"] is None else " ({:+.3f} to {:+.3f})".format(*change["ci95"])
    return f"{what}: {change['base']:.3f} to {change['edited']:.3f}, {change['effect']:+.3f}{interval}"


def describe_judged(judged: dict[str, Any]) -> str:
    """Return a line on what a judge says of free replies."""
    return describe_change(f"{judged['n']} free replies, judge {judged['judge']}, {judged['unit']}", judged)


@contextmanager
def progress_bar(*, shown: bool = True) -> "Iterator[Progress]":
    """Show progress on stderr while the context lasts; nothing where stderr is not a terminal, or if not ``shown``."""
    # Imported here: a reply without a bar should not wait for it.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (shown and sys.stderr.isatty())) as bar:
        yield bar
