"""``engrain behaviors``: what is installed, and the package each comes from."""

from collections import Counter
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engrain.cli.options import json_option
from engrain.cli.output import print_json, say
from engrain.core.contrast import SPLITS, screen
from engrain.plugins.manager import Plugins


@click.group("behaviors", invoke_without_command=True)
@json_option
@click.pass_context
def behaviors_command(context: click.Context, as_json: bool) -> None:
    """List the installed behaviors and the package each comes from.

    Example: engrain behaviors show listening
    """
    if context.invoked_subcommand is not None:
        return
    plugins = context.obj
    assert isinstance(plugins, Plugins)
    found = plugins.behaviors()
    for broken in plugins.broken:
        say(f"warning: {broken}")
    if as_json:
        listed = [
            {
                "name": name,
                "description": behavior.description,
                "package": origin.distribution,
                "version": origin.version,
            }
            for name, (behavior, origin) in found.items()
        ]
        print_json({"behaviors": listed, "broken": list(map(str, plugins.broken))})
        return
    table = Table("behavior", "package", "what it does")
    for name, (behavior, origin) in found.items():
        # Strangers' words: Text takes them as they are, markup in them stays letters.
        table.add_row(name, Text(str(origin)), Text(behavior.description))
    Console().print(table)


@behaviors_command.command("show")
@click.argument("name")
@json_option
@click.pass_obj
def show(plugins: Plugins, name: str, as_json: bool) -> None:
    """Show one behavior: its data, how they are split, and one pair of them.

    Example: engrain behaviors show listening
    """
    behavior = plugins.behavior(name)
    pairs, scenarios = behavior.pairs(), behavior.scenarios()
    splits: dict[str, Any] = {}
    for split in SPLITS:
        own = pairs.split(split)
        splits[split] = {"ordinary": len(own.ordinary), "boundary": len(own.boundary)}
    result = {
        "name": name,
        "description": behavior.description,
        "package": str(plugins.behaviors()[name][1]),
        "pairs": len(pairs),
        "scenarios_of_pairs": len({pair.scenario for pair in pairs}),
        "domains": dict(sorted(Counter(pair.domain for pair in pairs).items())),
        "splits": splits,
        "scenarios": len(scenarios),
        "positions": behavior.positions,
        "method": behavior.method,
        "depth": list(behavior.depth),
        "remarks": screen(pairs),
    }
    if as_json:
        print_json(result)
        return
    console = Console()
    table = Table(show_header=False)
    for key, value in result.items():
        table.add_row(key, Text("\n".join(value) if isinstance(value, list) and key == "remarks" else str(value)))
    console.print(table)
    first = pairs.split("train").ordinary[0]
    for label, text in (("user", first.messages[-1].content), ("with", first.positive), ("without", first.negative)):
        console.print(f"[bold]{label}[/bold]: ", end="")
        console.print(text, markup=False)
