"""``engrain registry lineage`` and ``diff``."""

from typing import TYPE_CHECKING

import click

from engrain.cli.options import json_option
from engrain.cli.output import print_json
from engrain.registry.lineage import Lineage, Node
from engrain.registry.store import Store

if TYPE_CHECKING:
    from rich.tree import Tree


@click.command("lineage")
@click.argument("reference")
@json_option
def lineage_command(reference: str, as_json: bool) -> None:
    """Draw what a version was made from, down to the pairs, and what was made from it, up to what is deployed.

    Example: engrain registry lineage vector/listening:stable
    """
    store = Store()
    version = store.resolve(reference)
    lineage = Lineage(store)
    above, below = lineage.ancestors(version), lineage.descendants(version)
    if as_json:
        print_json({"reference": version.reference, "made_from": above.to_json(), "used_by": below.to_json()})
        return
    from rich.console import Console
    from rich.tree import Tree

    tree = Tree(_label(above, version.reference))
    for title, node in (("made from", above), ("used by", below)):
        if node.below:
            _grow(tree.add(title), node)
    Console().print(tree, soft_wrap=True)


def _grow(tree: "Tree", node: Node) -> None:
    for one in node.below:
        _grow(tree.add(f"{one.role}: {_label(one)}"), one)


def _label(node: Node, name: str = "") -> str:
    # Of several names for the same content, the first; digests are cut as git does.
    name = name or (node.references[0] if node.references else "not in this registry")
    placed = f"  <- {', '.join(node.aliases)}" if node.aliases else ""
    return f"{name}  {node.digest[:19]}{placed}{'  (see above)' if node.again else ''}"


@click.command("diff")
@click.argument("first")
@click.argument("second")
@json_option
def diff_command(first: str, second: str, as_json: bool) -> None:
    """Compare two versions: config key by key, files and parents by digest.

    Example: engrain registry diff vector/listening@3 vector/listening:stable
    """
    from engrain.registry.compare import compare

    store = Store()
    one, other = store.resolve(first), store.resolve(second)
    found = compare(one, other)
    if as_json:
        differences = [{"where": each.where, "first": each.first, "second": each.second} for each in found]
        print_json({"first": one.reference, "second": other.reference, "differences": differences})
        return
    click.echo(f"--- {one.reference}\n+++ {other.reference}")
    for each in found:
        click.echo(each.where)
        for mark, value in (("-", each.first), ("+", each.second)):
            if value is not None:
                click.echo(f"  {mark} {value}")
    if not found:
        click.echo("the same content")
