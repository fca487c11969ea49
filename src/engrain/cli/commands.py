"""The built-in commands, registered through the same hook as anybody's and imported when used."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from keyword import iskeyword

import click

from engrain.plugins.spec import RegisterCommand, hookimpl

NAMES = (
    "behaviors",
    "calibrate",
    "chat",
    "compile",
    "doctor",
    "evaluate",
    "export",
    "extract",
    "generate",
    "import",
    "new",
    "pairs",
    "registry",
    "run",
    "serve",
    "verify",
)


@hookimpl
def register_commands(register: RegisterCommand) -> None:
    """Add each verb; its command is the function of its name in the module of its name (``import_`` for import)."""
    for name in NAMES:
        register(name, _loader(name))


def _loader(name: str) -> Callable[[], click.Command]:
    return partial(_load, name)


def _load(name: str) -> click.Command:
    module = f"{name}_" if iskeyword(name) else name
    command = getattr(import_module(f"engrain.cli.{module}"), f"{name}_command")
    assert isinstance(command, click.Command)
    return command
