"""The laws of the engine on the real model."""

import pytest
import torch
from torch import Tensor

from engrain.core.blocks import block_output
from engrain.core.composition import activate
from engrain.core.extract import extract
from engrain.core.generate import generate
from engrain.core.model import SteerableModel
from engrain.core.scoring import margins
from engrain.core.vector import SteeringVector
from engrain.loading import load
from engrain.plugins.manager import build_manager

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def demo() -> SteerableModel:
    """The demo model; what stands in the user's cache is only read, or made once."""
    return load("demo")


@pytest.fixture(scope="module")
def vector(demo: SteerableModel) -> SteeringVector:
    return extract(demo, build_manager().behavior("listening").pairs().split("train").ordinary.pairs[:6])


def logits(model: SteerableModel, prompt: str = "Name a river.") -> Tensor:
    with torch.no_grad():
        found: Tensor = model.hf(torch.tensor([model.render(prompt)]), use_cache=False).logits
    return found


def test_the_chat_template_brings_its_own_system_prompt_once(demo: SteerableModel) -> None:
    text = str(demo.tokenizer.decode(list(demo.render("hi"))))
    assert text.count("You are a helpful AI assistant named SmolLM") == 1
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_the_direction_equals_a_literal_loops_at_every_block(demo: SteerableModel) -> None:
    pairs = build_manager().behavior("not_rushing").pairs().split("train").ordinary.pairs[:3]
    found = extract(demo, pairs)
    totals = [torch.zeros(demo.width, dtype=torch.float64) for _ in demo.blocks]
    for pair in pairs:
        for sign, sequence in zip((1, -1), demo.encode_pair(pair), strict=True):
            states: list[Tensor] = []

            def note(module: object, inputs: object, output: object, states: list[Tensor] = states) -> None:
                states.append(block_output(output)[0])

            hooks = [block.register_forward_hook(note) for block in demo.blocks]
            with torch.no_grad():
                demo.hf(torch.tensor([sequence.prompt + sequence.reply]), use_cache=False)
            for hook in hooks:
                hook.remove()
            for total, state in zip(totals, states, strict=True):
                total += sign * state[len(sequence.prompt) :].double().mean(dim=0) / len(pairs)
    for layer, total in enumerate(totals):
        assert (found.at(layer) - total).norm() <= 1e-3 * total.norm()
        assert torch.cosine_similarity(found.at(layer).double(), total, dim=0) >= 0.9999


def test_it_is_the_same_to_the_bit_before_and_after_steering(demo: SteerableModel, vector: SteeringVector) -> None:
    before = logits(demo)
    with demo.steer(activate(vector, "all", 1.0), activate(vector, 16, 1.0, operation="ablate")):
        assert not torch.equal(logits(demo), before)
    assert torch.equal(logits(demo), before)
    with demo.steer(activate(vector, "all", 0.0)):
        assert torch.equal(logits(demo), before)


def test_rows_of_one_generation_reply_as_they_do_alone(demo: SteerableModel, vector: SteeringVector) -> None:
    from engrain.core.generate import Sampling

    short, prompts = Sampling(max_new_tokens=12), ["Name a river.", "Write one sentence about the sea."]
    one, two = activate(vector, 16, 4.0), activate(vector, 18, 4.0, "generated")
    alone = []
    for prompt, actives in zip(prompts, ([one], [two]), strict=True):
        with demo.steer(*actives):
            alone += generate(demo, [prompt], short)
    with demo.steer(rows=[[one], [two], []]):
        assert generate(demo, [*prompts, prompts[0]], short) == [*alone, *generate_plain(demo, prompts[0])]


def generate_plain(model: SteerableModel, prompt: str) -> list[str]:
    """The reply of transformers alone, without any of our code but the rendering."""
    tokens = torch.tensor([model.render(prompt)])
    bare = load("demo").hf
    with torch.no_grad():
        found = bare.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, do_sample=False)
    text = model.tokenizer.decode(found[0, tokens.shape[1] :], skip_special_tokens=True)
    assert isinstance(text, str)
    return [text.strip()]


def test_more_of_the_vector_moves_the_margin_further(demo: SteerableModel, vector: SteeringVector) -> None:
    # On the pairs it was made from, at doses far from breaking: the direction does what it stands for.
    pairs = build_manager().behavior("listening").pairs().split("train").ordinary.pairs[:6]
    found = []
    for strength in (-1.0, 0.0, 1.0):
        with demo.steer(activate(vector, 16, strength)):
            found.append(float(margins(demo, pairs).mean()))
    assert found[0] < found[1] < found[2]
