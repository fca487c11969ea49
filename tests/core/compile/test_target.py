"""The matrices that are compiled into."""

import pytest
import torch
from torch import nn

from engrain.core.compile.target import ALL_LINEAR, WRITERS, choose_matrices, mlp_writer, oriented
from engrain.core.errors import InputError, LayerError, UnknownNameError
from tiny import FAMILIES, tiny

ONE_MLP = [family for family in FAMILIES if family != "qwen3_moe"]


@pytest.mark.parametrize("family", ONE_MLP)
def test_every_block_has_two_writers_as_wide_as_the_stream(family: str) -> None:
    model = tiny(family)
    found = choose_matrices(model, WRITERS, range(len(model.blocks)))
    assert len(found) == 2 * len(model.blocks)
    for module in found.values():
        assert oriented(module, module.weight).shape[0] == model.width


@pytest.mark.parametrize("family", ONE_MLP)
def test_the_mlps_writer_is_the_writer_that_is_not_the_attentions(family: str) -> None:
    model = tiny(family)
    name, module = mlp_writer(model, 1)
    assert choose_matrices(model, WRITERS, [1])[name] is module
    assert ".mlp." in name


def test_names_and_expressions_choose_the_same_matrices() -> None:
    model = tiny()
    by_name = choose_matrices(model, "q_proj", [0, 2])
    assert list(by_name) == ["model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj"]
    assert by_name.keys() == choose_matrices(model, r"self_attn\.q", [0, 2]).keys()
    assert len(choose_matrices(model, ALL_LINEAR, [1])) == 7


def test_a_whole_name_goes_before_a_part_of_one() -> None:
    assert list(choose_matrices(tiny("gpt_neox"), "dense", [1])) == ["gpt_neox.layers.1.attention.dense"]


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(UnknownNameError, match=r"No matrix in the blocks 1, 2 .* Did you mean 'down_proj'"):
        choose_matrices(tiny(), "down_prj", [2, 1])


def test_what_is_no_expression_is_refused() -> None:
    with pytest.raises(InputError, match="nor a name or regular expression"):
        choose_matrices(tiny(), "(q", [0])


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(LayerError, match="which has 0-2"):
        choose_matrices(tiny(), WRITERS, [3])
    with pytest.raises(LayerError, match="which has 0-2"):
        mlp_writer(tiny(), 3)


def test_experts_have_no_one_writer() -> None:
    with pytest.raises(InputError, match="experts have one each"):
        mlp_writer(tiny("qwen3_moe"), 1)


def test_what_conv1d_stores_is_turned_round_and_back() -> None:
    _, conv = mlp_writer(tiny("gpt2"), 0)
    assert not isinstance(conv, nn.Linear)
    delta = torch.randn(32, 48)
    assert oriented(conv, delta).shape == conv.weight.shape
    assert torch.equal(oriented(conv, oriented(conv, delta)), delta)
