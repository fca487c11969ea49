"""``engrain registry combine``."""

import click

from engrain.cli.options import json_option
from engrain.cli.output import print_json
from engrain.registry.store import Store


@click.command("combine")
@click.argument("parts", nargs=-1, required=True, metavar="REF[=SCALE]...")
@click.option("--as", "name", required=True, metavar="NAME", help="What the sum is published as.")
@json_option
def combine_command(parts: tuple[str, ...], name: str, as_json: bool) -> None:
    """Add task vectors of one base, each times its scale (1 when none is given), and publish the sum.

    Scale -1 is the opposite change. Said of every two parts is the cosine at each decoder block that both change: what
    is far from 0 asks the same weights for the same, or for the opposite.

    Example: engrain registry combine task-vector/listening@3 task-vector/not_rushing@2=0.8 --as pair
    """
    from engrain.registry.combine import combine, parse_part

    done = combine(Store(), [parse_part(part) for part in parts], name)
    if as_json:
        print_json(
            {
                "reference": done.version.reference,
                "digest": done.version.digest,
                "parts": [{"reference": reference, "scale": scale} for reference, scale in done.parts],
                "interference": [one.to_json() for one in done.interference],
            }
        )
        return
    terms = " + ".join(f"{scale:g} * {reference}" for reference, scale in done.parts)
    click.echo(f"{done.version.reference} = {terms}")
    for one in done.interference:
        click.echo(f"cosine of {one.first} and {one.second}:")
        cosines = [f"  block {layer}: {cosine:+.3f}" for layer, cosine in one.cosines.items()]
        click.echo("\n".join(cosines or ["  they change no block together"]))
    click.echo(f"for the verdict of each behavior on the sum: engrain verify {done.version.reference}")
