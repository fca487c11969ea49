"""Where a model lies."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelFiles:
    """A model that can be loaded with ``from_pretrained``.

    Attributes:
        folder: configuration, tokenizer and safetensors weights.
        source: what to call it in messages and fingerprints.
        dtype: what the weights are loaded as unless the caller says otherwise; "auto" for what is stored.
    """

    folder: Path
    source: str
    dtype: str = "auto"
