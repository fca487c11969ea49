"""``engrain calibrate``: the layer and the strength of a behavior's vector."""

import click
from rich.console import Console
from rich.table import Table

from engrain.cli.options import json_option, model_option, parse_layers
from engrain.cli.output import print_json, progress_bar, say
from engrain.plugins.manager import Plugins


@click.command("calibrate")
@click.argument("name")
@click.option("--layers", help="Blocks to try: all, 10-16, 13, or a list; by default the behavior's depth.")
@model_option
@json_option
@click.pass_obj
def calibrate_command(plugins: Plugins, name: str, layers: str | None, model_name: str, as_json: bool) -> None:
    """Find the layer and the strength with the most certain effect within a budget of side effects: on neutral
    text 0.2 nats of mean divergence, 1.0 at its 95th percentile, and 15 % of perplexity.

    NAME is a behavior, whose vector is extracted first when the registry has none, or a published vector, which is
    calibrated on the pairs that it records. The calibrated vector is published as a new version.

    Example: engrain calibrate listening --layers 10-16
    """
    from engrain.core.calibrate import overcorrection
    from engrain.registry.store import Store
    from engrain.subject import find_subject

    store = Store()
    subject = find_subject(plugins, store, name)

    from engrain.extracting import calibrate_vector, ensure_extracted, publish
    from engrain.loading import load

    model = load(model_name, plugins=plugins)
    every = range(len(model.blocks))
    chosen = subject.layers(len(every)) if layers is None else parse_layers(layers, len(every)) or every
    with progress_bar() as bar:
        vector = ensure_extracted(model, subject, plugins, store, bar, say)
        task = bar.add_task("calibrate", total=len(chosen))
        vector, doses = calibrate_vector(model, vector, subject, chosen, lambda dose: bar.update(task, advance=1))
    version = publish(store, name, vector, subject.train)
    assert vector.calibration is not None
    result = {
        "reference": version.reference,
        "layer": vector.calibration.layer,
        "strength": vector.calibration.strength,
        "doses": [dose.to_json() for dose in doses],
    }
    if as_json:
        print_json(result)
        return
    table = Table(
        "layer", "strength", "effect (nats)", "at least", "neutral KL", "95 %", "perplexity", title=version.reference
    )
    for dose in doses:
        chosen_here = (dose.layer, dose.strength) == (vector.calibration.layer, vector.calibration.strength)
        mark = "bold" if chosen_here else ""
        effect = (f"{dose.effect:+.3f}", f"{dose.effect_low:+.3f}")
        numbers = (f"{dose.strength:.3g}", *effect, f"{dose.kl_mean:.3f}", f"{dose.kl_p95:.3f}")
        cost = f"x {dose.perplexity_ratio:.2f}" + ("" if dose.within else ", over budget")
        table.add_row(str(dose.layer), *numbers, cost, style=mark)
    Console().print(table)
    beyond = overcorrection(doses, vector.calibration)
    if beyond is not None:
        click.echo(f"overcorrection from strength {beyond.strength:.3g} on: more effect, but over the budget")
