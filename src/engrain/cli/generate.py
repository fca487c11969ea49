"""``engrain generate``: a reply to a prompt, under a profile or vectors, beside the base model's when asked."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engrain.cli.options import json_option, model_option, sampling_options, steering_options
from engrain.cli.output import print_json
from engrain.core.errors import InputError
from engrain.plugins.manager import Plugins

if TYPE_CHECKING:
    from engrain.core.composition import Active


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
    model, active = open_steering(plugins, model_name, profile, overrides, steer)
    if compare and not active:
        raise InputError("--compare needs something to compare: give --steer or --profile.")
    if compare:
        # One batch, steered by row: both replies for little more than the time of one.
        with model.steer(rows=[[], list(active.values())]):
            base, edited = generate(model, [prompt, prompt], sampling)
        if as_json:
            print_json({"prompt": prompt, "base": base, "edited": edited, "active": _describe(active)})
        else:
            from engrain.cli.sides import print_sides

            print_sides(
                prompt, base, edited, ", ".join(f"{one['name']} {one['strength']:g}" for one in _describe(active))
            )
        return
    with model.steer(*active.values()):
        reply = generate(
            model, [prompt], sampling, on_text=None if as_json else lambda text: click.echo(text, nl=False)
        )[0]
    if as_json:
        print_json({"prompt": prompt, "reply": reply, "active": _describe(active)})
    else:
        click.echo()


def _describe(active: "Mapping[str, Active]") -> list[dict[str, object]]:
    return [
        {"name": name, "layers": list(one.layers), "strength": one.strength, "positions": one.positions}
        for name, one in active.items()
    ]
