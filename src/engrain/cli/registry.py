"""``engrain registry``: versions, aliases, history, roll back. Each verb is imported when it is used."""

from importlib import import_module

import click

from engrain.core.errors import UnknownNameError

# Verb to the module that has it, as the function ``<verb>_command``.
MODULES = {
    "list": "registry_look",
    "show": "registry_look",
    "log": "registry_log",
    "alias": "registry_move",
    "rollback": "registry_move",
    "delete": "registry_move",
    "verify": "registry_care",
    "gc": "registry_care",
    "lineage": "registry_trace",
    "diff": "registry_trace",
    "push": "registry_share",
    "pull": "registry_share",
    "combine": "registry_combine",
}


class RegistryVerbs(click.Group):
    """A group whose commands are imported when used."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the verbs, in the order of the table above."""
        return list(MODULES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return one verb, or None."""
        if name not in MODULES:
            return None
        command = getattr(import_module(f"engrain.cli.{MODULES[name]}"), f"{name}_command")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb that is called; an unknown one is an error that names the nearest."""
        if args and args[0] not in MODULES and not args[0].startswith("-"):
            raise UnknownNameError("command 'registry'", args[0], MODULES, "See 'engrain registry --help'.")
        return super().resolve_command(context, args)


@click.group("registry", cls=RegistryVerbs)
def registry_command() -> None:
    """Versions of vectors, data and verdicts: what there is, what is live, who moved it, and the way back.

    A reference is KIND/NAME (the highest version), KIND/NAME@VERSION or KIND/NAME:ALIAS.

    Example: engrain registry rollback vector/listening:stable --reason "replies got too long"
    """
