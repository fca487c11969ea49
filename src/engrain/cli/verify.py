"""``engrain verify``: the verdict on a vector, from unseen conversations."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from engrain.cli.options import force_option, json_option, judge_option, model_option
from engrain.cli.output import describe_change, describe_judged, print_json, progress_bar, say
from engrain.core.contrast import PairSet
from engrain.core.errors import InputError, OutputExistsError
from engrain.plugins.manager import Plugins
from engrain.report import MISSING, available

if TYPE_CHECKING:
    from engrain.registry.store import Store


@click.command("verify")
@click.argument("name")
@click.option("--pairs", "pairs_file", type=click.Path(path_type=Path), help="Unseen test pairs instead of its own.")
@judge_option
@click.option("--seed", default=0, show_default=True, help="Seed of the controls and the bootstrap.")
@click.option("--report", type=click.Path(path_type=Path), help="Where to write the HTML report, instead of the cache.")
@force_option
@model_option
@json_option
@click.pass_context
def verify_command(
    context: click.Context,
    name: str,
    pairs_file: Path | None,
    judge: str | None,
    seed: int,
    report: Path | None,
    force: bool,
    model_name: str,
    as_json: bool,
) -> None:
    """Say whether a vector has proved itself: exit code 0 when every gate passed, 1 when one did not.

    Gates: the effect on unseen pairs is above 0; it is above that of 19 random directions and of one from shuffled
    labels, all of the same length; side effects are within their budget. The verdict is published with its numbers and
    its report, one HTML file. An interrupted run goes on where it was.

    A task vector (task-vector/NAME) is verified for each behavior that it was compiled or combined from, with the
    vectors off.

    Example: engrain verify listening
    """
    plugins: Plugins = context.obj
    # Before minutes of work, not after them.
    if report is not None:
        if not available():
            raise InputError("The report needs jinja2 and matplotlib: pip install 'engrain[report]'.")
        if report.exists() and not force:
            raise OutputExistsError(report)

    from engrain.registry.reference import Reference
    from engrain.registry.store import Store
    from engrain.subject import find_subject

    store = Store()
    if "/" in name and Reference.parse(name).kind == "task-vector":
        if pairs_file is not None or report is not None:
            raise InputError("--pairs and --report are for vectors; weights are verified on each behavior's own pairs.")
        _verify_weights(context, store, name, judge, seed, model_name, as_json)
        return
    subject = find_subject(plugins, store, name)
    if pairs_file is not None:
        subject = subject.tested_on(PairSet.read(pairs_file))
    if subject.test is not None:
        subject.check_prompts()

    from engrain.loading import load
    from engrain.verifying import JUDGE, verify_subject, write_report

    model = load(model_name, plugins=plugins)
    with progress_bar() as bar:
        verdict, version = verify_subject(
            model, subject, plugins, store, judge=judge or JUDGE, seed=seed, bar=bar, say=say
        )
    written = write_report(version, report, force=force)
    said = MISSING if written is None else f"report: {written}"
    found = verdict.to_json() | {"reference": version.reference, "report": None if written is None else str(written)}
    if as_json:
        print_json(found)
        say(said)
    else:
        print_verdict(found)
        click.echo(said)
    if not verdict.passed:
        context.exit(1)


def _verify_weights(
    context: click.Context, store: "Store", name: str, judge: str | None, seed: int, model_name: str, as_json: bool
) -> None:
    from engrain.compiling import Compiled, subjects_of
    from engrain.loading import load
    from engrain.proving import verify_compiled
    from engrain.verifying import JUDGE

    plugins: Plugins = context.obj
    version = store.resolve(name)
    subjects = subjects_of(plugins, store, version)
    model = load(model_name, plugins=plugins)
    with progress_bar() as bar:
        how = partial(verify_compiled, model, judge=judge or JUDGE, seed=seed, bar=bar, say=say)
        done = Compiled.of(version, subjects, lambda subject: how(subject, version, plugins, store)[-1])
    print_json(done.to_json()) if as_json else print_compiled(done.to_json())
    if not done.passed:
        context.exit(1)


def print_compiled(result: dict[str, Any]) -> None:
    """Print what weights do: the verdict for each behavior, and how near they are to the vector."""
    spec = f", {result['spec']}" if "spec" in result else ""
    click.echo(f"{result['task_vector']}: {result['backend']}{spec}")
    for name, one in result.get("behaviors", {"": result}).items():
        print_verdict(one["verdict"])
        recovered = one["proof"]["compiled"]["recovered"]
        interval = "" if recovered["ci95"] is None else " ({:.2f} to {:.2f})".format(*recovered["ci95"])
        click.echo(f"{f'{name}: ' if name else ''}recovered of the vector's effect: {one['recovered']:.2f}{interval}")
        click.echo(f"drift on neutral text, of the vector's own: {one['drift_ratio']:.2f}")
        if (control := one["proof"]["control"]) is not None:
            click.echo(describe_change("a random direction, compiled likewise", control))
        click.echo(MISSING if one["verdict"]["report"] is None else f"report: {one['verdict']['report']}")


def print_verdict(found: dict[str, Any]) -> None:
    """Print a verdict: its gates, what broke them, and what was measured beside them."""
    outcome = "passed" if found["passed"] else "did not pass"
    click.echo(f"{found['reference']}: {outcome}, layer {found['layer']}, strength {found['strength']:.3g}")
    table = Table("gate", "", "value", "95 % interval", "bound")
    for gate in found["gates"]:
        interval = "" if gate["ci95"] is None else "{:+.3f} to {:+.3f}".format(*gate["ci95"])
        relation = {"side_effects": "at most", "boundary": "not surely below"}.get(gate["name"], "above")
        mark = "passed" if gate["passed"] else "failed"
        table.add_row(gate["name"], mark, f"{gate['value']:+.3f}", interval, f"{relation} {gate['bound']:g}")
    Console().print(table)
    for gate in found["gates"]:
        for fault in gate["faults"]:
            click.echo(f"{gate['name']}: {fault}")
    boundary, prompt, known = found["boundary"], found["prompt"], found["capability"]
    best = found["best_control"]
    click.echo(f"best control: {best} {found['controls'][best]:+.3f}")
    if prompt is not None:
        click.echo(f"a system prompt that asks for it: {prompt['value']:+.3f}")
    if boundary is not None:
        word = ", overcorrection" if boundary["overcorrection"] else ""
        click.echo(f"boundary pairs: {boundary['value']:+.3f}{word}")
    click.echo(f"scenarios moved the wrong way: {found['anti_steered']:.0%}")
    click.echo(f"questions answered right: {known['base']:.0%} to {known['edited']:.0%} of {known['questions']}")
    judged, degeneration = found["judged"], found["degeneration"]
    if judged is not None:
        click.echo(describe_judged(judged))
    for name, score in found["scores"].items():
        click.echo(describe_change(name, score))
    click.echo(f"incoherent replies: {degeneration['incoherent']} of {degeneration['replies']}")
    for advice in found["advice"]:
        click.echo(f"try: {advice}")
