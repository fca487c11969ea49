"""``engrain import``: another program's vector, published."""

from pathlib import Path

import click

from engrain.cli.options import json_option
from engrain.cli.output import print_json, say
from engrain.core.names import check_name
from engrain.plugins.manager import Plugins


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="What the vector is to be called.")
@json_option
@click.pass_obj
def import_command(plugins: Plugins, file: Path, name: str, as_json: bool) -> None:
    """Publish the vector of a FILE: a GGUF control vector of repeng or llama.cpp, or a safetensors file of engrain.

    Example: engrain import happy.gguf --name happy
    """
    read = plugins.importer(file.suffix)
    check_name(name, "vector")

    from engrain.registry.store import Store
    from engrain.registry.vectors import publish_vector

    vector = read(file, name)
    version = publish_vector(Store(), name, vector)
    if vector.fingerprint is None:
        say("note: the file does not say which model it was made on, so that is not checked when it is used.")
    if as_json:
        print_json(
            {
                "reference": version.reference,
                "digest": version.digest,
                "layers": list(vector.layers),
                "d_model": vector.width,
                "origin": dict(vector.origin),
            }
        )
        return
    click.echo(f"{version.reference}: {len(vector.layers)} layers, d_model {vector.width}")
