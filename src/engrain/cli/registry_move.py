"""``engrain registry alias``, ``rollback`` and ``delete``."""

import click

from engrain.cli.options import json_option
from engrain.cli.output import print_json
from engrain.registry.alias import Move, move_alias, parse_alias
from engrain.registry.reference import Reference
from engrain.registry.rollback import roll_back
from engrain.registry.store import Store


@click.command("alias")
@click.argument("alias")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--expect", type=click.IntRange(min=0), help="Only if it is at this version now (0: only if new).")
@click.option("--reason", default="", help="Why; the journal keeps it.")
@click.option("--force", is_flag=True, help="Past the policy of a protected alias; needs a --reason.")
@json_option
def alias_command(alias: str, version: int, expect: int | None, reason: str, force: bool, as_json: bool) -> None:
    """Point an alias at a version. A protected one (stable, production) takes only what has a passing verdict.

    Example: engrain registry alias vector/listening:stable 4 --expect 3 --reason "verdict passed"
    """
    moved = move_alias(Store(), parse_alias(alias), version, expect=expect, reason=reason, force=force)
    _tell(moved, as_json)


@click.command("rollback")
@click.argument("alias")
@click.option("--steps", type=click.IntRange(min=1), help="How many moves to go back.  [default: 1]")
@click.option("--to", type=click.IntRange(min=1), help="Go back to this version.")
@click.option("--rehash", is_flag=True, help="Hash the files to go back to first; else they are when loaded.")
@click.option("--reason", default="", help="Why; the journal keeps it.")
@json_option
def rollback_command(alias: str, steps: int | None, to: int | None, rehash: bool, reason: str, as_json: bool) -> None:
    """Point an alias at what it pointed at before. Nothing is lost: this is one more event in the log.

    Example: engrain registry rollback vector/listening:stable --reason "replies got too long"
    """
    if steps is not None and to is not None:
        raise click.UsageError("--steps and --to exclude each other.")
    moved = roll_back(Store(), parse_alias(alias), steps=steps or 1, to=to, reason=reason, rehash=rehash)
    _tell(moved, as_json)


@click.command("delete")
@click.argument("reference")
@click.option("--reason", required=True, help="Why; the tombstone and the journal keep it.")
@json_option
def delete_command(reference: str, reason: str, as_json: bool) -> None:
    """Put a tombstone on a version. Its number is never given again; `gc` removes its files later.

    Example: engrain registry delete dataset/listening@2 --reason "holds a private conversation"
    """
    from engrain.registry.delete import delete

    parsed = Reference.parse(reference)
    delete(Store(), parsed, reason)
    if as_json:
        print_json({"deleted": str(parsed), "reason": reason})
    else:
        click.echo(f"{parsed} is deleted; its files stay until: engrain registry gc --delete")


def _tell(move: Move, as_json: bool) -> None:
    before = None if move.before is None else move.before.number
    if as_json:
        after = {"alias": str(move.alias), "from": before, "to": move.after.number, "digest": move.after.digest}
        print_json(after | {"event": move.seq, "evidence": move.evidence})
        return
    origin = "new" if before is None else f"@{before}"
    click.echo(f"{move.alias}: {origin} -> @{move.after.number} (event {move.seq})")
