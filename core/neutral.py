"""Neutral text: what an edit of a model should leave alone."""

from pathlib import Path

from engrain.core.contrast import Split, parse_message, split_of
from engrain.core.errors import DataError
from engrain.core.files import read_json_lines
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded

# Raw paragraphs and ordinary chat turns of many kinds, written for this.
SHIPPED = Path(__file__).parent / "data" / "neutral.jsonl"


def read_neutral(model: SteerableModel, path: Path | None = None, split: Split | None = None) -> list[Encoded]:
    """Return the tokens of a neutral file, or of the one that engrain ships.

    A line ``{"text": ...}`` becomes a reply without a prompt, with the special tokens the tokenizer puts around text;
    a line ``{"messages": [...]}`` a conversation whose last turn, the assistant's, is the reply.

    Args:
        model: whose tokenizer and chat template are used.
        path: JSON lines; None for the shipped file.
        split: only the lines of that split, by the hash of their words (everything is in one of the three).

    Raises:
        DataError: a bad line, or no text.
    """
    path = path or SHIPPED
    found: list[Encoded] = []
    for number, line in read_json_lines(path):
        text, turns = line.get("text"), line.get("messages")
        if isinstance(text, str) and text.strip() and turns is None:
            words, encoded = text, Encoded((), tuple(model.tokenizer(text)["input_ids"]))
        elif isinstance(turns, list) and text is None:
            messages = [parse_message(turn, path, number, "a message in 'messages'") for turn in turns]
            if len(messages) < 2 or messages[-1].role != "assistant":
                raise DataError(
                    path, number, "the last of 'messages' must be the assistant's, after at least one other."
                )
            words, encoded = messages[-1].content, model.encode(messages[:-1], messages[-1].content)
        else:
            raise DataError(path, number, 'a neutral line is {"text": text} or {"messages": [...]}.')
        if split is None or split_of(words) == split:
            found.append(encoded)
    if not found:
        raise DataError(path, None, "holds no neutral text.")
    return found
