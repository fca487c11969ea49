"""Replies of a model to conversations, several at a time, as text or as a stream of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from engrain.core.draw import Draw
from engrain.core.errors import InputError
from engrain.core.model import Conversation, SteerableModel
from engrain.core.progress import Count

OnText = Callable[[str], None]

# Rows of one batch; a reply's padding costs as much as its words.
AT_ONCE = 24


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: where a reply ends at the latest.
        temperature: 0 takes the most probable token; above it tokens are drawn.
        top_p: drawn from the most probable tokens that hold this much of the probability.
        seed: of the drawing; the same seed gives the same replies on the same machine.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}; a reply has one token at least.")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"The temperature is {self.temperature}; it must be 0 or above.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")


def generate(
    model: SteerableModel,
    conversations: Sequence[Conversation],
    sampling: Sampling | None = None,
    *,
    on_text: OnText | None = None,
) -> list[str]:
    """Return a reply to each conversation, under the steering that is on the model.

    Args:
        model: the model.
        conversations: one row of the batch each, padded on the left.
        sampling: how tokens are chosen; by default greedily.
        on_text: called with pieces of the reply as they come; for a single conversation.

    Raises:
        InputError: ``on_text`` for several conversations.
    """
    sampling = sampling or Sampling()
    if on_text is not None and len(conversations) != 1:
        raise InputError(f"A stream shows one reply, {len(conversations)} were asked for.")
    tokens, mask = _pad_left([model.render(one) for one in conversations])
    device = model.hf.device
    # Not with do_sample: drawing is a processor of its own.
    draws = [Draw(sampling.temperature, sampling.top_p, sampling.seed)] if sampling.temperature > 0 else []
    with torch.inference_mode():
        found = model.hf.generate(
            input_ids=tokens.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=sampling.max_new_tokens,
            streamer=None if on_text is None else _TextStreamer(model.tokenizer, on_text),
            pad_token_id=_pad_token(model),
            do_sample=False,
            logits_processor=LogitsProcessorList(draws),
        )
    replies = model.tokenizer.batch_decode(found[:, tokens.shape[1] :], skip_special_tokens=True)
    return [reply.strip() for reply in replies]


def generate_all(
    model: SteerableModel,
    conversations: Sequence[Conversation],
    sampling: Sampling,
    progress: Count | None = None,
) -> list[str]:
    """Return a reply to each of many conversations, ``AT_ONCE`` rows at a time, drawn from seeds one after the other.

    Args:
        model: the model.
        conversations: any number of them.
        sampling: how tokens are chosen.
        progress: called with the number of replies made since the last call.
    """
    made: list[str] = []
    for first in range(0, len(conversations), AT_ONCE):
        chunk = conversations[first : first + AT_ONCE]
        made += generate(model, chunk, replace(sampling, seed=sampling.seed + first))
        if progress is not None:
            progress(len(chunk))
    return made


def _pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, own in enumerate(rows):
        tokens[row, width - len(own) :] = torch.tensor(own)
        mask[row, width - len(own) :] = 1
    return tokens, mask


def _pad_token(model: SteerableModel) -> int:
    ends = model.hf.generation_config.eos_token_id
    known = (model.tokenizer.pad_token_id, ends[0] if isinstance(ends, list) else ends)
    return next((token for token in known if token is not None), 0)


class _TextStreamer(BaseStreamer):
    """Hands on text as soon as it is certain: a piece ends where no later token can change it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: OnText) -> None:
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._tokens: list[int] = []
        self._shown = 0
        self._prompt = True

    def put(self, value: Tensor) -> None:
        """Take in the prompt, then one token after another."""
        if self._prompt:
            self._prompt = False
            return
        self._tokens += value.reshape(-1).tolist()
        text = self._text()
        # A character of several tokens decodes to the replacement character until its last token is there.
        if len(text) > self._shown and not text.endswith("\ufffd"):
            self._on_text(text[self._shown :])
            self._shown = len(text)

    def end(self) -> None:
        """Hand on what was held back."""
        text = self._text()
        if len(text) > self._shown:
            self._on_text(text[self._shown :])

    def _text(self) -> str:
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        return text
