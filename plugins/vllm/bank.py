"""The worker's side: combinations by digest, summed once, and which token of a forward pass gets which."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from engrain.core.composition import Composition, TokenLayout, compose, stack
from engrain.plugins.vllm.combination import Combination

# Digests in their order; and for each request the place of its own among them (-1 for none) and its tokens.
_Shape = tuple[tuple[str, ...], tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Scheduled:
    """The part of a request that a forward pass computes.

    Attributes:
        wire: of its combination, or None when it is not steered.
        computed: tokens of it that are in the cache already.
        tokens: that are computed now.
        prompt: tokens of its prompt.
    """

    wire: Mapping[str, Any] | None
    computed: int
    tokens: int
    prompt: int


@dataclass(frozen=True)
class _Slot:
    """A combination composed at each layer."""

    layers: Mapping[int, Composition]

    @property
    def needs_layout(self) -> bool:
        return any(composition.needs_layout for composition in self.layers.values())


@dataclass(frozen=True)
class Plan:
    """What one forward pass steers.

    Attributes:
        layers: decoder blocks at which something acts.
        tokens: places of the steered tokens in the flattened batch, [n], or None when they are its first ``count``.
        count: n.
        layout: where these tokens stand in their own sequences, [n, 1], or None when it does not matter.
    """

    layers: frozenset[int]
    tokens: Tensor | None
    count: int
    layout: TokenLayout | None
    _slots: Sequence[_Slot] = field(repr=False)
    _rows: Tensor = field(repr=False)
    _selected: dict[int, Composition | None] = field(repr=False)

    def apply(self, layer: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Steer a block's output in place.

        Args:
            layer: decoder block.
            hidden: what is added to, [tokens, d_model]; the residual stream, or without the part that is kept apart.
            residual: that part, [tokens, d_model], or None.
        """
        if layer not in self.layers:
            return
        composition = self._select(layer)
        if composition is None:
            return
        own = hidden[: self.count] if self.tokens is None else hidden.index_select(0, self.tokens)
        base = own.unsqueeze(1)
        if residual is None or not composition.reads_hidden:
            steered = composition.apply(base, self.layout)
        else:
            rest = residual[: self.count] if self.tokens is None else residual.index_select(0, self.tokens)
            stream = base.float() + rest.unsqueeze(1).float()
            steered = (base.float() + (composition.apply(stream, self.layout) - stream)).to(hidden.dtype)
        if self.tokens is None:
            own.copy_(steered.squeeze(1))
        else:
            hidden.index_copy_(0, self.tokens, steered.squeeze(1))

    def _select(self, layer: int) -> Composition | None:
        if layer not in self._selected:
            stacked = stack([slot.layers.get(layer) for slot in self._slots])
            whole = stacked is None or stacked.rows == 1
            self._selected[layer] = stacked if stacked is None or whole else stacked.select(self._rows)
        return self._selected[layer]


class Bank:
    """The combinations that a worker knows.

    One slot for each combination, however many vectors it is made of; those that have not been used for longest give
    way, and no more slots are ever needed than requests run at once.

    Args:
        slots: the most combinations that are kept; the most requests in one forward pass.
        layers: decoder blocks that are armed.
        device: where the model is.

    Attributes:
        layers: decoder blocks that are armed.
    """

    def __init__(self, slots: int, layers: Sequence[int], device: torch.device) -> None:
        self._capacity = slots
        self.layers = tuple(layers)
        self._device = device
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._last: tuple[_Shape, Plan] | None = None

    def __len__(self) -> int:
        return len(self._slots)

    def plan(self, batch: Sequence[Scheduled]) -> Plan | None:
        """Return what a forward pass over these requests steers, in their order; None when it is nothing."""
        digests: dict[str, int] = {}
        for one in batch:
            if one.wire is not None:
                digests.setdefault(one.wire["digest"], len(digests))
                self._use(one.wire)
        if not digests:
            return None
        self._retire(digests)
        # Which combination stands where, and for how many tokens: while requests only grow, it stays the same.
        shape = (
            tuple(digests),
            tuple((-1 if one.wire is None else digests[one.wire["digest"]], one.tokens) for one in batch),
        )
        slots = [self._slots[digest] for digest in digests]
        placed = any(slot.needs_layout for slot in slots)
        if self._last is None or self._last[0] != shape:
            self._last = (shape, self._place(shape, slots))
        plan = self._last[1]
        return replace(plan, layout=self._layout(batch)) if placed else plan

    def _place(self, shape: _Shape, slots: Sequence[_Slot]) -> Plan:
        row_of, count = torch.tensor(shape[1]).unbind(1)
        rows = row_of.repeat_interleave(count)
        tokens = (rows >= 0).nonzero().squeeze(1)
        return Plan(
            frozenset(layer for slot in slots for layer in slot.layers),
            None if len(tokens) == len(rows) else tokens.to(self._device),
            len(tokens),
            None,
            slots,
            rows[tokens].to(self._device),
            {},
        )

    def _layout(self, batch: Sequence[Scheduled]) -> TokenLayout:
        steered = [one for one in batch if one.wire is not None]
        index = [torch.arange(one.computed, one.computed + one.tokens) for one in steered]
        generated = [places >= one.prompt for places, one in zip(index, steered, strict=True)]
        return TokenLayout(
            torch.cat(index).unsqueeze(1).to(self._device), torch.cat(generated).unsqueeze(1).to(self._device)
        )

    def _use(self, wire: Mapping[str, Any]) -> None:
        digest = wire["digest"]
        if digest not in self._slots:
            actives = list(Combination.from_wire(wire).actives.values())
            composed = {layer: compose([actives], layer) for layer in self.layers}
            self._slots[digest] = _Slot(
                {layer: one.to(self._device) for layer, one in composed.items() if one is not None}
            )
        self._slots.move_to_end(digest)

    def _retire(self, needed: Mapping[str, int]) -> None:
        while len(self._slots) > max(self._capacity, len(needed)):
            self._slots.popitem(last=False)
