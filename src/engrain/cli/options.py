"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def model_option(command: Command) -> Command:
    """-m/--model."""
    return click.option(
        "-m",
        "--model",
        "model_name",
        default="demo",
        show_default=True,
        help="demo, a hub id, a folder, or a .gguf file.",
    )(command)


def json_option(command: Command) -> Command:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(command)


def force_option(command: Command) -> Command:
    """--force."""
    return click.option("--force", is_flag=True, help="Overwrite what exists.")(command)


def judge_option(command: Command) -> Command:
    """--judge."""
    return click.option(
        "--judge",
        metavar="NAME[:ARGUMENT]",
        help="Who scores free replies: contrastive (the model itself, unedited) or llm:MODEL (OPENAI_BASE_URL).",
    )(command)


def steering_options(command: Command) -> Command:
    """--profile, --set, --steer, --task-vector: what is on."""
    for option in (
        click.option(
            "--task-vector",
            "task_vectors",
            metavar="REF[=SCALE],...",
            help="Task vectors to apply to the weights: references or folders.",
        ),
        click.option("--steer", metavar="REF[=STRENGTH],...", help="Vectors to put on: references or files."),
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the profile."),
        click.option("--profile", type=click.Path(path_type=Path), help="Inference configuration (YAML)."),
    ):
        command = option(command)
    return command


def sampling_options(command: Command) -> Command:
    """--max-new-tokens, --temperature, --top-p, --seed."""
    for option in (
        click.option("--seed", default=0, show_default=True, help="Seed of the drawing."),
        click.option(
            "--top-p", default=1.0, show_default=True, help="Draw from the tokens that hold this probability."
        ),
        click.option("--temperature", default=0.0, show_default=True, help="0 takes the most probable token."),
        click.option("--max-new-tokens", default=256, show_default=True, help="Where a reply ends at the latest."),
    ):
        command = option(command)
    return command


def parse_layers(text: str | None, count: int) -> list[int] | None:
    """Read ``--layers``: all, one block, ``10-16``, or a comma-separated mixture; None and "all" mean every block.

    Raises:
        LayerError: not of that form, or not in a model of ``count`` blocks.
    """
    from engrain.core.errors import LayerError

    if text is None or text == "all":
        return None
    layers = read_layers(text)
    if layers[-1] >= count:
        raise LayerError(f"--layers {text!r}: the model has the blocks 0-{count - 1}.")
    return layers


def read_layers(text: str) -> list[int]:
    """Read block numbers: one, ``10-16``, or a comma-separated mixture, in ascending order.

    Raises:
        LayerError: not of that form.
    """
    from engrain.core.errors import LayerError

    layers: set[int] = set()
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        high = high or low
        # No model has ten thousand blocks; a longer number would only fill the memory.
        numbers = all(one.isascii() and one.isdigit() and len(one) <= 4 for one in (low, high))
        if not numbers or int(low) > int(high):
            raise LayerError(f"--layers {text!r} is not 'all', a block number, a range like 10-16, or a list of these.")
        layers.update(range(int(low), int(high) + 1))
    return sorted(layers)
