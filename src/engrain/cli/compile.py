"""``engrain compile``: verified vectors into weights, and the verdict on these."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engrain.cli.options import json_option, judge_option, model_option, parse_layers
from engrain.cli.output import print_json, progress_bar, say
from engrain.cli.verify import print_compiled
from engrain.core.contrast import PairSet
from engrain.core.errors import InputError
from engrain.core.names import check_name
from engrain.plugins.manager import Plugins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engrain.compiling import Wish
    from engrain.core.model import SteerableModel
    from engrain.registry.store import Store
    from engrain.source import Source

_GIB = 1 << 30


@click.command("compile")
@click.argument("name", required=False)
@click.option("--profile", "profile_file", type=click.Path(path_type=Path), help="Compile what it has switched on.")
@click.option("--pairs", "pairs_file", type=click.Path(path_type=Path), help="Unseen pairs to verify the weights on.")
@click.option("--backend", default="distill", show_default=True, help="distill, rank1, bias, ablate, or a plugin's.")
@click.option("--target", help="writers, all-linear, a name like q_proj, or a regular expression.")
@click.option("--layers", help="Blocks to compile into: 10-16, 13, or a list; by default the backend's.")
@click.option(
    "--spec", type=click.Choice(["selective", "faithful"]), help="The base outside of the behavior, or steered there."
)
@click.option(
    "--optimizer",
    type=click.Choice(["apollo", "apollo-mini", "adamw"]),
    default="apollo",
    show_default=True,
    help="What distill trains with.",
)
@judge_option
@click.option("--seed", default=0, show_default=True, help="Seed of all drawing.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the task vector as a folder, too.")
@click.option("--control", is_flag=True, help="Compile a random direction likewise, to compare: twice the time.")
@click.option("--plan", "only_plan", is_flag=True, help="Only say what memory it would take; no weights are loaded.")
@click.option("--force", is_flag=True, help="Overwrite --out; compile also what has no passing verdict.")
@model_option
@json_option
@click.pass_context
def compile_command(
    context: click.Context,
    name: str | None,
    profile_file: Path | None,
    pairs_file: Path | None,
    backend: str,
    target: str | None,
    layers: str | None,
    spec: Any,
    optimizer: str,
    judge: str | None,
    seed: int,
    out: Path | None,
    control: bool,
    only_plan: bool,
    force: bool,
    model_name: str,
    as_json: bool,
) -> None:
    """Compile the vector NAME, or all that a profile has switched on as one, into a task vector.

    Its verdict must have passed. Then the vector is taken off, and the weights are verified the same way; exit code 1
    when they do not pass. An interrupted run goes on where it was. Under accelerate launch or torchrun the processes
    share the base and the training; what comes out is verified afterwards, by engrain verify task-vector/NAME.

    Example: engrain compile listening --backend rank1
    """
    plugins: Plugins = context.obj
    if only_plan:
        if name is not None or profile_file is not None:
            raise InputError("--plan is about a model alone: engrain compile --plan -m MODEL.")
        _plan(plugins, model_name, target, layers, optimizer, as_json)
        return
    if (name is None) == (profile_file is None):
        raise InputError("Give a NAME or --profile FILE, one of the two.")
    if pairs_file is not None and name is None:
        raise InputError("--pairs goes with a NAME; the behaviors of a profile are verified on their own test pairs.")

    from engrain.core.files import check_folder
    from engrain.core.names import MANIFEST
    from engrain.processes import launched
    from engrain.registry.store import Store
    from engrain.source import check_proved, find_source, find_sources

    # Before minutes of work, not after them.
    if control and launched() > 1:
        raise InputError("--control belongs to the proof, which one process makes; leave it out under a launcher.")
    plugins.compiler(backend)
    if out is not None:
        check_folder(out, MANIFEST, force=force)
    store = Store()
    if profile_file is not None:
        from engrain.core.profile import Profile

        profile = Profile.read(profile_file)
        called = check_name(profile_file.stem, "task vector")
        sources = find_sources(plugins, store, profile)
        model_name = profile.model if model_name == "demo" else model_name
    else:
        pairs = None if pairs_file is None else PairSet.read(pairs_file)
        sources = [find_source(plugins, store, str(name), pairs=pairs)]
        called = sources[0].version.name
    check_proved(sources, force)

    from engrain.compiling import Wish, compile_and_prove
    from engrain.loading import load
    from engrain.verifying import JUDGE

    model = load(model_name, plugins=plugins)
    chosen = None if layers is None else tuple(parse_layers(layers, len(model.blocks)) or range(len(model.blocks)))
    wish = Wish(backend, spec, target, chosen, seed, optimizer, force, control)
    if launched() > 1:
        _compile_together(model, sources, plugins, store, wish, called, out, as_json)
        return
    with progress_bar() as bar:
        compiled = compile_and_prove(
            model, sources, plugins, store, wish, name=called, out=out, judge=judge or JUDGE, bar=bar, say=say
        )
    result = compiled.to_json() | {"folder": None if out is None else str(out)}
    if profile_file is None:
        result |= result.pop("behaviors")[sources[0].subject.name]
    print_json(result) if as_json else print_compiled(result)
    if not compiled.passed:
        context.exit(1)


def _compile_together(
    model: "SteerableModel",
    sources: "Sequence[Source]",
    plugins: Plugins,
    store: "Store",
    wish: "Wish",
    called: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compile in all the processes of a launcher, of which the first publishes and speaks."""
    from engrain.compiling import compile_sources, publish_compiled
    from engrain.core.compile.ranks import shard
    from engrain.processes import joined

    with joined() as process, progress_bar(shown=process.first) as bar:
        shard(model, process.device)
        tell = say if process.first else lambda text: None
        made = compile_sources(model, sources, plugins, wish, name=called, bar=bar, say=tell)
        if not process.first:
            return
        if out is not None:
            made.save(out, force=wish.force)
        version = publish_compiled(store, made, sources)
    result = {"task_vector": version.reference, "folder": None if out is None else str(out), "passed": None}
    if as_json:
        print_json(result)
    else:
        click.echo(f"{version.reference} is compiled and not yet verified: engrain verify task-vector/{called}")


def _plan(
    plugins: Plugins, model_name: str, target: str | None, layers: str | None, optimizer: str, as_json: bool
) -> None:
    from engrain.planning import count_blocks, plan_compile, read_config

    config = read_config(plugins, model_name)
    found = plan_compile(config, target=target, layers=parse_layers(layers, count_blocks(config)), optimizer=optimizer)
    if as_json:
        print_json(found.to_json())
        return
    table = Table("what", "GiB", "bytes", title=Text(f"{model_name}: blocks {', '.join(map(str, found.layers))}"))
    for what in ("base", "delta", "student", "gradients", "moments", "activations", "total"):
        size = found.to_json()[what]
        table.add_row(what, f"{size / _GIB:.3f}", str(size), style="bold" if what == "total" else "")
    Console().print(table)
    click.echo(f"{found.plan.trained} of {found.plan.parameters} parameters are trained, with {found.optimizer}")
