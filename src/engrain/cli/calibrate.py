"""``engrain calibrate``: the layer and the strength of a behavior's vector, or the strengths of several together."""

from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from engrain.cli.options import json_option, model_option, parse_layers
from engrain.cli.output import print_json, progress_bar, say
from engrain.core.errors import InputError
from engrain.plugins.manager import Plugins

if TYPE_CHECKING:
    from engrain.core.calibrate import Dose
    from engrain.core.vector import Calibration


@click.command("calibrate")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--layers", help="Blocks to try: all, 10-16, 13, or a list; by default the behavior's depth.")
@model_option
@json_option
@click.pass_obj
def calibrate_command(
    plugins: Plugins, names: tuple[str, ...], layers: str | None, model_name: str, as_json: bool
) -> None:
    """Find the layer and the strength with the most certain effect within a budget of side effects: on neutral
    text 0.2 nats of mean divergence, 1.0 at its 95th percentile, and 15 % of perplexity.

    NAME is a behavior, whose vector is extracted first when the registry has none, or a published vector, which is
    calibrated on the pairs that it records. The calibrated vector is published as a new version.

    Of several names, each at the layer that it has by itself, the strengths are chosen for all of them being on
    together, within one budget; what each does to the others is told.

    Example: engrain calibrate listening --layers 10-16
    """
    from engrain.registry.store import Store
    from engrain.subject import find_subject

    if len(set(names)) < len(names):
        raise InputError(f"A name is given twice: {' '.join(names)}.")
    store = Store()
    subjects = [find_subject(plugins, store, name) for name in names]
    if len(subjects) > 1 and layers is not None:
        raise InputError("--layers is for one NAME; several are calibrated together at the layers that they have.")

    from engrain.core.calibrate import most_doses
    from engrain.extracting import calibrate_together, calibrate_vector, ensure_extracted, publish
    from engrain.loading import load

    model = load(model_name, plugins=plugins)
    if len(subjects) > 1:
        with progress_bar() as bar:
            versions, joint = calibrate_together(model, subjects, plugins, store, bar, say)
        result = joint.to_json() | {"references": [version.reference for version in versions]}
        print_json(result) if as_json else _print_joint(result)
        return
    (subject,) = subjects
    every = range(len(model.blocks))
    chosen = subject.layers(len(every)) if layers is None else parse_layers(layers, len(every)) or every
    with progress_bar() as bar:
        vector = ensure_extracted(model, subject, plugins, store, bar, say)
        task = bar.add_task("calibrate", total=most_doses(len(chosen)))
        vector, doses = calibrate_vector(model, vector, subject, chosen, lambda dose: bar.update(task, advance=1))
    version = publish(store, subject.name, vector, subject.train)
    assert vector.calibration is not None
    if as_json:
        print_json(
            {
                "reference": version.reference,
                "layer": vector.calibration.layer,
                "strength": vector.calibration.strength,
                "doses": [dose.to_json() for dose in doses],
            }
        )
    else:
        _print(version.reference, vector.calibration, doses)


def _print(reference: str, calibration: "Calibration", doses: "list[Dose]") -> None:
    from engrain.core.calibrate import overcorrection

    table = Table("layer", "strength", "effect (nats)", "at least", "neutral KL", "95 %", "perplexity", title=reference)
    for dose in doses:
        chosen = (dose.layer, dose.strength) == (calibration.layer, calibration.strength)
        effect = (f"{dose.effect:+.3f}", f"{dose.effect_low:+.3f}")
        numbers = (f"{dose.strength:.3g}", *effect, f"{dose.kl_mean:.3f}", f"{dose.kl_p95:.3f}")
        cost = f"x {dose.perplexity_ratio:.2f}" + ("" if dose.within else ", over budget")
        table.add_row(str(dose.layer), *numbers, cost, style="bold" if chosen else "")
    Console().print(table)
    beyond = overcorrection(doses, calibration)
    if beyond is not None:
        click.echo(f"overcorrection from strength {beyond.strength:.3g} on: more effect, but over the budget")


def _print_joint(found: dict[str, Any]) -> None:
    names = list(found["strengths"])
    table = Table("behavior", "strength", "effect alone", "together", title="nats per token, calibration pairs")
    for name in names:
        effects = (f"{found['alone'][name]:+.3f}", f"{found['together'][name]:+.3f}")
        table.add_row(name, f"{found['strengths'][name]:.3g}", *effects)
    Console().print(table)
    matrix = Table("effect of \\ on", *names, title="each by itself at its new strength")
    for name in names:
        matrix.add_row(name, *(f"{found['interference'][name][other]:+.3f}" for other in names))
    Console().print(matrix)
    neutral = found["neutral"]
    click.echo(
        f"all together on neutral text: KL {neutral['kl_mean']:.3f} nats (95th percentile {neutral['kl_p95']:.3f}), "
        f"perplexity x {neutral['perplexity_ratio']:.2f}"
    )
    click.echo(f"published: {', '.join(found['references'])}")
