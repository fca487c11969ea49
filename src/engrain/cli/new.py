"""``engrain new``: a complete behavior plugin package to start from."""

from pathlib import Path

import click

from engrain.cli.options import force_option, json_option
from engrain.cli.output import print_json, say
from engrain.core.errors import InputError
from engrain.plugins.manager import Plugins
from engrain.plugins.package import write_package


@click.command("new")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to write; by default ./NAME.")
@force_option
@json_option
@click.pass_obj
def new_command(plugins: Plugins, name: str, out: Path | None, force: bool, as_json: bool) -> None:
    """Write an installable plugin package for the behavior NAME: module, pairs, scenarios, test, README.

    Example: engrain new brevity && pip install -e ./brevity
    """
    taken = plugins.behaviors().get(name)
    if taken is not None:
        raise InputError(f"A behavior '{name}' is installed already, by {taken[1]}; choose another name.")
    folder = out or Path(name)
    written = write_package(name, folder, force=force)
    if as_json:
        print_json({"folder": str(folder), "files": [str(path) for path in written]})
        return
    for path in written:
        click.echo(path)
    say(f"Next: pip install -e {folder}, then edit {folder}/src/*/pairs.jsonl and run python -m pytest {folder}.")
