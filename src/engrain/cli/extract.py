"""``engrain extract``: a steering vector from a behavior's pairs or from a pairs file."""

from pathlib import Path
from typing import Any

import click

from engrain.cli.options import force_option, json_option, model_option, parse_layers
from engrain.cli.output import print_json, progress_bar, say
from engrain.core.contrast import PairSet, screen
from engrain.core.errors import InputError
from engrain.core.names import check_name
from engrain.plugins.manager import Plugins


@click.command("extract")
@click.argument("behavior", required=False)
@click.option(
    "--pairs", "pairs_file", type=click.Path(path_type=Path), help="A pairs file; every ordinary pair is used."
)
@click.option("--name", help="What the vector of --pairs is called.")
@click.option("--layers", help="all, a block, a range like 10-16, or a list; by default all.")
@click.option("--positions", help="response-mean, last, first, prompt-last, or a reply token's number.")
@click.option("--method", help="mean-difference, pca, probe, gradient, or what a plugin adds.")
@click.option("--out", type=click.Path(path_type=Path), help="Write FILE.safetensors and publish nothing.")
@model_option
@force_option
@json_option
@click.pass_obj
def extract_command(
    plugins: Plugins,
    behavior: str | None,
    pairs_file: Path | None,
    name: str | None,
    layers: str | None,
    positions: str | None,
    method: str | None,
    out: Path | None,
    model_name: str,
    force: bool,
    as_json: bool,
) -> None:
    """Make a steering vector: from the train split of BEHAVIOR, or from every ordinary pair of a file.

    Without --out the vector is published in the registry.

    Example: engrain extract --pairs brevity.jsonl --name brevity --layers 10-16 --out brevity.safetensors
    """
    if (behavior is None) == (pairs_file is None):
        raise InputError("Give a BEHAVIOR or --pairs FILE --name NAME, one of the two.")
    if pairs_file is not None:
        if name is None:
            raise InputError("--pairs needs --name: what is the behavior called?")
        pairs = PairSet.read(pairs_file)
        name = check_name(name, "vector")
    else:
        assert behavior is not None
        declared = plugins.behavior(behavior)
        pairs, name = declared.pairs().split("train"), check_name(name or behavior, "vector")
        positions, method = positions or declared.positions, method or declared.method

    from engrain.core.vector import check_out
    from engrain.extracting import extract_vector
    from engrain.loading import load

    if out is not None:
        check_out(out, force=force)
    for remark in screen(pairs):
        say(f"note: {remark}")
    model = load(model_name, plugins=plugins)
    with progress_bar() as bar:
        task = bar.add_task("extract", total=len(pairs.ordinary))
        vector = extract_vector(
            model,
            pairs,
            plugins,
            name=name,
            layers=parse_layers(layers, len(model.blocks)),
            positions=positions or "response-mean",
            method=method or "mean-difference",
            progress=lambda done: bar.update(task, advance=done),
        )
    result: dict[str, Any] = {"name": name, "pairs": len(pairs.ordinary), "layers": list(vector.layers)}
    if out is not None:
        vector.save(out, force=force)
        result["file"] = str(out)
    else:
        from engrain.extracting import publish
        from engrain.registry.store import Store

        version = publish(Store(), name, vector, pairs)
        result |= {"reference": version.reference, "digest": version.digest}
    if as_json:
        print_json(result | {"norms": {str(layer): norm for layer, norm in vector.norms().items()}})
        return
    click.echo(
        f"{result.get('reference', out)}: {result['pairs']} pairs, {len(vector.layers)} layers, d_model {vector.width}"
    )
