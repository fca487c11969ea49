"""``engrain registry list`` and ``show``."""

from typing import Any

import click

from engrain.cli.options import json_option
from engrain.cli.output import print_json, printable
from engrain.core.errors import IntegrityError
from engrain.registry.reference import KINDS
from engrain.registry.store import Store


@click.command("list")
@click.argument("kind", required=False, type=click.Choice(KINDS))
@json_option
def list_command(kind: str | None, as_json: bool) -> None:
    """List the names, how many versions each has, and where its aliases stand.

    Example: engrain registry list vector
    """
    store = Store()
    found = [_listed(store, one, name) for one in KINDS if kind in (None, one) for name in store.names(one)]
    if as_json:
        print_json({"registry": str(store.root), "names": found})
        return
    if not found:
        click.echo(f"Nothing in {store.root}.")
        return
    # Not rich: its import takes longer than reading ten thousand versions.
    rows = [("name", "versions", "newest", "aliases")]
    for one in found:
        placed = ", ".join(f"{alias} @{number}" for alias, number in one["aliases"].items())
        newest = one["damaged"] or str(one["created"])[:16].replace("T", " ")
        rows.append((f"{one['kind']}/{one['name']}", str(one["versions"]), newest, placed))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip())


def _listed(store: Store, kind: str, name: str) -> dict[str, Any]:
    about: dict[str, Any] = {"kind": kind, "name": name, "versions": 0, "created": None, "damaged": None}
    try:
        line = store.history(kind, name).last()
        if line is not None:
            about |= {"versions": line.number, "created": line.created.isoformat()}
    except IntegrityError:
        about["damaged"] = "damaged: engrain registry verify"
    return about | {"aliases": {alias: ref.target.number for alias, ref in store.aliases(kind, name).items()}}


@click.command("show")
@click.argument("reference")
@json_option
def show_command(reference: str, as_json: bool) -> None:
    """Show a version: its files with sizes, what it was made from, its verdict, and which aliases point at it.

    Example: engrain registry show vector/listening:stable
    """
    from engrain.registry.describe import describe_version

    store = Store()
    found = describe_version(store, store.resolve(reference))
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['reference']}  {found['digest']}")
    click.echo(f"published {found['created'][:19].replace('T', ' ')} UTC by {printable(found['actor'])}")
    click.echo(f"deployed as: {', '.join(found['aliases']) or 'nothing points at it'}")
    verdict = found["verdict"]
    said = "none" if verdict is None else f"{verdict['verdict']} {'passed' if verdict['passed'] else 'did not pass'}"
    click.echo(f"verdict: {said}")
    for parent in found["parents"]:
        click.echo(f"made from {parent['role']}: {parent['reference'] or 'not in this registry'}  {parent['digest']}")
    for file in found["files"]:
        click.echo(f"file {file['title']}: {file['size']} bytes, {file['mediaType']}  {file['digest']}")
    click.echo(f"size: {found['size']} bytes")
    if found["provenance"] is not None:
        click.echo(f"provenance: {found['provenance']} (whole with --json)")
