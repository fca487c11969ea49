"""The command ``engrain``: finds its verbs through the plugins, and turns errors into one line and an exit code."""

import os
import sys
from collections.abc import Callable

import click

from engrain.cli.output import printable
from engrain.core.errors import CheckError, EngrainError, PluginError, UnknownNameError
from engrain.plugins.manager import Plugins, build_manager
from engrain.version import __version__

USER_MISTAKE, CHECK_FAILED, INTERRUPTED, UNEXPECTED = 2, 1, 130, 70


class Verbs(click.Group):
    """A group whose commands come from plugins and are imported when used."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(self._plugins(context).commands())

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return one command, or None."""
        found = self._plugins(context).commands().get(name)
        if found is None:
            return None
        load, origin = found
        try:
            return load()
        except Exception as error:
            # In the list of commands a broken one must not hide the others; called, it says what is wrong.
            problem = PluginError(f"The command '{name}' of {origin} cannot be loaded: {type(error).__name__}: {error}")
            return click.Command(name, callback=_raiser(problem), help=f"Broken: {error}")

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called; an unknown one is an error that names the nearest."""
        if args and args[0] not in self.list_commands(context) and not args[0].startswith("-"):
            raise UnknownNameError("command", args[0], self.list_commands(context), "See 'engrain --help'.")
        return super().resolve_command(context, args)

    def _plugins(self, context: click.Context) -> Plugins:
        if context.obj is None:
            context.obj = build_manager()
        assert isinstance(context.obj, Plugins)
        return context.obj


def _raiser(problem: EngrainError) -> Callable[[], None]:
    def fail() -> None:
        raise problem

    return fail


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
def cli(debug: bool) -> None:
    """A behavior compiler for language models.

    Prototype a behavior as a steering vector, test it, find its dose; engrain it once it has proved itself.

    Example: engrain generate "Plan my week around the gym." --steer listening --compare
    """


def main() -> None:
    """Run the command line and exit with its code: 0 fine, 1 a check failed, 2 the user's mistake, 130, 70."""
    # Nothing is fetched, and no thread pool is started twice over, by a tokenizer that is forked into workers.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    debug = "--debug" in sys.argv[1:2]
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (click.ClickException, EngrainError) as error:
        if debug and isinstance(error, EngrainError):
            raise
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        # A name, a reason or a file of a stranger's may be in it; the message itself is one line or a few.
        click.echo("\n".join(map(printable, f"engrain: {text}".splitlines())), err=True)
        sys.exit(CHECK_FAILED if isinstance(error, CheckError) else USER_MISTAKE)
    except (KeyboardInterrupt, click.Abort):
        click.echo("engrain: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone, as `engrain ... | head` does; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        click.echo(
            f"engrain: unexpected {type(error).__name__}: {error} (see it whole with: engrain --debug ...)", err=True
        )
        sys.exit(UNEXPECTED)
