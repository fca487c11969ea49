"""``engrain registry push`` and ``pull``."""

import click

from engrain.cli.options import json_option
from engrain.cli.output import print_json, say
from engrain.plugins.manager import Plugins
from engrain.registry.reference import Reference
from engrain.registry.store import Store
from engrain.registry.transfer import Transfer, pull, push


@click.command("push")
@click.argument("remote")
@click.argument("names", nargs=-1, metavar="[KIND/NAME]...")
@json_option
@click.pass_obj
def push_command(plugins: Plugins, remote: str, names: tuple[str, ...], as_json: bool) -> None:
    """Copy names with all their versions and aliases to REMOTE, a folder or a URL: what is missing there, no more.

    Example: engrain registry push s3://team/registry vector/listening
    """
    there = plugins.remote(remote)
    _tell(push(Store(), there, [Reference.parse(name) for name in names], say), there.where, as_json)


@click.command("pull")
@click.argument("remote")
@click.argument("names", nargs=-1, metavar="[KIND/NAME]...")
@json_option
@click.pass_obj
def pull_command(plugins: Plugins, remote: str, names: tuple[str, ...], as_json: bool) -> None:
    """Copy names with all their versions from REMOTE: what is missing here, hashed as it arrives.

    Aliases that are not here yet are made; one that stands elsewhere here stays there.

    Example: engrain registry pull s3://team/registry
    """
    there = plugins.remote(remote)
    _tell(pull(Store(), there, [Reference.parse(name) for name in names], say), there.where, as_json)


def _tell(done: Transfer, where: str, as_json: bool) -> None:
    if as_json:
        counts = {"objects": done.objects, "size": done.size, "present": done.present}
        print_json(
            {"remote": where} | counts | {"versions": done.versions, "aliases": done.aliases, "remarks": done.remarks}
        )
        return
    for remark in done.remarks:
        say(remark)
    click.echo(f"{where}: {done.objects} objects copied ({done.size} bytes), {done.present} were there already")
    click.echo(f"new versions: {len(done.versions)}, aliases: {', '.join(done.aliases) or 'none'}")
