"""``engrain evaluate``: base against edited on held-out pairs and on neutral text."""

from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from engrain.cli.options import json_option, judge_option, model_option
from engrain.cli.output import describe_change, describe_judged, print_json, progress_bar, say
from engrain.core.contrast import PairSet
from engrain.core.errors import InputError, LayerError, StrengthError
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
@click.option("--neutral", type=click.Path(path_type=Path), help="Neutral text; by default the shipped test half.")
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

    from engrain.core.evaluate import evaluate
    from engrain.core.neutral import read_neutral
    from engrain.extracting import ensure_calibrated
    from engrain.loading import load
    from engrain.registry.store import Store
    from engrain.registry.task_vectors import read_edits
    from engrain.registry.vectors import read_vector
    from engrain.steering import InUse
    from engrain.subject import Subject
    from engrain.verifying import make_judge

    scorers = {name: plugins.scorer(name) for name in scores}
    subject = None if behavior is None else Subject.of_behavior(plugins.behavior(behavior))
    if judge is not None and subject is not None:
        subject.check_prompts()
    pairs = (
        PairSet.read(pairs_file) if pairs_file is not None else plugins.behavior(str(behavior)).pairs().split("test")
    )
    model = load(model_name, plugins=plugins)
    store = Store()
    with progress_bar() as bar:
        edits = read_edits(model, store, ",".join(edited)) if edited else {}
        if steered or edited:
            vectors = [read_vector(store, where) for where in steered]
        else:
            assert subject is not None
            steered = (f"vector/{behavior}",)
            vectors = [ensure_calibrated(model, subject, plugins, store, bar, say)]
        for vector, where in zip(vectors, steered, strict=True):
            if vector.fingerprint is None:
                say(f"note: '{where}' has no manifest, so it is not known whether it was made on this model.")
            if vector.calibration is None and not layers:
                raise LayerError(f"'{where}' has no calibration; give --layer and --strength for each --steer.")
            if vector.calibration is None and not strengths:
                raise StrengthError(f"'{where}' has no calibration; give --strength for each --steer.")
        actives = [
            model.activate(vector, layers[place] if layers else None, strengths[place] if strengths else None)
            for place, vector in enumerate(vectors)
        ]
        # By number: one vector may be put on at two blocks.
        in_use = InUse(dict(zip(map(str, range(len(actives))), actives, strict=True)), edits)
        texts = read_neutral(model, neutral) if neutral is not None else read_neutral(model, split="test")
        judging, prompts = None, tuple[str, ...]()
        if judge is not None and subject is not None:
            judging, prompts = make_judge(plugins, model, subject, judge), subject.prompts
        tasks = {
            "pairs": bar.add_task("pairs", total=2 * len(pairs)),
            "neutral": bar.add_task("neutral text", total=len(texts)),
            "scores": bar.add_task("scores", total=2 * len(pairs.ordinary) * len(scorers), visible=bool(scorers)),
            "replies": bar.add_task("replies", total=2 * len(prompts), visible=bool(prompts)),
            "judged replies": bar.add_task("judged replies", total=2 * len(prompts), visible=bool(prompts)),
        }
        found = evaluate(
            model,
            pairs,
            texts,
            partial(in_use.on, model),
            scorers=scorers,
            prompts=prompts,
            judge=judging,
            seed=seed,
            progress=lambda what, done: bar.update(tasks[what], advance=done),
        )
    steering = [
        {"vector": where, "layers": list(active.layers), "strength": active.strength}
        for where, active in zip(steered, actives, strict=True)
    ]
    task_vectors = [{"task_vector": where, "scale": edit.scale} for where, edit in edits.items()]
    result = found.to_json() | {"steering": steering, "task_vectors": task_vectors}
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
