"""Compiled models and adapters, loaded by the programs that they are for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from engrain.core.blocks import linear_modules
from engrain.core.errors import FingerprintError, InputError, OutputExistsError, VectorError
from engrain.core.factors import smallest_rank, truncated
from engrain.core.model import SteerableModel
from engrain.core.moments import second_moments
from engrain.core.packing import Encoded
from engrain.core.task_vector import TaskVector
from engrain.loading import load
from engrain.plugins.adapter import take_apart, write_adapter
from engrain.plugins.checkpoint import write_checkpoint
from tiny import byte_tokenizer, random_model

TOKENS = torch.tensor([[256, 10, 20, 30, 40, 50]])
DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "phi3", "olmo2")


def fresh(family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> SteerableModel:
    return SteerableModel(random_model(family, dtype, **changes), byte_tokenizer(), f"tiny {family}")


def stored(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32) -> SteerableModel:
    """Return a model as ``from_pretrained`` makes it; one that is cast afterwards has rotary angles cast too."""
    random_model(family, dtype).save_pretrained(folder)
    return SteerableModel(read_model(folder), byte_tokenizer(), f"tiny {family}")


def logits(hf: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = hf(TOKENS, use_cache=False).logits
    return found


def delta(model: SteerableModel, layer: int = 1, rank: int | None = None, name: str = "brevity") -> TaskVector:
    """Return a change of every linear module of a block, of a rank or of all."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for module, (linear, at) in linear_modules(model.hf, model.blocks).items():
        if at == layer:
            weight = linear.weight
            assert isinstance(weight, Tensor)
            if rank is None:
                tensors[f"{module}.weight"] = torch.randn(weight.shape, generator=generator) * 0.1
            else:
                left, right = (torch.randn(size, rank, generator=generator) for size in weight.shape)
                tensors[f"{module}.weight"] = left @ right.T * 0.1
    return TaskVector(name, tensors, model.fingerprint)


