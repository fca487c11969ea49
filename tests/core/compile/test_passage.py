"""Looks at a block from a pass that was begun once are those of whole passes."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor

from compile_order import active, fresh
from engrain.core.blocks import block_output
from engrain.core.compile.passage import Passage
from engrain.core.compile.target import mlp_writer
from engrain.core.packing import Encoded

TEXTS = (Encoded((1, 2, 3, 4), (5, 6)), Encoded((1, 2, 9), (7, 5, 6)), Encoded((), (8, 2, 6, 11)))


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("entry", [0, 1, 2])
@pytest.mark.parametrize("steered", [False, True])
def test_what_is_seen_is_what_a_whole_pass_has(family: str, entry: int, steered: bool) -> None:
    model = fresh(family)
    name, module = mlp_writer(model, 2)
    edit = partial(model.steer, active()) if steered else nullcontext
    # Block 1 is steered, so the one that begins behind it has to have gone through it.
    passage = Passage(model, TEXTS, min(entry, 1)).onward(2, edit) if entry == 2 else Passage(model, TEXTS, entry)
    with edit():
        seen = [passage.see(number, 2, {name: module}) for number in range(len(passage))]
        whole: dict[str, list[Tensor]] = {"inputs": [], "outputs": [], "before": [], "after": []}

        def keep(kind: str) -> Callable[[Tensor], None]:
            return lambda states: whole[kind].append(states[0])

        hooks = [
            module.register_forward_hook(lambda _, inputs, output: keep("inputs")(inputs[0])),
            module.register_forward_hook(lambda _, inputs, output: keep("outputs")(output)),
            model.blocks[2].register_forward_pre_hook(lambda _, inputs: keep("before")(inputs[0])),
            model.blocks[2].register_forward_hook(lambda _, inputs, output: keep("after")(block_output(output))),
        ]
        with torch.no_grad():
            for one in TEXTS:
                model.hf(input_ids=torch.tensor([one.prompt + one.reply]), use_cache=False)
        for hook in hooks:
            hook.remove()
    for pack, own in zip(passage.packs, seen, strict=True):
        for member, path in zip(pack.members, pack.paths, strict=True):
            sides = {"before": own.before, "after": own.after}
            sides |= {"inputs": own.inputs[name], "outputs": own.outputs[name]}
            for kind, states in sides.items():
                torch.testing.assert_close(states[path], whole[kind][member], rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    model = fresh()
    name, module = mlp_writer(model, 2)
    Passage(model, TEXTS, 1).see(0, 2, {name: module})
    assert not any("forward" in vars(one) or one._forward_hooks or one._forward_pre_hooks for one in model.hf.modules())
