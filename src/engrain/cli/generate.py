"""``engrain generate``: a reply to a prompt, under what is put on the model, beside the base model's when asked."""

from pathlib import Path

import click

from engrain.cli.options import json_option, model_option, sampling_options, steering_options
from engrain.cli.output import print_json
from engrain.core.errors import InputError
from engrain.plugins.manager import Plugins


@click.command("generate")
@click.argument("prompt")
@steering_options
@click.option("--compare", is_flag=True, help="Show the base model's reply beside it.")
@sampling_options
@model_option
@json_option
@click.pass_obj
def generate_command(
    plugins: Plugins,
    prompt: str,
    profile: Path | None,
    overrides: tuple[str, ...],
    steer: str | None,
    task_vectors: str | None,
    compare: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    model_name: str,
    as_json: bool,
) -> None:
    """Reply to PROMPT; the text comes as it is made.

    Example: engrain generate "Book the 7:40 train, not the 8:10." --steer listening --compare
    """
    from engrain.core.generate import Sampling, generate
    from engrain.steering import open_steering

    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    model, in_use = open_steering(plugins, model_name, profile, overrides, steer, task_vectors)
    if compare and not in_use:
        raise InputError("--compare needs something to compare: give --steer, --task-vector or --profile.")
    if compare:
        base, edited = in_use.side_by_side(model, prompt, sampling)
        if as_json:
            print_json({"prompt": prompt, "base": base, "edited": edited, "active": in_use.to_json()})
        else:
            from engrain.cli.sides import print_sides

            print_sides(prompt, base, edited, str(in_use))
        return
    with in_use.on(model):
        reply = generate(
            model, [prompt], sampling, on_text=None if as_json else lambda text: click.echo(text, nl=False)
        )[0]
    if as_json:
        print_json({"prompt": prompt, "reply": reply, "active": in_use.to_json()})
    else:
        click.echo()
