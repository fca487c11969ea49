"""``engrain serve``: vLLM's OpenAI-compatible server with a profile."""

import os
from pathlib import Path

import click

from engrain.cli.options import model_option
from engrain.cli.output import say
from engrain.plugins.manager import Plugins


@click.command("serve", context_settings={"ignore_unknown_options": True})
@click.option("--profile", type=click.Path(path_type=Path), help="What requests get unless they say otherwise (YAML).")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the profile.")
@click.option(
    "--layers", help="Blocks that requests may steer besides the profile's: all, 13, 10-16, or a list of these."
)
@model_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[VLLM OPTIONS]...")
@click.pass_obj
def serve_command(
    plugins: Plugins,
    profile: Path | None,
    overrides: tuple[str, ...],
    layers: str | None,
    model_name: str,
    arguments: tuple[str, ...],
) -> None:
    """Serve a model with vLLM; each request may say what steers it, the profile stands for the others.

    All other options are vLLM's own, as --port 8000, --api-key or --enforce-eager.

    Example: engrain serve --profile examples/profiles/pair-programming.yaml --port 8000
    """
    from engrain.cli.options import read_layers
    from engrain.core.errors import InputError
    from engrain.plugins.vllm.settings import Settings
    from engrain.serving import plan_launch

    if overrides and profile is None:
        raise InputError("--set overrides keys of a profile; give --profile FILE.")
    chosen: tuple[int, ...] | None = ()
    if layers is not None:
        chosen = None if layers == "all" else tuple(read_layers(layers))
    settings = Settings(None if profile is None else str(profile), overrides, chosen)
    launch = plan_launch(plugins, model_name, settings, arguments, os.environ)
    say("vLLM starts; it takes about half a minute, and up to two where it compiles.")
    # The server takes the place of this process, so that signals reach it.
    os.execve(launch.command[0], launch.command, launch.environment)
