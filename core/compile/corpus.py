"""What a compiler learns from: conversations of the behavior, where the teacher is steered, and everything else."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from engrain.core.packing import Encoded

# Raw paragraphs and ordinary chat turns, for ``read_neutral``: to be left as they are by what is compiled. None of them
# is among the neutral texts that verdicts are on.
RETAIN = Path(__file__).parents[1] / "data" / "retain.jsonl"


@dataclass(frozen=True)
class Corpus:
    """Token sequences in four parts.

    Attributes:
        scope: where the compiled weights are to be like the steered model.
        retain: where they are to be like the base; like the steered model for a faithful compile.
        held_scope: the first, unseen by training: says when to stop and which of several results is the best.
        held_retain: the second, unseen by training.
    """

    scope: tuple[Encoded, ...]
    retain: tuple[Encoded, ...]
    held_scope: tuple[Encoded, ...]
    held_retain: tuple[Encoded, ...]

    @property
    def digest(self) -> str:
        """sha256 of all the tokens."""
        digest = hashlib.sha256()
        for part in (self.scope, self.retain, self.held_scope, self.held_retain):
            digest.update(repr([(one.prompt, one.reply) for one in part]).encode())
        return f"sha256:{digest.hexdigest()}"