def read_model(folder: Path, dtype: str = "auto") -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return found


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_whole_model_is_base_plus_task_vector(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    model = stored(tmp_path / "base", family, dtype)
    change = delta(model)
    before = logits(model.hf)
    assert write_checkpoint(change, model, tmp_path / "out") == {"settings": []}
    assert torch.equal(logits(model.hf), before)
    with model.compiled(change):
        expected = logits(model.hf)
    loaded = read_model(tmp_path / "out")
    assert loaded.dtype == dtype
    assert not torch.equal(expected, before)
    assert torch.equal(logits(loaded), expected)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("Tell me.").input_ids == byte_tokenizer()("Tell me.").input_ids
    assert tokenizer.chat_template == byte_tokenizer().chat_template


def test_a_whole_model_loads_as_any_other(tmp_path: Path) -> None:
    model = fresh()
    change = delta(model)
    write_checkpoint(change, model, tmp_path / "out")
    again = load(str(tmp_path / "out"))
    with model.compiled(change):
        assert torch.equal(logits(again.hf), logits(model.hf))


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        ("mlp.down_proj", ["mlp_bias"]),
        ("self_attn.o_proj", ["attention_bias"]),
        ("both", ["mlp_bias", "attention_bias"]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bias_is_loaded_by_a_setting_with_zeros_elsewhere(
    tmp_path: Path, module: str, settings: list[str], dtype: torch.dtype
) -> None:
    model = stored(tmp_path / "base", dtype=dtype)
    modules = ["mlp.down_proj", "self_attn.o_proj"] if module == "both" else [module]
    tensors = {f"model.layers.1.{each}.bias": torch.linspace(-1, 1, 32) for each in modules}
    change = TaskVector("b", tensors, model.fingerprint)
    assert write_checkpoint(change, model, tmp_path / "out") == {"settings": settings}
    loaded = read_model(tmp_path / "out")
    with model.compiled(change):
        torch.testing.assert_close(logits(loaded), logits(model.hf), rtol=0, atol=1e-6)
    biases = {name: value for name, value in loaded.named_parameters() if name.endswith(".bias")}
    assert all(torch.equal(biases[name], value.to(dtype)) for name, value in tensors.items())
    assert not any(value.any() for name, value in biases.items() if name not in tensors)
    assert not any(name.endswith(".bias") for name in model.hf.state_dict())


def test_a_bias_that_a_module_has_already_needs_no_setting(tmp_path: Path) -> None:
    model = fresh("gpt2")
    change = TaskVector("b", {"transformer.h.1.mlp.c_proj.bias": torch.ones(32)}, model.fingerprint)
    assert write_checkpoint(change, model, tmp_path / "out") == {"settings": []}
    with model.compiled(change):
        assert torch.equal(logits(read_model(tmp_path / "out")), logits(model.hf))


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gemma2", "phi3", "olmo2"])
def test_a_bias_where_the_family_has_none_is_refused(tmp_path: Path, family: str) -> None:
    model = fresh(family)
    change = TaskVector("b", {"model.layers.1.mlp.down_proj.bias": torch.ones(32)}, model.fingerprint)
    with pytest.raises(VectorError, match="has no setting for a bias there"):
        write_checkpoint(change, model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert model.edits.applied == {}
    assert "model.layers.1.mlp.down_proj.bias" not in model.hf.state_dict()


def test_what_else_is_on_the_model_is_not_exported(tmp_path: Path) -> None:
    model = fresh()
    change = delta(model)
    with model.compiled(change):
        expected = logits(model.hf)
    model.apply(delta(model, layer=2, name="other"), 3.0)
    both = logits(model.hf)
    write_checkpoint(change, model, tmp_path / "out")
    assert torch.equal(logits(read_model(tmp_path / "out")), expected)
    assert torch.equal(logits(model.hf), both)


def test_tied_embeddings_are_written_once(tmp_path: Path) -> None:
    model = fresh(tie_word_embeddings=True)
    write_checkpoint(delta(model), model, tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    loaded = read_model(tmp_path / "out")
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight


def adapted(model: SteerableModel, folder: Path) -> Tensor:
    """Return the logits of the base with an adapter, through PEFT."""
    base = random_model(model.source.removeprefix("tiny "), model.hf.dtype)
    return logits(PeftModel.from_pretrained(base, str(folder)).eval())


@pytest.mark.parametrize("family", DENSE)
def test_an_adapter_is_its_factors_applied(tmp_path: Path, family: str) -> None:
    model = fresh(family)
    change = delta(model)
    said = write_adapter(change, model, tmp_path / "out", rank=4)
    assert said["rank"] == 4
    assert 0.1 < said["lost"] < 1
    with model.compiled(truncated(change, take_apart(change, model), 4)):
        expected = logits(model.hf)
    torch.testing.assert_close(adapted(model, tmp_path / "out"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_of_a_low_rank_change_is_the_change(tmp_path: Path, family: str) -> None:
    model = fresh(family)
    change = delta(model, rank=3)
    said = write_adapter(change, model, tmp_path / "out", bound=1e-3)
    assert said["rank"] == 4
    with model.compiled(change):
        torch.testing.assert_close(adapted(model, tmp_path / "out"), logits(model.hf), rtol=1e-5, atol=2e-5)


def test_each_matrix_gets_the_rank_that_it_needs(tmp_path: Path) -> None:
    model = fresh()
    thin, thick = "model.layers.1.mlp.down_proj", "model.layers.2.self_attn.o_proj"
    tensors = {
        f"{thin}.weight": torch.outer(torch.ones(32), torch.ones(48)),
        f"{thick}.weight": delta(model, layer=2, rank=7).tensors[f"{thick}.weight"],
    }
    change = TaskVector("t", tensors, model.fingerprint)
    assert write_adapter(change, model, tmp_path / "out", bound=1e-3)["rank"] == 8
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 8)
    assert config["rank_pattern"] == config["alpha_pattern"] == {thin: 1}
    # What vLLM refuses is not in it.
    assert (config["bias"], config["modules_to_save"], config["use_dora"]) == ("none", None, False)
    shapes = {name: list(value.shape) for name, value in load_file(tmp_path / "out/adapter_model.safetensors").items()}
    assert shapes[f"base_model.model.{thin}.lora_A.weight"] == [1, 48]
    assert shapes[f"base_model.model.{thick}.lora_B.weight"] == [32, 8]
    with model.compiled(change):
        torch.testing.assert_close(adapted(model, tmp_path / "out"), logits(model.hf), rtol=1e-5, atol=2e-5)


def test_factors_weighed_by_the_inputs_come_closer(tmp_path: Path) -> None:
    model, module = fresh(), "model.layers.1.mlp.down_proj"
    change = delta(model)
    change = replace(change, tensors={f"{module}.weight": change.tensors[f"{module}.weight"]})
    moments = second_moments(model, [Encoded(tuple(TOKENS[0].tolist()), ())], [module])
    with model.compiled(change):
        whole = logits(model.hf)
    off = []
    for place, weighed in enumerate((moments, None)):
        write_adapter(change, model, tmp_path / str(place), rank=6, moments=weighed)
        off.append(float((adapted(model, tmp_path / str(place)) - whole).norm()))
    # Six tokens are six directions of input, and no more is asked of the matrix.
    assert off[0] < 1e-4 < off[1]
    with model.compiled(truncated(change, take_apart(change, model, moments), 6)):
        torch.testing.assert_close(adapted(model, tmp_path / "0"), logits(model.hf), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_rank_can_be_what_keeps_the_effect(tmp_path: Path, family: str) -> None:
    model = fresh(family)
    change = delta(model, rank=5)
    base = logits(model.hf)
    with model.compiled(change):
        whole = logits(model.hf)

    def recovered(candidate: TaskVector) -> float:
        with model.compiled(candidate):
            return 1 - float((logits(model.hf) - whole).norm() / (base - whole).norm())

    rank = smallest_rank(change, take_apart(change, model), recovered)
    assert rank == 8
    write_adapter(change, model, tmp_path / "out", rank=rank)
    torch.testing.assert_close(adapted(model, tmp_path / "out"), whole, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("model.layers.1.mlp.down_proj.bias", (32,), "has no place for"),
        ("model.embed_tokens.weight", (320, 32), "no linear module"),
        ("model.layers.1.input_layernorm.weight", (32,), "no linear module"),
        ("lm_head.weight", (320, 32), "no linear module"),
    ],
)
def test_what_an_adapter_cannot_hold_is_refused(tmp_path: Path, name: str, shape: tuple[int, ...], said: str) -> None:
    model = fresh()
    change = TaskVector("b", {**delta(model).tensors, name: torch.ones(shape)}, model.fingerprint)
    with pytest.raises(VectorError, match=said):
        write_adapter(change, model, tmp_path / "out")
    with pytest.raises(InputError, match="not a rank"):
        write_adapter(delta(model), model, tmp_path / "out", rank=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_adapter, write_checkpoint])
def test_another_base_and_an_existing_folder_are_refused(tmp_path: Path, write: Any) -> None:
    model = fresh()
    change = delta(model)
    with pytest.raises(FingerprintError, match="weights differ"):
        write(replace(change, fingerprint=replace(change.fingerprint, weights="sha256:e")), model, tmp_path / "out")
    write(change, model, tmp_path / "out")
    with pytest.raises(OutputExistsError):
        write(change, model, tmp_path / "out")
    write(change, model, tmp_path / "out", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("write", [write_adapter, write_checkpoint])
def test_the_same_export_is_the_same_bytes(tmp_path: Path, write: Any) -> None:
    model = fresh()
    for place in "ab":
        write(delta(model), model, tmp_path / place)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@pytest.mark.demo
def test_the_demo_model_with_a_bias_loads_without_anything_of_ours(tmp_path: Path) -> None:
    demo = load("demo")
    direction = torch.randn(demo.width, generator=torch.Generator().manual_seed(0))
    change = TaskVector("b", {"model.layers.16.mlp.down_proj.bias": direction}, demo.fingerprint)
    assert write_checkpoint(change, demo, tmp_path / "out") == {"settings": ["mlp_bias"]}
    with demo.compiled(change):
        torch.testing.assert_close(logits(read_model(tmp_path / "out")), logits(demo.hf), rtol=0, atol=1e-4)
