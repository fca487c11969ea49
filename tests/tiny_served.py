"""Tiny models that vLLM can run, too."""

from pathlib import Path
from typing import Any

from tiny import byte_tokenizer, random_model

# What vLLM's attention on the CPU can do: heads of 32.
SIZES: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen3": SIZES | {"head_dim": 32},
    "gemma2": SIZES | {"head_dim": 32, "query_pre_attn_scalar": 32},
}


def save_tiny(family: str, folder: Path) -> Path:
    """Save a tiny model that both sides can run."""
    random_model(family, **FAMILIES[family]).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
