"""A transformers causal language model that can be read from and steered."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engrain.core.blocks import find_blocks
from engrain.core.capture import PackRunner, computes_trees
from engrain.core.chat import encode_reply, render_prompt
from engrain.core.composition import Active, activate
from engrain.core.contrast import ContrastPair, Message
from engrain.core.edit import Applied, WeightEdits
from engrain.core.errors import LayerError, UnknownNameError
from engrain.core.fingerprint import Fingerprint, fingerprint
from engrain.core.packing import Encoded
from engrain.core.steering import Steering, SteeringHandle
from engrain.core.task_vector import TaskVector
from engrain.core.vector import SteeringVector

Conversation = str | Sequence[Message]


class SteerableModel:
    """A causal language model with its tokenizer.

    Attributes:
        hf: the transformers model, in evaluation mode.
        tokenizer: its tokenizer.
        source: what it was loaded by, for messages to people.
        decoder: the part of it that makes hidden states.
        blocks: the decoder blocks; layer i is ``blocks[i]``, counted from 0.
        width: d_model.
        steering: the active set.
        edits: the task vectors on its weights.

    Raises:
        ModelError: not a decoder-only model.
    """

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: str = "in memory",
        weight_files: Iterable[Path] = (),
    ) -> None:
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.source = source
        self.decoder: nn.Module = hf.get_decoder()
        self.blocks = find_blocks(hf)
        self.width: int = hf.config.get_text_config(decoder=True).hidden_size
        self.steering = Steering(self.decoder, self.blocks, self.width)
        self.edits = WeightEdits(hf, source)
        self._weight_files = tuple(weight_files)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What the model is; made when first asked for, and not made anew when weights are changed in place."""
        return fingerprint(self.hf, self.tokenizer, self.source, self._weight_files)

    @cached_property
    def sees_trees(self) -> bool:
        """Whether sequences can share tokens in one forward pass; found out by trying, once."""
        return computes_trees(self)

    def render(self, conversation: Conversation) -> tuple[int, ...]:
        """Return the tokens of a conversation up to where the reply starts; a text alone is a user's message."""
        messages = [Message("user", conversation)] if isinstance(conversation, str) else conversation
        return tuple(render_prompt(self.tokenizer, messages))

    def encode(self, conversation: Conversation, reply: str) -> Encoded:
        """Return the tokens of a conversation and of a reply to it, tokenized apart."""
        return Encoded(self.render(conversation), tuple(encode_reply(self.tokenizer, reply)))

    def encode_pair(self, pair: ContrastPair) -> tuple[Encoded, Encoded]:
        """Return the tokens of a pair's positive and negative conversation."""
        positive = self.encode(pair.messages, pair.positive)
        if pair.negative_messages is None:
            return positive, Encoded(positive.prompt, tuple(encode_reply(self.tokenizer, pair.negative)))
        return positive, self.encode(pair.negative_messages, pair.negative)

    def choose_layers(self, layers: Iterable[int] | None = None) -> tuple[int, ...]:
        """Return the layers in order, all of them for None.

        Raises:
            LayerError: one is not in the model, or there is none.
        """
        chosen = tuple(range(len(self.blocks))) if layers is None else tuple(sorted(set(layers)))
        if not chosen:
            raise LayerError("No layer was asked for; name at least one.")
        for layer in (chosen[0], chosen[-1]):
            if not 0 <= layer < len(self.blocks):
                raise LayerError(f"Layer {layer} is not in '{self.source}', which has 0-{len(self.blocks) - 1}.")
        return chosen

    def hidden_states(self, prompts: Sequence[Conversation], layers: Iterable[int] | None = None) -> list[Tensor]:
        """Return the residual stream at block outputs, steering included.

        Args:
            prompts: conversations, rendered by the model's chat template up to where the reply starts.
            layers: decoder blocks counted from 0; None for all.

        Returns:
            For each prompt a tensor [layers, seq, d_model] in the model's dtype, its own tokens only.

        Raises:
            LayerError: a layer that is not in the model.
        """
        chosen = self.choose_layers(layers)
        rendered = [self.render(prompt) for prompt in prompts]
        runner = PackRunner(self, [Encoded(tokens, ()) for tokens in rendered], chosen, trees=False)
        states: list[Tensor] = [torch.empty(0)] * len(rendered)
        for pack in runner.packs():
            found: dict[int, Tensor] = {}
            runner.observe(pack, found.__setitem__)
            for place, member in enumerate(pack.members):
                states[member] = torch.stack([found[layer][pack.paths[place]] for layer in chosen])
        return states

    def activate(
        self,
        vector: SteeringVector,
        layer: int | str | None = None,
        strength: float | None = None,
        positions: str | None = None,
        operation: str | None = None,
        *,
        preserve_norm: bool = False,
    ) -> Active:
        """Return a vector ready for use on this model; see ``composition.activate`` for the arguments.

        Raises:
            FingerprintError: the vector says that it was made on another model.
        """
        self.check_vector(vector)
        return activate(vector, layer, strength, positions, operation, preserve_norm=preserve_norm)

    def check_vector(self, vector: SteeringVector) -> None:
        """Check that a vector was made on this model, as far as it says on which.

        Raises:
            FingerprintError: it was made on another; what differs is named.
        """
        if vector.fingerprint is not None:
            what = f"Vector '{vector.name}'"
            self.fingerprint.check_made_on(vector.fingerprint, what, "Extract it again on this model.")

    def check_task_vector(self, task_vector: TaskVector) -> None:
        """Check that this model is the base of a task vector.

        Raises:
            FingerprintError: it was made on another; what differs is named.
        """
        what = f"Task vector '{task_vector.name}'"
        self.fingerprint.check_made_on(task_vector.fingerprint, what, "Compile it again on this model.")

    def add_steering_vector(
        self,
        vector: SteeringVector,
        layer: int | str | None = None,
        strength: float | None = None,
        positions: str | None = None,
        operation: str | None = None,
        *,
        preserve_norm: bool = False,
    ) -> SteeringHandle:
        """Put a vector on the model until the returned handle is removed; arguments as ``activate``."""
        active = self.activate(vector, layer, strength, positions, operation, preserve_norm=preserve_norm)
        return self.steering.add(active)

    @contextmanager
    def steer(
        self, *vectors: SteeringVector | Active, rows: Sequence[Sequence[SteeringVector | Active]] | None = None
    ) -> Iterator[list[SteeringHandle]]:
        """Steer inside a ``with`` block; nothing is left on the model after it, also when it raised.

        Args:
            vectors: calibrated vectors, or vectors made ready by ``activate``; on every row of a batch.
            rows: besides, one set for each row of the batches that follow; empty sets leave rows as they are.

        Yields:
            A handle for each vector, those of ``vectors`` first, then row by row.
        """

        def ready(vector: SteeringVector | Active) -> Active:
            if isinstance(vector, Active):
                self.check_vector(vector.vector)
                return vector
            return self.activate(vector)

        shared = [ready(vector) for vector in vectors]
        apart = None if rows is None else [[ready(vector) for vector in row] for row in rows]
        with self.steering.on(shared, apart) as handles:
            yield handles

    def apply(self, task_vector: TaskVector, scale: float = 1.0) -> None:
        """Add a task vector to the weights, in place.

        Several add up; one of a name that is on already takes the place of the one before, so that applying again with
        another scale turns it up or down.

        Raises:
            FingerprintError: it was made on another base; what differs is named.
            UnknownNameError: it changes a parameter that this model has not.
            VectorError: a tensor of another shape.
            StrengthError: the scale is not finite.
            ModelError: the weights are quantised.
        """
        self.check_task_vector(task_vector)
        self.edits.set(self.edits.applied | {task_vector.name: Applied(task_vector, scale)})

    def revert(self, name: str | None = None) -> None:
        """Take one task vector off the weights, or all; what no other touches is the base again, to the bit.

        Raises:
            UnknownNameError: none of that name is on.
        """
        left = self.edits.applied
        if name is not None and name not in left:
            raise UnknownNameError("task vector in use called", name, left)
        self.edits.set({} if name is None else {other: one for other, one in left.items() if other != name})

    @contextmanager
    def compiled(self, task_vector: TaskVector, scale: float = 1.0) -> Iterator[None]:
        """Have a task vector on the weights inside a ``with`` block; after it, what was on before is on again."""
        with self.edited(self.edits.applied | {task_vector.name: Applied(task_vector, scale)}):
            yield

    @contextmanager
    def edited(self, applied: Mapping[str, Applied]) -> Iterator[None]:
        """Have exactly these task vectors on the weights inside a ``with`` block; after it, what was on is on again.

        Raises:
            FingerprintError, UnknownNameError, VectorError, ModelError: as ``apply``; the weights stay as they were.
        """
        for one in applied.values():
            self.check_task_vector(one.task_vector)
        before = self.edits.applied
        self.edits.set(applied)
        try:
            yield
        finally:
            self.edits.set(before)
