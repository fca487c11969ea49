"""``engrain registry log``: who moved what, when, why, on which evidence."""

from itertools import islice

import click

from engrain.cli.options import json_option
from engrain.cli.output import print_json, printable, say
from engrain.registry.journal import read_chain
from engrain.registry.log import Entry, read_log
from engrain.registry.reference import Reference
from engrain.registry.store import Store


@click.command("log")
@click.argument("reference", required=False)
@click.option("-n", "--number", type=click.IntRange(min=1), help="Show the newest so many.")
@json_option
def log_command(reference: str | None, number: int | None, as_json: bool) -> None:
    """Show what happened, newest first: to a name, a version, an alias, or to everything.

    Example: engrain registry log vector/listening:stable
    """
    store = Store()
    store.check_format()
    chain = read_chain(store.root / "journal")
    for fault in chain.faults:
        say(f"warning: {fault.problem}")
    found = islice(read_log(chain, None if reference is None else Reference.parse(reference)), number)
    if as_json:
        print_json({"events": [entry.to_json() for entry in found]})
        return
    click.echo_via_pager(_text(entry) for entry in found)


def _text(entry: Entry) -> str:
    said = entry.event.fields
    outcome = "" if entry.outcome == "done" else f"  ({entry.outcome})"
    lines = [f"Who:   {said['actor']}", f"When:  {said['time'][:19].replace('T', ' ')} UTC"]
    evidence = said.get("evidence")
    if evidence:
        lines.append(f"On:    {evidence['verdict']}, {'passed' if evidence['passed'] else 'did not pass'}")
    if said.get("forced"):
        lines.append("Past:  the policy of a protected alias (--force)")
    if said.get("remote"):
        lines.append(f"From:  {said['remote']}")
    lines += ["", f"    {entry.what}"]
    if said.get("reason"):
        lines += [f"    {line}" for line in str(said["reason"]).splitlines()]
    title = click.style(f"event {entry.event.seq}  {printable(entry.event.act)}{outcome}", fg="yellow")
    return "\n".join([title, *map(printable, lines)]) + "\n\n"
