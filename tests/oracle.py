"""Slow and literal: what the fast code is held against."""

import torch
from torch import Tensor

from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded


def log_probability(model: SteerableModel, sequence: Encoded) -> Tensor:
    """Return the log-probabilities of the reply's tokens, by one plain forward pass.

    Of a reply without a prompt the first token has none.
    """
    tokens = torch.tensor([sequence.prompt + sequence.reply])
    with torch.no_grad():
        scores = model.hf(tokens, use_cache=False).logits[0].double().log_softmax(-1)
    places = range(max(1, len(sequence.prompt)), tokens.shape[1])
    return torch.stack([scores[place - 1, tokens[0, place]] for place in places])
