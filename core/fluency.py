"""How fluent replies are: repeated phrases, variety of words, length, how likely the base model finds them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engrain.core.capture import PackRunner
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.scoring import reply_means

# The base's greedy replies are its own most likely words, so that any others are less likely; a reply is incoherent
# only from twice the perplexity on.
_SURPRISE = math.log(2)
# What makes a reply worse: more of it (1) or less (-1).
_WORSE = (("repeated", 1), ("distinct", -1), ("surprise", 1))


@dataclass(frozen=True)
class Fluency:
    """What one reply is like.

    Attributes:
        repeated: share of its runs of four tokens that stand in it before (0 with fewer than four tokens).
        distinct: share of its pairs of neighboring tokens that are different ones (Li et al., arXiv 1510.03055).
        tokens: how long it is.
        surprise: mean negative log-probability per token under the unedited model, nats; perplexity is its exponential.
    """

    repeated: float
    distinct: float
    tokens: int
    surprise: float


def distinct_runs(tokens: Sequence[int], length: int) -> float:
    """Return the share of runs of ``length`` tokens that are different ones; 1 when there is no such run."""
    runs = [tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def fluency(model: SteerableModel, replies: Sequence[Encoded]) -> list[Fluency]:
    """Return what each reply is like, scored by the model as it is: unedited, when called outside of an edit.

    Args:
        model: the judge of how likely the replies are.
        replies: conversations with the replies to them; one without a token counts as wholly repeated.
    """
    spoken = [one for one in replies if one.reply]
    likely = iter(reply_means(PackRunner(model, spoken), spoken).tolist() if spoken else [])
    return [
        Fluency(1 - distinct_runs(one.reply, 4), distinct_runs(one.reply, 2), len(one.reply), -next(likely))
        if one.reply
        else Fluency(1.0, 0.0, 0, 0.0)
        for one in replies
    ]


@dataclass(frozen=True)
class Degeneration:
    """Replies of an edited model beside those of its base to the same prompts.

    Attributes:
        base: the base's replies.
        edited: the edited model's.
    """

    base: tuple[Fluency, ...]
    edited: tuple[Fluency, ...]

    @property
    def length_ratio(self) -> float:
        """Mean length of the edited replies over that of the base's."""
        return sum(one.tokens for one in self.edited) / max(1, sum(one.tokens for one in self.base))

    @property
    def incoherent(self) -> tuple[bool, ...]:
        """Which edited replies are more repetitive than 19 in 20 of the base's own, or far less likely."""
        worst = []
        for name, worse in _WORSE:
            base, edited = self._sides(name, worse)
            slack = _SURPRISE if name == "surprise" else 0.0
            worst.append(edited > np.quantile(base, 0.95) + slack)
        return tuple(bool(one) for one in np.any(worst, axis=0))

    def faults(self) -> list[str]:
        """Return in what the edited replies, on average, are worse than 19 base replies in 20."""
        found = []
        for name, worse in _WORSE:
            base, edited = self._sides(name, worse)
            bound = float(np.quantile(base, 0.95))
            if edited.mean() > bound:
                found.append(f"{name} {worse * edited.mean():.3f}, base's bound {worse * bound:.3f}")
        return found

    def _sides(self, name: str, worse: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return one measure of the base's and of the edited replies, so that more is worse."""
        base, edited = (np.array([getattr(one, name) for one in side]) for side in (self.base, self.edited))
        return worse * base, worse * edited

    def to_json(self) -> dict[str, Any]:
        """Return means of both sides, the length ratio and the faults."""
        sides = {
            side: {
                name: float(np.mean([getattr(one, name) for one in getattr(self, side)]))
                for name in ("repeated", "distinct", "tokens", "surprise")
            }
            for side in ("base", "edited")
        }
        return {
            **sides,
            "length_ratio": self.length_ratio,
            "incoherent": sum(self.incoherent),
            "faults": self.faults(),
            "replies": len(self.base),
        }
