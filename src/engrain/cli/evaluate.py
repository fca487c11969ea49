"""``engrain evaluate``: base against edited on held-out pairs and on neutral text."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from engrain.cli.options import json_option, judge_option, model_option
from engrain.cli.output import describe_change, describe_judged, print_json, progress_bar, say
from engrain.core.contrast import PairSet
from engrain.core.errors import InputError
from engrain.plugins.manager import Plugins


@click.command("evaluate")
@click.argument("behavior", required=False)
@click.option("--pairs", "pairs_file", type=click.Path(path_type=Path), help="A pairs file; every pair is used.")
@click.option("--steer", "steered", multiple=True, metavar="REF_OR_FILE", help="A vector to put on; may be repeated.")
@click.option("--layer", "layers", multiple=True, type=int, help="Block of each --steer, in their order.")
@click.option("--strength", "strengths", multiple=True, type=float, help="Strength of each --steer, in their order.")
@click.option(
    "--task-vector",
    "edited",
    multiple=True,
    metavar="REF_OR_DIR[=SCALE]",
    help="A task vector to apply to the weights; may be repeated.",
)
@click.option("--neutral", type=click.Path(path_type=Path), help="Neutral text; by default the shipped test split.")
@click.option("--score", "scores", multiple=True, metavar="NAME", help="Another score: choice, or a plugin's.")
@judge_option
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap.")
@model_option
@json_option
@click.pass_obj
def evaluate_command(
    plugins: Plugins,
    behavior: str | None,
    pairs_file: Path | None,
    steered: tuple[str, ...],
    layers: tuple[int, ...],
    strengths: tuple[float, ...],
    edited: tuple[str, ...],
    neutral: Path | None,
    scores: tuple[str, ...],
    judge: str | None,
    seed: int,
    model_name: str,
    as_json: bool,
) -> None:
    """Compare the base model with the edited one: margin, win rate, effect with its interval, neutral divergence.

    The pairs are the test split of BEHAVIOR, or a file. Without --steer and --task-vector the behavior's own vector is
    used, extracted from the train split and calibrated on the calibration split when the registry has none yet.

    Example: engrain evaluate listening
    """
    if (behavior is None) == (pairs_file is None):
        raise InputError("Give a BEHAVIOR or --pairs FILE, one of the two.")
    for given, what in ((layers, "--layer"), (strengths, "--strength")):
        if given and len(given) != len(steered):
            raise InputError(
                f"{what} is given {len(given)} times for {len(steered)} --steer; once for each, or not at all."
            )
    if pairs_file is not None and not steered and not edited:
        raise InputError("--pairs needs --steer or --task-vector: what is to be evaluated?")
    if pairs_file is not None and judge is not None:
        raise InputError("--judge scores free replies to a behavior's own scenarios; give a BEHAVIOR, not --pairs.")

    from engrain.evaluating import Steered, evaluate_edits
    from engrain.loading import load
    from engrain.registry.store import Store
    from engrain.subject import Subject

    scorers = {name: plugins.scorer(name) for name in scores}
    on: Subject | PairSet
    if pairs_file is not None:
        on = PairSet.read(pairs_file)
    else:
        on = Subject.of_behavior(plugins.behavior(str(behavior)))
        if judge is not None:
            on.check_prompts()
    doses = zip(layers or [None] * len(steered), strengths or [None] * len(steered), strict=True)
    model = load(model_name, plugins=plugins)
    with progress_bar() as bar:
        result = evaluate_edits(
            model,
            on,
            plugins,
            Store(),
            steered=[Steered(where, *dose) for where, dose in zip(steered, doses, strict=True)],
            edited=edited,
            neutral=neutral,
            scorers=scorers,
            judge=judge,
            seed=seed,
            bar=bar,
            say=say,
        )
    print_json(result) if as_json else _print(result)


def _print(found: dict[str, Any]) -> None:
    for one in found["steering"]:
        click.echo(f"{one['vector']} at layer {','.join(map(str, one['layers']))}, strength {one['strength']:.3g}")
    for one in found["task_vectors"]:
        click.echo(f"{one['task_vector']} on the weights, scale {one['scale']:.3g}")
    columns = [("pairs", found), ("boundary pairs", found["boundary"])]
    shown = [(name, part) for name, part in columns if part is not None]
    table = Table("", *(f"{part['base']['n']} {name}" for name, part in shown))
    for label, key, form in (("margin (nats per token)", "margin", "+.3f"), ("positive preferred", "win_rate", ".0%")):
        table.add_row(label, *(f"{part['base'][key]:{form}} to {part['edited'][key]:{form}}" for _, part in shown))
    table.add_row("effect (nats per token)", *(f"{part['effect']:+.3f}" for _, part in shown))
    intervals = [part["effect_ci95"] for _, part in shown]
    table.add_row("95 % interval", *(f"{i[0]:+.3f} to {i[1]:+.3f}" if i else "one scenario" for i in intervals))
    Console().print(table)
    neutral = found["neutral"]
    mean, p95 = neutral["kl_mean"], neutral["kl_p95"]
    click.echo(f"neutral text: KL {mean:.3f} nats (95th percentile {p95:.3f}) over {neutral['positions']} positions")
    for name, score in found["scores"].items():
        click.echo(describe_change(name, score))
    free = found["free_replies"]
    if free is not None:
        click.echo(describe_judged(free["judged"]))
        click.echo(f"incoherent replies: {free['degeneration']['incoherent']} of {free['degeneration']['replies']}")
