"""Tiny random models of many families, and a byte tokenizer."""

from functools import cache
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from engrain.core.model import SteerableModel

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<s>system: You are Tiny.\n{% endif %}"
    "{% for message in messages %}{{ '<s>' if loop.first and message['role'] == 'system' else '' }}"
    "{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
_GEMMA: dict[str, Any] = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 256}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 256},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "n_inner": 48},
    "gpt_neox": {},
    "phi3": {},
    "olmo2": {},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    # The class that also takes images: the language model lies deeper in it, its configuration under text_config.
    "gemma3": {
        "text_config": _COMMON | _GEMMA,
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
    },
    # Attention that sees four tokens: what sequences share cannot be told to it, so they run as rows.
    "mistral-window": {"sliding_window": 4},
}


@cache
def byte_tokenizer(*, template: bool = True) -> PreTrainedTokenizerFast:
    """Make a tokenizer of bytes: 256 of them, then begin, end and padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("."), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.chat_template = TEMPLATE if template else None
    return made


def random_model(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """Make a small random model of a family; the same one every time."""
    common = {} if "text_config" in FAMILIES[family] else _COMMON
    config = AutoConfig.for_model(family.split("-")[0], **(common | FAMILIES[family] | changes))
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(dtype)
    # Initial weights of 0.02 leave the residual stream nearly as it was embedded; larger ones make every block matter.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.mul_(4)
    return model


@cache
def tiny(family: str = "llama", dtype: torch.dtype = torch.float32) -> SteerableModel:
    """Return a shared small model; no test changes it."""
    return SteerableModel(random_model(family, dtype), byte_tokenizer(), f"tiny {family}")
