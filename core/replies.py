"""Free replies of base and edited model to the same messages: fluent or not, and judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from engrain.core.change import Change
from engrain.core.chat import encode_reply
from engrain.core.edit import Edit
from engrain.core.fluency import Degeneration, fluency
from engrain.core.generate import Sampling, generate_all
from engrain.core.judge import Exchange, Judge
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.progress import Count

# Long enough for a loop to show.
REPLY_TOKENS = 128


@dataclass(frozen=True)
class Replies:
    """Replies side by side.

    Attributes:
        prompts: the users' messages.
        base: the unedited model's replies, taken greedily.
        edited: the edited model's.
    """

    prompts: tuple[str, ...]
    base: tuple[str, ...]
    edited: tuple[str, ...]

    @classmethod
    def sample(
        cls,
        model: SteerableModel,
        prompts: Sequence[str],
        edit: Edit,
        progress: Count | None = None,
    ) -> Self:
        """Let both models reply.

        Args:
            model: the model, unedited.
            prompts: users' messages.
            edit: makes a context in which the model is edited.
            progress: called with the number of replies made since the last call.
        """
        sampling = Sampling(max_new_tokens=REPLY_TOKENS)

        base = generate_all(model, prompts, sampling, progress)
        with edit():
            edited = generate_all(model, prompts, sampling, progress)
        return cls(tuple(prompts), tuple(base), tuple(edited))

    @classmethod
    def from_json(cls, found: Sequence[dict[str, str]]) -> Self:
        """Return what ``to_json`` wrote."""
        return cls(*(tuple(one[key] for one in found) for key in ("prompt", "base", "edited")))

    def to_json(self) -> list[dict[str, str]]:
        """Return one object for each prompt."""
        sides = zip(self.prompts, self.base, self.edited, strict=True)
        return [{"prompt": prompt, "base": base, "edited": edited} for prompt, base, edited in sides]

    def degeneration(self, model: SteerableModel) -> Degeneration:
        """Return how fluent they are, likelihoods taken under ``model`` as it is: unedited, when called outside."""

        def side(replies: Sequence[str]) -> tuple[Any, ...]:
            encoded = [
                Encoded(model.render(prompt), tuple(encode_reply(model.tokenizer, reply)) if reply else ())
                for prompt, reply in zip(self.prompts, replies, strict=True)
            ]
            return tuple(fluency(model, encoded))

        return Degeneration(side(self.base), side(self.edited))

    def judged(
        self, judge: Judge, incoherent: Sequence[bool], *, seed: int = 0, progress: Count | None = None
    ) -> "Judgement":
        """Return how much more of the behavior the edited replies show.

        Incoherent text never counts as success: an incoherent edited reply scores the base's at most.

        Args:
            judge: who says how much a reply shows.
            incoherent: which of the edited replies are incoherent.
            seed: of the bootstrap over prompts.
            progress: called with the number of replies judged since the last call.

        Raises:
            JudgeError: the judge has no score for a reply.
        """
        base, edited = (
            np.array(judge.score([Exchange(*one) for one in zip(self.prompts, replies, strict=True)], progress))
            for replies in (self.base, self.edited)
        )
        edited = np.where(incoherent, np.minimum(edited, base), edited)
        return Judgement(judge.name, judge.unit, Change.between(base, edited, self.prompts, seed))


@dataclass(frozen=True)
class Judgement:
    """What a judge says of replies.

    Attributes:
        judge: its name.
        unit: what its scores count.
        change: of the mean score, its interval over prompts.
    """

    judge: str
    unit: str
    change: Change

    def to_json(self) -> dict[str, Any]:
        """Return the fields, those of the change among them."""
        return {"judge": self.judge, "unit": self.unit, **self.change.to_json()}
