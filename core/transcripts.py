"""Pairs proposed from conversations that were already had: a reply that was corrected, and the one then accepted."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engrain.core.contrast import ContrastPair, Message, parse_message
from engrain.core.errors import DataError
from engrain.core.files import read_json_lines

# How a user's message starts that corrects the reply before it. English, German, French, Spanish.
_CORRECTION = re.compile(
    r"(no|nope|wrong|stop|wait|again:|not what i|that'?s not|this is not|as i said|don'?t|please don'?t"
    r"|i (said|meant|asked|told)|you (changed|ignored|forgot|misunderstood)|read (it|that|my)"
    r"|nein|falsch|ich (meinte|sagte|hatte)|non|ce n'est pas|j'ai (dit|demandé)|eso no|te (dije|pedí))(?!\w)",
    re.IGNORECASE,
)
# How one starts that accepts it.
_ACCEPTANCE = re.compile(
    r"(thanks?|thank you|perfect|great|exactly|yes|yep|good|nice|works|that'?s (it|right|better|what)"
    r"|danke|genau|passt|ja|merci|parfait|oui|gracias|perfecto|sí)(?!\w)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Proposal:
    """A pair for a person to review.

    Attributes:
        pair: the conversation up to the request, the reply that was corrected as the negative, the accepted one as
            the positive.
        file: where the conversation stands, relative to the folder.
        correction: the user's words that corrected the negative.
        acceptance: the user's words after the positive, or empty where the conversation ends.
    """

    pair: ContrastPair
    file: str
    correction: str
    acceptance: str

    def to_json(self) -> dict[str, Any]:
        """Return a line of a pairs file, with what a reviewer needs under ``review``."""
        review = {"file": self.file, "correction": self.correction, "acceptance": self.acceptance}
        return self.pair.to_json() | {"review": review}


def read_conversations(folder: Path) -> Iterator[tuple[str, list[Message]]]:
    """Yield (file relative to the folder, messages) of every conversation in the ``*.jsonl`` files of a folder.

    A line is a message ``{"role", "content"}``, the file then being one conversation, or a conversation
    ``{"messages": [...]}`` or ``{"conversation": [...]}``. Links are not followed.

    Raises:
        DataError: no such folder, no file in it, or a bad line.
    """
    if not folder.is_dir():
        raise DataError(folder, None, "is not a folder of transcripts (*.jsonl).")
    files = sorted(path for path in folder.rglob("*.jsonl") if path.is_file() and not path.is_symlink())
    if not files:
        raise DataError(folder, None, "holds no *.jsonl file.")
    for path in files:
        name = path.relative_to(folder).as_posix()
        single: list[Message] = []
        for number, line in read_json_lines(path):
            turns = line.get("messages", line.get("conversation"))
            if turns is None:
                single.append(parse_message(line, path, number))
            elif isinstance(turns, list):
                yield name, [parse_message(turn, path, number) for turn in turns]
            else:
                raise DataError(path, number, "a conversation must be a list of messages.")
        if single:
            yield name, single


def propose(conversation: Sequence[Message], file: str = "") -> Iterator[Proposal]:
    """Yield the pairs in one conversation: request, corrected reply, correction ..., reply that was not corrected."""
    scenario = f"transcript-{_digest(conversation)}"
    place = 0
    while place + 3 < len(conversation):
        request, corrected, correction = conversation[place : place + 3]
        if not _is_corrected(request, corrected, correction):
            place += 1
            continue
        # A correction may need several tries: the last reply before the user stops correcting is the accepted one.
        last = place + 3
        while last + 2 < len(conversation) and _is_corrected(
            conversation[last - 1], conversation[last], conversation[last + 1]
        ):
            last += 2
        accepted = conversation[last]
        after = conversation[last + 1].content if last + 1 < len(conversation) else ""
        if (
            accepted.role == "assistant"
            and accepted.content.strip() != corrected.content.strip()
            and not _corrects(after)
        ):
            pair = ContrastPair(
                messages=tuple(conversation[: place + 1]),
                positive=accepted.content,
                negative=corrected.content,
                id=f"{scenario}-{place}",
                scenario=scenario,
            )
            yield Proposal(pair, file, correction.content, after if _ACCEPTANCE.match(after.strip()) else "")
        place = last + 1


def _is_corrected(request: Message, reply: Message, after: Message) -> bool:
    roles = (request.role, reply.role, after.role) == ("user", "assistant", "user")
    return roles and bool(reply.content.strip()) and _corrects(after.content)


def _corrects(text: str) -> bool:
    return bool(_CORRECTION.match(text.strip()))


def _digest(conversation: Sequence[Message]) -> str:
    words = "\n".join(f"{message.role}: {message.content}" for message in conversation)
    return hashlib.sha256(words.encode()).hexdigest()[:16]
