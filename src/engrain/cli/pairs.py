"""``engrain pairs``: pairs proposed from transcripts, for a person to review."""

import json
from pathlib import Path

import click

from engrain.cli.options import force_option, json_option
from engrain.cli.output import print_json, say
from engrain.core.errors import OutputExistsError
from engrain.core.files import write_atomically
from engrain.core.transcripts import propose, read_conversations


@click.command("pairs")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The pairs file to write.")
@force_option
@json_option
def pairs_command(folder: Path, out: Path, force: bool, as_json: bool) -> None:
    """Propose pairs from conversations in FOLDER in which a reply was corrected and a later one accepted.

    FOLDER holds *.jsonl: a message a line, or a conversation {"messages": [...]} a line. The proposals are found by how
    the user's messages start; read each before you use it. What was said stands under "review" in each line.

    Example: engrain pairs transcripts --out proposed.jsonl
    """
    if out.exists() and not force:
        raise OutputExistsError(out)
    conversations = list(read_conversations(folder))
    found = [one for file, conversation in conversations for one in propose(conversation, file)]
    lines = [json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in found]
    write_atomically(out, "".join(lines).encode(), force=force)
    if as_json:
        print_json({"conversations": len(conversations), "proposals": len(found), "file": str(out)})
    else:
        click.echo(f"{out}: {len(found)} proposals from {len(conversations)} conversations")
    if found:
        say("These are proposals: read each, mend it or take it out, before anything is extracted from them.")
