"""``engrain export``: a vector or task vector in the format of another program."""

from pathlib import Path

import click

from engrain.cli.options import force_option, json_option
from engrain.cli.output import print_json, say
from engrain.core.errors import OutputExistsError
from engrain.plugins.export import Export
from engrain.plugins.manager import Plugins


@click.command("export")
@click.argument("reference", metavar="REF_OR_PATH")
@click.option("--format", "format_name", required=True, help="hf, peft, gguf, safetensors, or what a plugin adds.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file or folder to write.")
@click.option("-m", "--model", "model_name", help="The base; by default the model that it says it was made on.")
@click.option("--rank", type=click.IntRange(min=1), help="Of a LoRA adapter; by default what keeps 97 % of the effect.")
@force_option
@json_option
@click.pass_obj
def export_command(
    plugins: Plugins,
    reference: str,
    format_name: str,
    out: Path,
    model_name: str | None,
    rank: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a task vector as a whole model (hf) or LoRA adapter (peft), a vector for llama.cpp (gguf), either as it is.

    Example: engrain export task-vector/listening --format peft --out listening-lora
    """
    write, kinds = plugins.exporter(format_name)
    if out.exists() and not force:
        raise OutputExistsError(out)

    from engrain.core.model import SteerableModel
    from engrain.core.task_vector import TaskVector
    from engrain.exporting import calibration_pairs, read_artifact
    from engrain.loading import load
    from engrain.registry.store import Store

    store = Store()
    artifact = read_artifact(store, reference, kinds, format_name)
    notes: list[str] = []
    by_pairs = isinstance(artifact, TaskVector) and rank is None
    pairs = calibration_pairs(plugins, store, reference, notes.append) if by_pairs else ()
    made_on = "demo" if artifact.fingerprint is None else artifact.fingerprint.source

    def open_model() -> SteerableModel:
        return load(model_name or made_on, plugins=plugins)

    said = write(Export(artifact, out, force, open_model, rank, pairs))
    if "rank" in said:
        for note in notes:
            say(note)
    if as_json:
        print_json({"format": format_name, "out": str(out), "name": artifact.name, **said})
        return
    shown = (
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in said.items() if value
    )
    details = ", ".join(shown)
    click.echo(f"{out}: {artifact.name} as {format_name}{f' ({details})' if details else ''}")
