"""The model that a server runs, as the front end knows it: from its folder, without loading its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from engrain.core.composition import Active, activate, check_fits
from engrain.core.errors import InputError
from engrain.core.fingerprint import Fingerprint, fingerprint
from engrain.core.profile import Entry
from engrain.core.quiet import quiet_transformers
from engrain.core.vector import SteeringVector

# Families whose blocks, in vLLM, return a pair whose sum is the residual stream, or the stream alone, as tested.
# An addition needs to know neither; what reads the stream does.
_STREAM = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM")


@dataclass(frozen=True)
class ServedModel:
    """What vectors are checked against.

    Attributes:
        name: what the server was started with.
        layers: number of decoder blocks.
        width: d_model.
        architecture: class of the model.
        fingerprint: the model as engrain knows it, or None where it does not lie in a folder.
    """

    name: str
    layers: int
    width: int
    architecture: str
    fingerprint: Fingerprint | None

    @classmethod
    def of_config(cls, name: str, config: Any) -> "ServedModel":
        """Return the model of a configuration.

        Args:
            name: folder or hub id.
            config: of transformers.
        """
        text = config.get_text_config(decoder=True)
        architecture = (getattr(config, "architectures", None) or [type(config).__name__])[0]
        return cls(name, text.num_hidden_layers, text.hidden_size, architecture, _fingerprint(name))

    def activate(self, vector: SteeringVector, entry: Entry) -> Active:
        """Return the vector of a profile's entry in use; what the entry does not say comes from its calibration.

        Raises:
            FingerprintError: it was made on another model.
            WidthError, LayerError, StrengthError: it does not fit, or there is no dose.
            InputError: an operation that is not known to be right on this architecture.
        """
        if vector.fingerprint is not None and self.fingerprint is not None:
            what = f"Vector '{vector.name}'"
            self.fingerprint.check_made_on(vector.fingerprint, what, "Extract it again on this model.")
        active = activate(vector, entry.layer, entry.strength, entry.positions, entry.operation)
        check_fits(active, self.layers, self.width)
        if active.operation != "add" and self.architecture not in _STREAM:
            raise InputError(
                f"'{active.operation}' is not tested in vLLM on {self.architecture} (but on {', '.join(_STREAM)}); "
                f"use the operation add."
            )
        return active


def _fingerprint(name: str) -> Fingerprint | None:
    folder = Path(name)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    with quiet_transformers():
        config = transformers.AutoConfig.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        with torch.device("meta"):
            skeleton = transformers.AutoModelForCausalLM.from_config(config)
    return fingerprint(skeleton, tokenizer, name, files)
