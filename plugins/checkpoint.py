"""A compiled model as a folder of its own, which loads as any other and needs nothing of engrain."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from engrain.core.edit import Applied
from engrain.core.errors import VectorError
from engrain.core.files import folder_atomically
from engrain.core.model import SteerableModel
from engrain.core.quiet import quiet_transformers
from engrain.core.task_vector import TaskVector
from engrain.plugins.unloaded import text_config, unloaded

# Settings that give linear modules of the blocks a bias, each all of its modules in all blocks.
_BIAS_SETTINGS = ("mlp_bias", "attention_bias")


def write_checkpoint(
    task_vector: TaskVector, model: SteerableModel, out: Path, *, force: bool = False
) -> dict[str, Any]:
    """Write base plus task vector, in the base's dtype, with configuration and tokenizer.

    Args:
        task_vector: the change.
        model: its base. Whatever else is on it is left out.
        out: the folder.
        force: replace a model that is there.

    Returns:
        ``settings`` of the configuration that were turned on for a bias.

    Raises:
        FingerprintError: the model is not the base.
        VectorError: it changes a bias, and the family has no setting for one.
        OutputExistsError: the folder exists and ``force`` is false.
    """
    with (
        model.edited({task_vector.name: Applied(task_vector)}),
        folder_atomically(out, "config.json", force=force) as draft,
        quiet_transformers(),
    ):
        fresh, settings = _fresh(model.hf, task_vector.name)
        fresh.save_pretrained(draft)
        model.tokenizer.save_pretrained(draft)
        # For people; nothing reads it.
        manifest = json.dumps(task_vector.manifest(), indent=2, sort_keys=True, allow_nan=False)
        (draft / "engrain.json").write_text(manifest + "\n", encoding="utf-8")
    return {"settings": settings}


def _fresh(hf: PreTrainedModel, name: str) -> tuple[PreTrainedModel, list[str]]:
    """Return a model of the same weights that can be saved, and what its configuration turned on.

    One with a bias put on it has a configuration without.
    """
    weights = hf.state_dict()
    known = [setting for setting in _BIAS_SETTINGS if getattr(text_config(hf.config), setting, None) is False]
    choices = [list(chosen) for count in range(len(known) + 1) for chosen in combinations(known, count)]
    for settings in choices:
        fresh = unloaded(hf, settings)
        wanted = fresh.state_dict()
        if weights.keys() <= wanted.keys():
            # A setting gives a bias to more modules than were asked for; zeros there change nothing.
            zeros = {key: torch.zeros(wanted[key].shape, dtype=hf.dtype) for key in wanted.keys() - weights.keys()}
            fresh.load_state_dict(weights | zeros, assign=True)
            fresh.tie_weights()
            fresh.generation_config = hf.generation_config
            return fresh, settings
    missing = sorted(weights.keys() - wanted.keys())
    raise VectorError(
        f"Task vector '{name}' adds '{missing[0]}', and the configuration of {type(hf).__name__} has no setting for a "
        f"bias there (Llama has mlp_bias; Mistral, Qwen, Gemma, OLMo and Phi have none), so that a saved model would "
        f"lose it. Compile it as matrices instead: --backend rank1 or distill."
    )
