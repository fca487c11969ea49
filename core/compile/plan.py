"""What compiling a model would take, from its configuration alone: no weights are loaded, shapes are enough."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from engrain.core.blocks import find_blocks, linear_modules
from engrain.core.compile.recipe import OPTIMIZERS
from engrain.core.compile.target import WRITERS, match_matrices
from engrain.core.errors import InputError, LayerError, ModelError, UnknownNameError

_WIDE = 4  # bytes of a float32
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# What is kept of a forward pass at once: hidden states that the loss compares, and the logits' float32 copies.
_COMPARED_LAYERS = 3
_LOGIT_COPIES = 3


@dataclass(frozen=True)
class Plan:
    """Bytes of memory, by what they hold, while a task vector is trained on a frozen base.

    Attributes:
        parameters: of the whole model.
        trained: numbers in the task vector.
        base: the base's weights, in its dtype, never changed.
        delta: the task vector, float32; it is the master copy.
        student: the trained matrices as they are multiplied, base plus delta in the base's dtype.
        gradients: of the delta, float32.
        moments: the optimizer's state, float32.
        activations: what forward and backward pass of the student hold, and of the teacher what the loss compares with.
    """

    parameters: int
    trained: int
    base: int
    delta: int
    student: int
    gradients: int
    moments: int
    activations: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.base + self.delta + self.student + self.gradients + self.moments + self.activations

    def to_json(self) -> dict[str, int]:
        """Return the fields and the total."""
        return asdict(self) | {"total": self.total}


def plan(
    config: PreTrainedConfig,
    *,
    target: str = WRITERS,
    layers: Iterable[int] | None = None,
    optimizer: str = "apollo",
    rank: int = 256,
    dtype: str = "bfloat16",
    sequences: int = 8,
    length: int = 256,
    checkpointing: bool = True,
) -> Plan:
    """Return the memory of compiling a model.

    **Moments** of one matrix of m by n, m the smaller: AdamW 2mn; APOLLO 2nr + 2, its projection being drawn again from
    a seed whenever it is needed; APOLLO-Mini the same with r = 1. A matrix with m not above r is kept as by AdamW.

    **Activations** of T = sequences * length tokens, b bytes a number. For its backward pass a block holds 4d + 2q +
    2k + 4f numbers a token (d_model; queries; keys; hidden of the MLP, or of the experts that a token is sent to): its
    input, both normed inputs and the sum between; queries, keys, values and the attention's output; gate, up, the
    activated gate and their product. In half precision both norms hold their input again in float32, 8d bytes. No
    attention scores are held. The backward pass needs the blocks from the first trained one on: all of them at once,
    or, with checkpointing, the input of each and one of them whole. Then the logits, T * vocabulary * (b + 12): the
    student's, both distributions and a gradient in float32; and the teacher's hidden states at three blocks, in
    float32.

    Args:
        config: of the model.
        target: which linear modules are trained, as ``choose_matrices`` takes it.
        layers: which blocks, counted from 0; None for all.
        optimizer: one of ``OPTIMIZERS``.
        rank: of APOLLO's projection.
        dtype: of the base: float32, bfloat16 or float16.
        sequences: in one forward pass.
        length: tokens of each.
        checkpointing: compute each block again in the backward pass.

    Raises:
        UnknownNameError: an optimizer, dtype or target that there is not.
        LayerError: a layer that the model does not have.
        InputError: a number below 1.
        ModelError: not a decoder-only language model.
    """
    for what, name, known in (("optimizer", optimizer, OPTIMIZERS), ("dtype", dtype, tuple(_BYTES))):
        if name not in known:
            raise UnknownNameError(what, name, known)
    if min(rank, sequences, length) < 1:
        raise InputError(f"Rank {rank}, {sequences} sequences and length {length} must all be 1 or more.")
    model = _without_weights(config)
    blocks = find_blocks(model)
    chosen = set(range(len(blocks)) if layers is None else layers)
    for layer in chosen:
        if not 0 <= layer < len(blocks):
            raise LayerError(f"Layer {layer} is not in {type(model).__name__}, which has 0-{len(blocks) - 1}.")
    if not chosen:
        raise InputError("The plan trains nothing; name at least one layer.")
    here = {name: module for name, (module, layer) in linear_modules(model, blocks).items() if layer in chosen}
    matrices = match_matrices(here, target, f"these blocks of {type(model).__name__}")
    shapes = [tuple(module.weight.shape) for module in matrices.values()]
    trained = sum(rows * columns for rows, columns in shapes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = _BYTES[dtype]
    return Plan(
        parameters=parameters,
        trained=trained,
        base=parameters * size,
        delta=trained * _WIDE,
        student=trained * size,
        gradients=trained * _WIDE,
        moments=sum(_moments(min(shape), max(shape), optimizer, rank) for shape in shapes) * _WIDE,
        activations=_activations(config, len(blocks) - min(chosen), size, sequences * length, checkpointing),
    )


def _without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model that a configuration describes, its tensors shapes alone.

    Raises:
        ModelError: no model that continues text is described.
    """
    refused = ModelError(f"A '{config.model_type}' is no decoder-only language model; there is nothing to compile.")
    # Encoders can be told to be decoders, and are none until they are. GPT-NeoX is one that says nothing of it.
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if encoder or config.is_encoder_decoder:
        raise refused
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise refused from error
    if not hasattr(model.config.get_text_config(decoder=True), "num_attention_heads"):
        raise ModelError(f"A '{config.model_type}' has no attention; what its blocks hold is not known here.")
    return model


def _moments(smaller: int, larger: int, optimizer: str, rank: int) -> int:
    projected = {"apollo": rank, "apollo-mini": 1}.get(optimizer)
    if projected is None or projected >= smaller:
        return 2 * smaller * larger
    return 2 * larger * projected + 2


def _activations(config: PreTrainedConfig, blocks: int, size: int, tokens: int, checkpointing: bool) -> int:
    text: Any = config.get_text_config(decoder=True)
    width, heads = text.hidden_size, text.num_attention_heads
    head = getattr(text, "head_dim", None) or width // heads
    keys = (getattr(text, "num_key_value_heads", None) or heads) * head
    hidden = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * width
    if (experts := getattr(text, "num_experts_per_tok", None)) is not None:
        hidden = experts * (getattr(text, "moe_intermediate_size", None) or hidden)
    block = (4 * width + 2 * heads * head + 2 * keys + 4 * hidden) * size + (8 * width if size < _WIDE else 0)
    held = blocks * width * size + block if checkpointing else blocks * block
    logits = text.vocab_size * (size + _LOGIT_COPIES * _WIDE)
    return int(tokens * (held + logits + _COMPARED_LAYERS * width * _WIDE))
