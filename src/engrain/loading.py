"""Loading a model by name."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from engrain.core.errors import ModelError
from engrain.core.model import SteerableModel
from engrain.core.quiet import quiet_transformers
from engrain.plugins.manager import Plugins, build_manager
from engrain.plugins.source import ModelFiles


def load(
    name: str = "demo", *, dtype: str | None = None, device: str = "cpu", plugins: Plugins | None = None
) -> SteerableModel:
    """Load a model and its tokenizer.

    Args:
        name: ``demo``, a folder, a ``.gguf`` file, or a repository on the Hugging Face Hub.
        dtype: float32, bfloat16 or float16; by default what is stored (float32 for the demo model and for GGUF).
        device: where to put it, as torch names devices; "auto" spreads it over what there is (needs accelerate).
        plugins: the plugins whose model sources are asked; by default those installed.

    Raises:
        ModelError: no source knows the name, or the model cannot be loaded or steered.
    """
    found = find(name, plugins or build_manager())
    try:
        with quiet_transformers():
            # A device map brings in accelerate, a fifth of a second that one device does not need.
            spread = {"device_map": "auto"} if device == "auto" else {}
            hf = _model_class(found.folder).from_pretrained(
                found.folder, dtype=dtype or found.dtype, use_safetensors=True, **spread
            )
            if not spread:
                torch.nn.Module.to(hf, device)
            tokenizer = transformers.AutoTokenizer.from_pretrained(found.folder)
    except (AttributeError, ImportError, KeyError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise ModelError(f"'{name}' cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    return SteerableModel(hf, tokenizer, found.source, sorted(found.folder.glob("*.safetensors")))


def _model_class(folder: Path) -> Any:
    """Return the class that a model's configuration names.

    The table of all families, which the Auto class reads to find it, takes half a second; it is asked for the rest.
    """
    listed = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    name = str(listed[0])
    known = getattr(transformers, name, None) if name.endswith("ForCausalLM") else None
    return known or transformers.AutoModelForCausalLM


def find(name: str, plugins: Plugins) -> ModelFiles:
    """Return where the model called ``name`` lies.

    Raises:
        ModelError: no source knows it.
    """
    for source in plugins.model_sources():
        found = source(name)
        if found is not None:
            return found
    raise ModelError(f"No model '{name}': no source knows it. {' '.join(map(str, plugins.broken))}".rstrip())
