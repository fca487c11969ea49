"""The decoder blocks of a transformers language model, found by structure and not by family."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from engrain.core.errors import ModelError


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder blocks in order: the outermost list of modules with one entry per layer of the configuration.

    Raises:
        ModelError: an encoder-decoder model, or no such list.
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ModelError(f"{name} is an encoder-decoder; engrain steers decoder-only language models.")
    return outermost_blocks(model.get_decoder(), model.config, name)


def outermost_blocks(module: nn.Module, config: PretrainedConfig, name: str) -> nn.ModuleList:
    """Return the outermost list of modules inside of ``module`` with one entry per layer of the configuration.

    Raises:
        ModelError: no such list.
    """
    wanted = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [
        (path, found)
        for path, found in module.named_modules()
        if isinstance(found, nn.ModuleList) and len(found) == wanted
    ]
    if not lists:
        raise ModelError(f"{name} has no list of {wanted} decoder blocks; engrain does not know how it is built.")
    # A list of experts may have as many entries as there are layers, but it lies inside of a block.
    return min(lists, key=lambda one: one[0].count("."))[1]


def linear_modules(model: PreTrainedModel, blocks: Iterable[nn.Module]) -> dict[str, tuple[nn.Linear | Conv1D, int]]:
    """Return the linear modules inside of the blocks by name, each with the block that it is in.

    The weight of GPT-2's ``Conv1D`` lies the other way round, [d_in, d_out].
    """
    layers = {block: layer for layer, block in enumerate(blocks)}
    inside = {f"{name}.": layers[module] for name, module in model.named_modules() if module in layers}
    return {
        name: (module, layer)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        for path, layer in inside.items()
        if name.startswith(path)
    }


def block_output(output: object) -> Tensor:
    """Return the hidden state in what a block returned: the tensor itself, or the first of a tuple.

    transformers 5 blocks return a tensor; indexing it with [0] would take the first row of the batch.
    """
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return hidden


def replace_output(output: Any, hidden: Tensor) -> Any:
    """Return a block's output with another hidden state in its place, in whatever form the block gave it."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
