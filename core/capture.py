"""Packs of tokens run through a model: hidden states at block outputs by hooks of our own, or next-token logits.

``output_hidden_states`` is never used: transformers records it before other hooks on the same block have run, and its
last entry is past the final norm. The hooks here are registered last, so they see what steering made of the output.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from engrain.core.blocks import block_output
from engrain.core.cache import cache_argument
from engrain.core.composition import TokenLayout
from engrain.core.packing import BRANCH_TOKENS, Encoded, Pack, pack_rows, pack_trees, shared_start
from engrain.core.precision import float32_compute, has_half_units
from engrain.core.tree_attention import branches, by_branches

if TYPE_CHECKING:
    from engrain.core.model import SteerableModel

# Matrix products run at nearly full speed from about 128 tokens on, and logits take four bytes a word and token: 75 MB
# for 384 tokens of the demo model.
PACK_TOKENS = 384
# For passes that end in hidden states, which take little: a tenth faster.
STATE_TOKENS = 1024

Observer = Callable[[int, Tensor], None]


class _EnoughSeenError(Exception):
    """Ends a forward pass whose remaining blocks nobody asked for."""


class PackRunner:
    """Runs sequences through a model in packs; what all prompts start with is computed once.

    Args:
        model: the model, with whatever steering is on it.
        sequences: conversations with their replies.
        layers: the blocks to observe; a pass ends behind the last of them. None for passes that end in logits.
        group: how many sequences in a row must stay in one pack.
        tokens: how many tokens one forward pass may hold.
        float32: compute half-precision weights in float32 where the processor has no units for them.
        trees: let sequences share tokens; by default where the model is known to compute it right.
        learning: let gradients flow, which nothing that was computed beforehand would carry.
        branch: how many tokens of a tree have their attention computed together at least.

    Attributes:
        trees: whether sequences share tokens, each pack being one row.
    """

    def __init__(
        self,
        model: "SteerableModel",
        sequences: Sequence[Encoded],
        layers: Sequence[int] | None = None,
        *,
        group: int = 1,
        tokens: int = PACK_TOKENS,
        float32: bool = False,
        trees: bool | None = None,
        learning: bool = False,
        branch: int = BRANCH_TOKENS,
    ) -> None:
        self._model = model
        self._sequences = sequences
        self._layers = layers
        self._group = group
        self._tokens = tokens
        self._float32 = float32
        longest = max((len(one.prompt) + len(one.reply) for one in sequences), default=0)
        self.trees = (model.sees_trees and longest <= _window(model)) if trees is None else trees
        self._learning = learning
        self._branch = branch
        self._start = shared_start(sequences) if self.trees and not learning else 0

    def packs(self) -> Iterator[Pack]:
        """Yield the packs; every sequence is a member of exactly one."""
        if self.trees:
            return pack_trees(self._sequences, self._start, self._tokens, self._group, self._branch)
        return pack_rows(self._sequences, self._tokens, self._group)

    def observe(self, pack: Pack, observe: Observer) -> None:
        """Run a pack and hand ``observe`` the output of each of the layers, [batch * seq, d_model], in their order."""
        inputs = self._inputs(pack)
        with self._pass(pack, inputs), self._observing(observe):
            self._model.decoder(**inputs)

    def run(self, pack: Pack) -> None:
        """Run a pack through the blocks, for the hooks that stand on them."""
        inputs = self._inputs(pack)
        with self._pass(pack, inputs):
            self._model.decoder(**inputs)

    def logits(self, pack: Pack, places: Tensor) -> Tensor:
        """Return the next-token logits at ``places`` of the flattened pack, [places, vocabulary]."""
        width = pack.tokens.shape[1]
        kept, at = self._kept(pack, places % width)
        found: Tensor = kept[(places // width).to(kept.device), at.to(kept.device)]
        return found

    def fanned_logits(self, pack: Pack, places: Tensor) -> Iterator[Tensor]:
        """Yield the next-token logits of a tree under each edit of ``Steering.fan``, [places, vocabulary]."""
        kept, at = self._kept(pack, places)
        yield from (own[at.to(kept.device)] for own in kept)

    def _kept(self, pack: Pack, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [batch, kept, vocabulary] and where each of the columns stands among the kept."""
        hf = self._model.hf
        inputs = self._inputs(pack)
        with self._pass(pack, inputs):
            if "logits_to_keep" in inspect.signature(hf.forward).parameters:
                wanted, at = columns.unique(return_inverse=True)
                return hf(**inputs, logits_to_keep=wanted.to(hf.device)).logits, at
            return hf(**inputs).logits, columns

    @contextmanager
    def _pass(self, pack: Pack, inputs: dict[str, Any]) -> Iterator[None]:
        config = self._model.hf.config.get_text_config(decoder=True)
        # A checkpointed block is computed again on the way back, when this context has ended.
        learns = self._learning and torch.is_grad_enabled()
        found = () if learns or not pack.cuts else branches(pack.cuts, inputs["attention_mask"])
        with self._laid_out(pack.index, pack.generated), by_branches(config, found):
            yield

    @contextmanager
    def _laid_out(self, index: Tensor, generated: Tensor) -> Iterator[None]:
        device = self._model.hf.device
        layout = TokenLayout(index.to(device), generated.to(device))
        widened = float32_compute(self._model.decoder, self._model.blocks) if self._float32 else nullcontext()
        with nullcontext() if self._learning else torch.no_grad(), widened, self._model.steering.layout(layout):
            yield

    def _inputs(self, pack: Pack) -> dict[str, Any]:
        device = self._model.hf.device
        inputs: dict[str, Any] = {"input_ids": pack.tokens.to(device), "use_cache": False}
        if pack.visible is None:
            return inputs | {"attention_mask": (pack.index >= 0).long().to(device)}
        inputs |= {"position_ids": pack.index.to(device), "attention_mask": self._mask(pack.visible)}
        if self._start:
            # A fresh cache over the same tensors: a pass appends by copying and leaves the start as it was.
            cache = DynamicCache(ddp_cache_data=self._start_cache)
            inputs |= {cache_argument(self._model.decoder): cache, "use_cache": True}
        return inputs

    def _mask(self, visible: Tensor) -> Tensor:
        dtype = self._model.hf.dtype
        if self._float32 and not has_half_units(next(self._model.decoder.parameters())):
            dtype = torch.float32
        own = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
        start = torch.zeros(visible.shape[0], self._start, dtype=dtype)
        return torch.cat([start, own], dim=1)[None, None].to(self._model.hf.device)

    @cached_property
    def _start_cache(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the tokens that every prompt starts with, per block, under the steering of the moment."""
        tokens = torch.tensor([self._sequences[0].prompt[: self._start]], device=self._model.hf.device)
        index = torch.arange(self._start)[None]
        cache = DynamicCache()
        with (
            self._laid_out(index, torch.zeros_like(index, dtype=torch.bool)),
            self._observing(lambda layer, hidden: None),
        ):
            self._model.decoder(input_ids=tokens, use_cache=True, **{cache_argument(self._model.decoder): cache})
        # A layer without keys and values is one of a family whose trees are refused by computes_trees.
        return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[misc, union-attr]

    @contextmanager
    def _observing(self, observe: Observer) -> Iterator[None]:
        layers = self._layers or ()
        last = max(layers, default=None)

        def watch(layer: int) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                observe(layer, block_output(output).flatten(0, 1))
                if layer == last:
                    raise _EnoughSeenError

            return hook

        with ExitStack() as stack:
            for layer in layers:
                stack.callback(self._model.blocks[layer].register_forward_hook(watch(layer)).remove)
            with suppress(_EnoughSeenError):
                yield


def computes_trees(model: "SteerableModel") -> bool:
    """Return whether the model computes the same hidden states for a token tree as for its sequences one by one.

    Found out on a few tokens, since it is a matter of the family (linear attention, position biases) and of the
    attention implementation.
    """
    probe = [Encoded((1, 2, 3, 4), (5, 6)), Encoded((1, 2, 3, 4), (7, 5, 6)), Encoded((1, 2, 8), (5, 2))]
    last = [len(model.blocks) - 1]
    found: list[list[Tensor]] = []
    for trees in (False, True):
        runner = PackRunner(model, probe, last, float32=True, trees=trees, branch=1)
        seen: list[Tensor] = []
        try:
            for pack in runner.packs():
                runner.observe(pack, lambda layer, hidden, seen=seen: seen.append(hidden.float()))  # type: ignore[misc]
                found.append([seen[-1][pack.reply(pack.members.index(one))] for one in range(len(probe))])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            # A family that takes no such mask fails in its own way; as rows it must run, or nothing does.
            if not trees:
                raise
            return False
    rows, tree = (torch.cat(one) for one in found)
    # Far above the rounding of bfloat16 (0.4 %), far below what a wrong mask or position does.
    return bool((rows - tree).norm() <= 0.03 * rows.norm())


def _window(model: "SteerableModel") -> float:
    """Return the longest sequence that every block's attention sees whole: a tree is not cut into windows."""
    config = model.hf.config.get_text_config(decoder=True)
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((limit for limit in limits if isinstance(limit, int)), default=float("inf"))
