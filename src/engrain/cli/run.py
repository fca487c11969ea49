"""``engrain run``: the whole chain for a behavior."""

from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from engrain.cli.options import json_option, model_option
from engrain.cli.output import print_json, progress_bar, say
from engrain.plugins.manager import Plugins
from engrain.report import MISSING

if TYPE_CHECKING:
    from engrain.running import Run


@click.command("run")
@click.argument("behavior")
@click.option("--backend", default="distill", show_default=True, help="distill, rank1, bias, ablate, or a plugin's.")
@click.option("--seed", default=0, show_default=True, help="Seed of all drawing.")
@model_option
@json_option
@click.pass_context
def run_command(context: click.Context, behavior: str, backend: str, seed: int, model_name: str, as_json: bool) -> None:
    """Extract, calibrate, verify, compile, and verify the weights of BEHAVIOR; everything is published.

    It ends with exit code 1 at a verdict that does not pass. What an earlier run has finished is not made again.

    Example: engrain run listening
    """
    plugins: Plugins = context.obj
    declared = plugins.behavior(behavior)
    plugins.compiler(backend)

    from engrain.compiling import Wish
    from engrain.loading import load
    from engrain.registry.store import Store
    from engrain.running import run_subject
    from engrain.subject import Subject

    subject = Subject.of_behavior(declared)
    subject.check_prompts()
    model = load(model_name, plugins=plugins)
    with progress_bar() as bar:
        done = run_subject(model, subject, plugins, Store(), Wish(backend, seed=seed), bar=bar, say=say)
    print_json(done.to_json()) if as_json else _print(behavior, done)
    if not done.passed:
        context.exit(1)


def _print(behavior: str, done: "Run") -> None:
    table = Table("step", "", "result", title=behavior)
    dose = f"layer {done.calibration.layer}, strength {done.calibration.strength:.3g}"
    table.add_row("calibrated", "done", f"{done.vector}: {dose}")
    for what, verdict in (("vector", done.verdict), ("weights", done.compiled and done.compiled.verdict)):
        if verdict:
            faults = [fault for gate in verdict["gates"] for fault in gate["faults"]]
            values = ", ".join(f"{gate['name']} {gate['value']:+.3f}" for gate in verdict["gates"])
            mark = "passed" if verdict["passed"] else "failed"
            table.add_row(f"verdict on the {what}", mark, "\n".join([values, *faults]))
        if what == "vector" and done.task_vector is not None:
            table.add_row("compiled", "done", done.task_vector)
    if done.compiled is not None:
        found = done.compiled.to_json()
        table.add_row("recovered", "", f"{found['recovered']:.2f} of the vector's effect")
        table.add_row("drift", "", f"{found['drift_ratio']:.2f} of the vector's own, on neutral text")
    Console().print(table)
    if done.compiled is None:
        for advice in done.verdict["advice"]:
            click.echo(f"try: {advice}")
    click.echo(MISSING if done.report is None else f"report: {done.report}")
