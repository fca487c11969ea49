"""The lines of a conversation: read until /quit, those that start with / obeyed and the others answered."""

import sys
from collections.abc import Callable

import click

from engrain.cli.output import say


def talk(obey: Callable[[list[str]], None], reply: Callable[[str], None]) -> None:
    """Read lines until /quit or the end of the input; a mistake is told in a line and does not end the conversation.

    Args:
        obey: does what the words of a line that starts with / say.
        reply: answers a message.
    """
    from engrain.core.errors import EngrainError

    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return
        try:
            if line.startswith("/"):
                obey(line.split())
            elif line.strip():
                reply(line.strip())
        except EngrainError as error:
            say(str(error))
        except KeyboardInterrupt:
            say("\n(stopped)")
