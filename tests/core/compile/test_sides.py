"""The same texts under several edits, as plain passes see them."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor

from engrain.core.compile.sides import BASE, Side, each_side, of_members
from engrain.core.composition import activate
from engrain.core.packing import Encoded
from engrain.core.scoring import log_probabilities
from engrain.core.vector import SteeringVector
from oracle import log_probability
from tiny import tiny

VECTOR = SteeringVector({layer: torch.randn(32, generator=torch.Generator().manual_seed(3)) for layer in range(3)}, "v")


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral-window"])
@pytest.mark.parametrize(("entry", "layer"), [(0, 1), (1, 1), (1, 2)])
def test_each_side_sees_what_a_plain_pass_sees(family: str, entry: int, layer: int) -> None:
    model = tiny(family)
    texts = [model.encode("Hello.", "a reply"), Encoded((), (*range(20, 40),) * 8), model.encode("Hello.", "a rope")]
    edits = {"steered": partial(model.steer, activate(VECTOR, layer, 1.5))}

    def said(reference: Side, side: Side) -> tuple[Tensor, Tensor]:
        assert set(side.states) == {1, 2}
        return log_probabilities(side.logits, side.following.clamp(min=0)), reference.logits

    seen: dict[str, dict[int, Tensor]] = {BASE: {}, "steered": {}}
    for pack, found in each_side(model, texts, edits, entry, said, layers=[1], reference="steered"):
        assert torch.equal(found[BASE][1], found["steered"][1])
        for name, (scores, _) in found.items():
            seen[name] |= of_members(pack, scores)
    for name, on in ((BASE, nullcontext()), ("steered", model.steer(activate(VECTOR, layer, 1.5)))):
        with on:
            for place, text in enumerate(texts):
                wanted = log_probability(model, text)
                own = seen[name][place]
                assert len(own) == len(text.reply)
                torch.testing.assert_close(own[: len(wanted)], wanted, rtol=1e-3, atol=1e-3)
    assert math.isfinite(sum(float(one.sum()) for one in seen[BASE].values()))
