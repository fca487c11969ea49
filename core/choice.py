"""Multiple-choice propensity: which of two replies does the model say that it would give?"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engrain.core.capture import PackRunner
from engrain.core.contrast import ContrastPair, Message
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.progress import Count
from engrain.core.scoring import reply_means

_QUESTION = "{prompt}\n\nWhich of these replies would you give?\n\n(A) {a}\n\n(B) {b}\n\nAnswer with A or B."


def propensities(model: SteerableModel, pairs: Sequence[ContrastPair], progress: Count | None = None) -> Tensor:
    """Return how probable the letter of each pair's positive reply is, of the two letters.

    Each pair is asked in both orders and the two are averaged, so that a liking for a letter cancels.

    Args:
        model: the model, with whatever edit is on it.
        pairs: contrast pairs; what stands before the replies is that of the positive one.
        progress: called with the number of pairs done since the last call.

    Returns:
        Probabilities, float64 [pairs].
    """
    sequences: list[Encoded] = []
    for pair in pairs:
        for first, second in ((pair.positive, pair.negative), (pair.negative, pair.positive)):
            asked = _asked(pair.messages, first, second)
            sequences += [model.encode(asked, letter) for letter in "AB"]
    runner = PackRunner(model, sequences, group=4)
    # [pairs, order, letter]; the positive stands behind A in the first order and behind B in the second.
    scores = reply_means(runner, sequences, 4, progress).view(-1, 2, 2)
    chosen = scores.softmax(dim=-1)
    return torch.stack([chosen[:, 0, 0], chosen[:, 1, 1]]).mean(dim=0)


def _asked(messages: tuple[Message, ...], a: str, b: str) -> tuple[Message, ...]:
    last = messages[-1]
    return (*messages[:-1], replace(last, content=_QUESTION.format(prompt=last.content, a=a, b=b)))
