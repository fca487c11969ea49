"""Extraction against a slow literal loop, on every family."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engrain.core.blocks import block_output
from engrain.core.contrast import ContrastPair, Message, PairSet
from engrain.core.errors import DataError, EngrainError, LayerError, UnknownNameError
from engrain.core.extract import MeanDifference, PrincipalDifference, extract
from engrain.core.model import SteerableModel
from engrain.core.probe import LogisticProbe
from engrain.core.vector import SteeringVector
from tiny import FAMILIES, byte_tokenizer, random_model, tiny


def pair(prompt: str, positive: str, negative: str, **more: object) -> ContrastPair:
    return ContrastPair((Message("user", prompt),), positive, negative, **more)  # type: ignore[arg-type]


PAIRS = (
    pair("Tea or coffee?", "Tea, thanks.", "Well, that depends."),
    pair("Tea or coffee?", "Tea. Black.", "Have you had water?"),
    pair("Ship it", "Shipped.", "Shall we wait, though?"),
    pair("A much longer message, to be told apart by length.", "Yes.", "No, and let me tell you why not at all."),
    pair("x", "ab", "cd"),
    pair("never extracted from", "p", "n", boundary=True),
)
INSTRUCTED = tuple(
    ContrastPair(
        (Message("system", "Be brief."), Message("user", text)),
        positive,
        negative,
        negative_messages=(Message("system", "Ramble on."), Message("user", text)),
    )
    for text, positive, negative in (("Hi", "Hi.", "Hi there, you."), ("Why?", "So.", "Well, because."))
)


def block_outputs(model: SteerableModel, tokens: tuple[int, ...]) -> list[Tensor]:
    states: list[Tensor] = []

    def note(module: object, inputs: object, output: object) -> None:
        states.append(block_output(output)[0])

    hooks = [
        block.register_forward_hook(lambda *seen: states.append(block_output(seen[2])[0])) for block in model.blocks
    ]
    with torch.no_grad():
        model.hf(torch.tensor([tokens]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return states


def reference(model: SteerableModel, pairs: Sequence[ContrastPair], positions: str = "response-mean") -> list[Tensor]:
    """The definition, word by word: one forward pass for each reply, float64 means of means."""
    ordinary = [one for one in pairs if not one.boundary]
    totals = [torch.zeros(model.width, dtype=torch.float64) for _ in model.blocks]
    for one in ordinary:
        for sign, sequence in zip((1, -1), model.encode_pair(one), strict=True):
            states = block_outputs(model, sequence.prompt + sequence.reply)
            start = len(sequence.prompt)
            for layer, total in enumerate(totals):
                state = states[layer].double()
                if positions == "response-mean":
                    chosen = state[start:].mean(dim=0)
                elif positions == "prompt-last":
                    chosen = state[start - 1]
                else:
                    number = {"first": "0", "last": "-1"}.get(positions, positions)
                    chosen = state[start:][int(number)]
                total += sign * chosen / len(ordinary)
    return totals


def assert_equal(vector: SteeringVector, expected: Sequence[Tensor], tolerance: float = 1e-4) -> None:
    for layer in vector.layers:
        found = vector.at(layer).double()
        # Where both sides are the same but for rounding, there is no direction to compare.
        if expected[layer].norm() < 1e-6:
            assert found.norm() < 1e-6, layer
            continue
        assert (found - expected[layer]).norm() <= tolerance * expected[layer].norm(), layer
        assert torch.cosine_similarity(found, expected[layer], dim=0) >= 0.9999, layer


def test_the_direction_equals_the_literal_loops_at_every_block(clean: SteerableModel) -> None:
    assert_equal(extract(clean, PAIRS), reference(clean, PAIRS))


@pytest.mark.parametrize("tokens", [1, 40, 4096])
def test_the_size_of_a_pack_changes_nothing(model: SteerableModel, tokens: int) -> None:
    assert_equal(extract(model, PAIRS, tokens=tokens), reference(model, PAIRS))


def test_more_pairs_than_are_tokenized_at_a_time_all_count(llama: SteerableModel) -> None:
    many = [pair(f"{number}?", f"yes {number}", f"no {number} no") for number in range(300)]
    halves = [extract(llama, many[:256]), extract(llama, many[256:])]
    whole = extract(llama, many)
    for layer in whole.layers:
        expected = (halves[0].at(layer) * 256 + halves[1].at(layer) * 44) / 300
        torch.testing.assert_close(whole.at(layer), expected, atol=1e-6, rtol=1e-4)


def test_the_order_of_the_pairs_changes_nothing(llama: SteerableModel) -> None:
    one, other = extract(llama, PAIRS), extract(llama, PAIRS[::-1])
    assert_equal(one, [other.at(layer).double() for layer in other.layers], 1e-6)


@pytest.mark.parametrize("positions", ["first", "last", "0", "1", "-2"])
def test_each_position_is_that_token_of_the_reply(model: SteerableModel, positions: str) -> None:
    assert_equal(extract(model, PAIRS, positions=positions), reference(model, PAIRS, positions))


@pytest.mark.parametrize("positions", ["response-mean", "prompt-last"])
def test_instruction_contrast_runs_each_side_on_its_own_conversation(model: SteerableModel, positions: str) -> None:
    assert_equal(extract(model, INSTRUCTED, positions=positions), reference(model, INSTRUCTED, positions))


def test_a_tokenizer_without_a_template_is_extracted_from_alike() -> None:
    model = SteerableModel(random_model("llama"), byte_tokenizer(template=False))
    assert_equal(extract(model, PAIRS), reference(model, PAIRS))


def test_chosen_layers_are_the_same_as_when_all_are_asked_for(llama: SteerableModel) -> None:
    whole, part = extract(llama, PAIRS), extract(llama, PAIRS, layers=[1])
    assert part.layers == (1,)
    assert torch.allclose(part.at(1), whole.at(1), atol=1e-6)


def test_blocks_past_the_last_layer_asked_for_and_the_head_are_not_run(llama: SteerableModel) -> None:
    assert llama.sees_trees  # found out once, on all blocks
    ran: list[str] = []
    hooks = [
        llama.blocks[2].register_forward_hook(lambda *_: ran.append("block 2")),
        llama.hf.get_output_embeddings().register_forward_hook(lambda *_: ran.append("head")),
    ]
    extract(llama, PAIRS, layers=[0, 1])
    assert ran == []
    extract(llama, PAIRS)
    assert set(ran) == {"block 2"}
    for hook in hooks:
        hook.remove()


def test_a_prompt_is_computed_once_for_both_of_its_replies(llama: SteerableModel) -> None:
    assert llama.sees_trees
    seen: list[int] = []
    hook = llama.blocks[0].register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    extract(llama, PAIRS)
    hook.remove()
    pairs = [llama.encode_pair(one) for one in PAIRS if not one.boundary]
    apart = sum(len(one.prompt) + len(one.reply) for both in pairs for one in both)
    once = sum(len(both[0].prompt) + sum(len(one.reply) for one in both) for both in pairs)
    assert sum(seen) < once < apart


def test_bfloat16_comes_close_to_float32_and_leaves_the_weights_as_they_were() -> None:
    half = SteerableModel(random_model("llama", torch.bfloat16), byte_tokenizer())
    before = {name: (value.data_ptr(), value.clone()) for name, value in half.hf.named_parameters()}
    found, expected = extract(half, PAIRS), extract(tiny("llama"), PAIRS)
    assert min(found.cosine(expected).values()) >= 0.999
    for name, value in half.hf.named_parameters():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])


def test_an_interruption_leaves_nothing_behind() -> None:
    half = SteerableModel(random_model("llama", torch.bfloat16), byte_tokenizer())
    assert half.sees_trees

    def interrupt(module: object, inputs: object, output: object) -> None:
        raise KeyboardInterrupt

    # On a part of a block: in the middle of it, when its weights are float32 on some processors.
    hook = next(iter(half.blocks[1].children())).register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(half, PAIRS)
    hook.remove()
    assert {value.dtype for value in half.hf.parameters()} == {torch.bfloat16}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in half.hf.modules())


def test_swapping_the_sides_turns_the_vector_round(llama: SteerableModel) -> None:
    swapped = [pair(one.messages[0].content, one.negative, one.positive) for one in PAIRS if not one.boundary]
    for estimator in (MeanDifference, PrincipalDifference, LogisticProbe):
        there, back = (extract(llama, each, estimator=estimator) for each in (PAIRS, swapped))
        for layer in there.layers:
            assert torch.allclose(there.at(layer), -back.at(layer), atol=1e-4), estimator


def test_the_principal_axis_is_the_direction_that_the_differences_share() -> None:
    torch.manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(16), dim=0)
    negative = torch.randn(200, 16)
    positive = negative + (2 + torch.rand(200, 1)) * axis + 0.1 * torch.randn(200, 16)
    estimate = PrincipalDifference(16)
    for start in range(0, 200, 50):
        estimate.update(positive[start : start + 50], negative[start : start + 50])
    direction = estimate.direction()
    assert torch.cosine_similarity(direction, axis, dim=0) > 0.999
    assert float(direction.norm()) == pytest.approx(float(((positive - negative) @ axis).mean()), rel=0.01)


def test_the_probe_finds_the_coordinate_that_separates_and_not_the_largest() -> None:
    torch.manual_seed(0)
    negative = torch.randn(100, 8) * torch.tensor([30.0] + [1.0] * 7)
    positive = torch.randn(100, 8) * torch.tensor([30.0] + [1.0] * 7)
    positive[:, 3] += 4
    estimate = LogisticProbe(8)
    estimate.update(positive, negative)
    assert estimate.direction().argmax() == 3


def test_large_means_do_not_swallow_a_small_difference() -> None:
    estimate = MeanDifference(4)
    base = torch.full((1000, 4), 1000.0)
    for _ in range(20):
        estimate.update(base + 0.25, base)
    assert torch.equal(estimate.direction(), torch.full((4,), 0.25))


@pytest.mark.parametrize(
    ("pairs", "arguments", "error", "said"),
    [
        ((), {}, DataError, "no pair to extract from"),
        (PAIRS[-1:], {}, DataError, "no pair to extract from"),
        (PAIRS, {"positions": "5"}, DataError, "has a reply of"),
        (PAIRS, {"positions": "prompt-last"}, DataError, "no contrast"),
        (PAIRS, {"positions": "lats"}, UnknownNameError, "Did you mean 'last'"),
        (PAIRS, {"positions": "9" * 5000}, UnknownNameError, "a reply token's number"),
        (PAIRS, {"layers": [7]}, LayerError, "has 0-2"),
        (PAIRS, {"layers": [-1]}, LayerError, "has 0-2"),
        (PAIRS, {"layers": []}, LayerError, "at least one"),
    ],
)
def test_what_cannot_be_extracted_is_said(
    llama: SteerableModel,
    pairs: tuple[ContrastPair, ...],
    arguments: dict[str, object],
    error: type[EngrainError],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        extract(llama, PairSet(pairs), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_the_blocks_themselves(family: str) -> None:
    # A model of its own: asked for hidden states, transformers leaves hooks of its own on it.
    clean = SteerableModel(random_model(family), byte_tokenizer())
    prompts = ["short", "a rather longer one, padded beside the first"]
    found = clean.hidden_states(prompts)
    for prompt, states in zip(prompts, found, strict=True):
        tokens = torch.tensor([clean.render(prompt)])
        with torch.no_grad():
            theirs = clean.hf(tokens, output_hidden_states=True, use_cache=False).hidden_states
        assert states.shape == (len(clean.blocks), tokens.shape[1], clean.width)
        # Entry i + 1 of transformers' list is block i's output, but for the last, which is past the final norm.
        for layer in range(len(clean.blocks) - 1):
            assert torch.allclose(states[layer], theirs[layer + 1][0], atol=1e-4)
        assert not torch.allclose(states[-1], theirs[-1][0], atol=1e-2)


def test_hidden_states_of_chosen_layers_come_in_their_order(llama: SteerableModel) -> None:
    (whole,), (part,) = llama.hidden_states(["hi"]), llama.hidden_states(["hi"], layers=[2, 0])
    assert torch.equal(part, whole[[0, 2]])
