"""Memory on paper, against numbers worked out by hand, and the document that shows it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from engrain.core.compile.plan import Plan, plan
from engrain.core.errors import InputError, LayerError, UnknownNameError
from tiny import FAMILIES, random_model

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


def llama(width: int, hidden: int, layers: int, heads: int, keys: int, vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )


SHAPES = {
    "Llama-2-7B": llama(4096, 11008, 32, 32, 32, 32_000),
    "Llama-3-8B": llama(4096, 14336, 32, 32, 8, 128_256),
    "Llama-3-70B": llama(8192, 28672, 80, 64, 8, 128_256),
}


def test_the_parameters_of_an_8b_model_are_counted_as_by_hand() -> None:
    found = plan(SHAPES["Llama-3-8B"], target="all-linear", optimizer="adamw")
    # q and o, k and v, gate and up and down; two norms a block and one at the end; embeddings and head.
    matrices = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 4096 * 14336)
    assert matrices == 6_979_321_856
    assert found.trained == matrices
    assert found.parameters == matrices + 65 * 4096 + 2 * 128_256 * 4096 == 8_030_261_248
    assert found.base == 2 * 8_030_261_248
    assert found.delta == found.gradients == 4 * matrices
    assert found.student == 2 * matrices
    assert found.moments == 8 * matrices


def test_the_parameters_of_a_70b_model_are_counted_as_by_hand() -> None:
    found = plan(SHAPES["Llama-3-70B"], target="all-linear", dtype="float32")
    assert found.trained == 80 * (2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 8192 * 28672)
    assert found.parameters == found.trained + 161 * 8192 + 2 * 128_256 * 8192 == 70_553_706_496
    assert found.base == 4 * found.parameters


@pytest.mark.parametrize(
    ("name", "apollo", "mini"), [("Llama-2-7B", 3.02, 0.012), ("Llama-3-8B", 3.63, 0.014), ("Llama-3-70B", 18.1, 0.071)]
)
def test_the_moments_are_those_of_the_literature(name: str, apollo: float, mini: float) -> None:
    # Linear matrices alone, the projection drawn again: 2nr + 2 a matrix, arXiv 2412.05270, table 1.
    assert plan(SHAPES[name], target="all-linear", rank=256).moments / GIB == pytest.approx(apollo, rel=0.003)
    assert plan(SHAPES[name], target="all-linear", optimizer="apollo-mini").moments / GIB == pytest.approx(
        mini, abs=0.0005
    )


def test_writers_of_four_layers_are_302_million() -> None:
    found = plan(SHAPES["Llama-3-8B"], layers=range(12, 16))
    assert found.trained == 4 * (4096 * 4096 + 4096 * 14336) == 301_989_888
    assert found.moments == 4 * 4 * (2 * 4096 * 256 + 2 + 2 * 14336 * 256 + 2)


def test_a_matrix_no_larger_than_the_rank_is_kept_whole() -> None:
    tiny = llama(64, 128, 2, 4, 1, 320)
    assert plan(tiny, target="k_proj", rank=16).moments == plan(tiny, target="k_proj", optimizer="adamw").moments
    assert plan(tiny, target="k_proj", rank=15).moments == 2 * 4 * (2 * 64 * 15 + 2)


def test_activations_are_the_documented_sum() -> None:
    tokens, width, hidden, keys, vocabulary = 2 * 10, 4096, 14336, 1024, 128_256
    block = 2 * (4 * width + 2 * 4096 + 2 * keys + 4 * hidden) + 8 * width
    rest = vocabulary * 14 + 3 * width * 4
    whole: dict[str, Any] = {"layers": [28, 31], "sequences": 2, "length": 10}
    assert plan(SHAPES["Llama-3-8B"], checkpointing=False, **whole).activations == tokens * (4 * block + rest)
    assert plan(SHAPES["Llama-3-8B"], **whole).activations == tokens * (4 * width * 2 + block + rest)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_autograd_saves_what_is_planned_and_no_more(dtype: str) -> None:
    config = llama(256, 896, 6, 8, 2, 1000)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)
    for block in model.model.layers[2:]:
        for module in (block.self_attn.o_proj, block.mlp.down_proj):
            module.weight.requires_grad_(True)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    tokens = torch.arange(256).reshape(4, 64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(tokens, use_cache=False)
    held = sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in own)
    planned = plan(config, layers=range(2, 6), dtype=dtype, sequences=4, length=64, checkpointing=False).activations
    logits = 256 * (1000 * ({"float32": 4, "bfloat16": 2}[dtype] + 12) + 3 * 256 * 4)
    assert 0.7 * (planned - logits) < held < planned - logits


def test_the_total_is_the_sum_of_the_parts() -> None:
    found = plan(SHAPES["Llama-3-8B"])
    said = found.to_json()
    assert said["total"] == sum(
        said[part] for part in ("base", "delta", "student", "gradients", "moments", "activations")
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_of_every_family_counts_what_is_there(family: str) -> None:
    model = random_model(family)
    found = plan(model.config, target="all-linear", dtype="float32")
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert 0 < found.trained < found.parameters
    assert found.activations > 0


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"optimizer": "apolo"}, UnknownNameError, "Did you mean 'apollo'"),
        ({"dtype": "int4"}, UnknownNameError, "No dtype 'int4'"),
        ({"target": "down_prj"}, UnknownNameError, "Did you mean 'down_proj'"),
        ({"layers": [3]}, LayerError, "Layer 3 is not in LlamaForCausalLM, which has 0-2"),
        ({"layers": []}, InputError, "trains nothing"),
        ({"rank": 0}, InputError, "must all be 1 or more"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options: dict[str, Any], error: type[Exception], said: str) -> None:
    config = AutoConfig.for_model("llama", hidden_size=32, intermediate_size=48, num_hidden_layers=3, vocab_size=320)
    with pytest.raises(error, match=said):
        plan(config, **options)


ROWS: dict[str, dict[str, Any]] = {
    "o and down, 4 blocks, APOLLO 256": {"layers": 4},
    "o and down, 4 blocks, AdamW": {"layers": 4, "optimizer": "adamw"},
    "all linear, APOLLO 256": {"target": "all-linear"},
    "all linear, APOLLO-Mini": {"target": "all-linear", "optimizer": "apollo-mini"},
    "all linear, AdamW": {"target": "all-linear", "optimizer": "adamw"},
}


def table() -> str:
    """Return the table of docs/scaling.md, GiB."""
    parts = ("base", "delta", "student", "gradients", "moments", "activations", "total")
    lines = [f"| model | trained | {' | '.join(parts)} |", "|---" * (2 + len(parts)) + "|"]
    for name, config in SHAPES.items():
        for what, wanted in ROWS.items():
            options = dict(wanted)
            if (count := options.pop("layers", None)) is not None:
                middle = config.num_hidden_layers // 2
                options["layers"] = range(middle - count + 1, middle + 1)
            found: Plan = plan(config, **options)
            cells = [f"{found.to_json()[part] / GIB:.2f}" for part in parts]
            lines.append(f"| {name} | {what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def test_the_document_shows_what_the_function_says() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert table() in text, f"The table of docs/scaling.md should be:\n{table()}"
