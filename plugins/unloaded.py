"""A model made afresh from a configuration: one that was read from GGUF refuses to be saved, this one does not."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel


def unloaded(hf: PreTrainedModel, settings: Sequence[str] = ()) -> PreTrainedModel:
    """Return a model of the same class and configuration that was never loaded from anywhere, without its weights.

    Args:
        hf: the model.
        settings: of the configuration of its text part, turned on.

    Returns:
        The model on the device ``meta``; ``load_state_dict(..., assign=True)`` and ``tie_weights`` make it whole.
    """
    config = copy.deepcopy(hf.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    for setting in settings:
        setattr(text_config(config), setting, True)
    with torch.device("meta"):
        fresh: PreTrainedModel = type(hf)(config)
    return fresh


def text_config(config: Any) -> Any:
    """Return the part of a configuration that is the language model's."""
    return config.get_text_config(decoder=True)
