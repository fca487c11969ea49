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


@contextmanager
def progress_bar() -> "Iterator[Progress]":
    """Show progress on stderr while the context lasts; nothing where stderr is not a terminal."""
    # Imported here: a reply without a bar should not wait for it.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        yield bar
