"""``engrain registry verify`` and ``gc``."""

import click

from engrain.cli.options import json_option
from engrain.cli.output import print_json, say
from engrain.plugins.manager import Plugins
from engrain.registry.audit import audit
from engrain.registry.store import Store


@click.command("verify")
@click.option("--repair", "repairs", is_flag=True, help="Write again what the journal or a remote has.")
@click.option("--remote", "where", help="A folder or a URL to fetch damaged objects from.")
@json_option
@click.pass_context
def verify_command(context: click.Context, repairs: bool, where: str | None, as_json: bool) -> None:
    """Hash everything again and compare it with the journal: exit code 0 when nothing is wrong, else 1.

    A damaged object is moved to the folder quarantine, so that it is in nobody's way; everything else is checked all
    the same.

    Example: engrain registry verify --repair --remote s3://team/registry
    """
    if where is not None and not repairs:
        raise click.UsageError("--remote is where --repair fetches from; pass both.")
    store = Store()
    report = audit(store)
    repaired: list[str] = []
    if repairs and not report.passed:
        from engrain.registry.repair import repair

        plugins: Plugins = context.obj
        fetch = None if where is None else plugins.remote(where).get
        repaired = repair(store, report.problems, fetch)
        quarantined = report.quarantined
        report = audit(store)
        report.quarantined[:0] = quarantined
    if as_json:
        problems = [
            {"path": str(one.path), "what": one.what, "needs": one.needs, "uses": list(one.uses)}
            for one in report.problems
        ]
        print_json(
            {
                "passed": report.passed,
                "versions": report.versions,
                "files": report.files,
                "size": report.size,
                "problems": problems,
                "remarks": report.remarks,
                "quarantined": list(map(str, report.quarantined)),
                "repaired": repaired,
            }
        )
    else:
        for line in (*repaired, *report.remarks):
            say(line)
        for place in report.quarantined:
            say(f"set aside: {place}")
        for problem in report.problems:
            click.echo(f"problem: {problem}")
        said = "nothing is wrong" if report.passed else f"{len(report.problems)} problems"
        click.echo(f"{report.versions} versions, {report.files} files, {report.size} bytes: {said}")
        if not report.passed and not repairs:
            click.echo("Everything that is not named above is safe. Mend it: engrain registry verify --repair")
    if not report.passed:
        context.exit(1)


@click.command("gc")
@click.option("--delete", "deletes", is_flag=True, help="Remove them; without it, nothing is removed.")
@json_option
def gc_command(deletes: bool, as_json: bool) -> None:
    """Say which files nothing needs: those of deleted versions, and what interrupted writes left behind.

    Kept: every version that was not deleted, the last 10 targets of every alias, whatever a running process uses, and
    files younger than a day.

    Example: engrain registry gc --delete
    """
    from engrain.registry.collect import collect

    found = collect(Store(), dry_run=not deletes)
    if as_json:
        kept = [{"reference": reference, "why": why} for reference, why in found.kept]
        files = list(map(str, found.files))
        print_json({"dry_run": not deletes, "files": files, "size": found.size, "kept": kept})
        return
    for path in found.files:
        click.echo(path)
    for reference, why in found.kept:
        say(f"kept: {reference}, {why}")
    done = "removed" if deletes else "would be removed; to remove them: engrain registry gc --delete"
    click.echo(f"{len(found.files)} files, {found.size} bytes {done}")
