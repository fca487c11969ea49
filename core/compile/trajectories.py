"""Replies sampled from the steered teacher: the conversations in which the compiled weights are to be like it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engrain.core.chat import encode_reply
from engrain.core.edit import Edit
from engrain.core.fluency import fluency
from engrain.core.generate import Sampling, generate_all
from engrain.core.model import Conversation, SteerableModel
from engrain.core.packing import Encoded
from engrain.core.progress import Count

# What is more repetitive or less likely under the base than this teaches how to break, not how to behave.
_REPEATED = 0.3
_SURPRISE = math.log(50)


@dataclass(frozen=True)
class Trajectory:
    """A conversation and the teacher's reply to it.

    Attributes:
        number: of the prompt, among those that were given.
        sequence: their tokens.
    """

    number: int
    sequence: Encoded


def sample_trajectories(
    model: SteerableModel,
    prompts: Sequence[Conversation],
    teacher: Edit,
    *,
    tokens: int = 64,
    seed: int = 0,
    progress: Count | None = None,
) -> list[Trajectory]:
    """Let the teacher reply once to each prompt (temperature 1, top_p .95), and keep what is fluent.

    Args:
        model: the base.
        prompts: conversations up to where the reply starts.
        teacher: makes a context in which the model is the teacher.
        tokens: how long a reply may be.
        seed: of the drawing.
        progress: called with the number of replies sampled since the last call.

    Returns:
        Those replies that have a token, are not repetitive, and have a perplexity of 50 at most under the base.
    """
    with teacher():
        replies = generate_all(model, prompts, Sampling(tokens, temperature=1.0, top_p=0.95, seed=seed), progress)
    found = [
        Trajectory(number, Encoded(model.render(prompt), tuple(encode_reply(model.tokenizer, reply))))
        for number, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
        if reply
    ]
    quality = fluency(model, [one.sequence for one in found])
    return [
        one for one, own in zip(found, quality, strict=True) if own.repeated <= _REPEATED and own.surprise <= _SURPRISE
    ]
