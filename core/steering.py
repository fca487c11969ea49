"""The active set of a model: vectors put on its blocks by hooks, changed live, gone without a trace."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engrain.core.blocks import block_output, replace_output
from engrain.core.cache import given_cache
from engrain.core.composition import Active, Composition, TokenLayout, check_fits, check_strength, compose
from engrain.core.errors import InputError


class SteeringHandle:
    """One vector in use; change it at any time, also between the tokens of a running generation."""

    def __init__(self, steering: "Steering", active: Active, row: int | None) -> None:
        self._steering = steering
        self._active = active
        self._enabled = True
        self.row = row

    @property
    def active(self) -> Active:
        """What is in use."""
        return self._active

    @property
    def strength(self) -> float:
        """Factor on the direction as stored. Setting it raises ``StrengthError`` unless it is finite."""
        return self._active.strength

    @strength.setter
    def strength(self, strength: float) -> None:
        self._active = replace(self._active, strength=check_strength(strength, self._active.vector.name))
        self._steering.refresh()

    @property
    def enabled(self) -> bool:
        """Whether it acts at all."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._enabled = bool(enabled)
        self._steering.refresh()

    def remove(self) -> None:
        """Take it off the model; a second call does nothing."""
        self._steering.remove(self)


class Steering:
    """The active set of one model.

    Hooks stand only on the blocks that some handle names and on the decoder; none are left when the last handle goes.
    """

    def __init__(self, decoder: nn.Module, blocks: nn.ModuleList, width: int) -> None:
        self._decoder = decoder
        self._blocks = blocks
        self._width = width
        self._handles: list[SteeringHandle] = []
        self._rows: int | None = None
        self._hooks: dict[int, RemovableHandle] = {}
        self._watch: RemovableHandle | None = None
        self._compositions: dict[int, Composition | None] = {}
        self._fitted: dict[tuple[int, int, torch.device], Composition] = {}
        self._needs_layout: bool | None = None
        self._layout: TokenLayout | None = None
        self._told = False
        self._prompt_lengths: Tensor | None = None

    @property
    def handles(self) -> tuple[SteeringHandle, ...]:
        """What is on the model, in the order it was added."""
        return tuple(self._handles)

    def add(self, active: Active, row: int | None = None) -> SteeringHandle:
        """Put a vector on the model, on every row of a batch or on one.

        Raises:
            WidthError, LayerError: it does not fit this model.
        """
        check_fits(active, len(self._blocks), self._width)
        handle = SteeringHandle(self, active, row)
        self._handles.append(handle)
        self.refresh()
        return handle

    def remove(self, handle: SteeringHandle) -> None:
        """Take one handle off."""
        if handle in self._handles:
            self._handles.remove(handle)
            self.refresh()

    def refresh(self) -> None:
        """Bring the hooks in line with the handles; what was composed is made anew when next needed."""
        self._compositions.clear()
        self._fitted.clear()
        self._needs_layout = None
        wanted = {layer for handle in self._handles for layer in handle.active.layers}
        for layer in self._hooks.keys() - wanted:
            self._hooks.pop(layer).remove()
        for layer in wanted - self._hooks.keys():
            self._hooks[layer] = self._blocks[layer].register_forward_hook(self._steer_block(layer))
        if wanted and self._watch is None:
            self._watch = self._decoder.register_forward_pre_hook(self._see_inputs, with_kwargs=True)
        elif not wanted and self._watch is not None:
            self._watch.remove()
            self._watch = None
            self._prompt_lengths = None

    @contextmanager
    def on(
        self, actives: Sequence[Active], rows: Sequence[Sequence[Active]] | None = None
    ) -> Iterator[list[SteeringHandle]]:
        """Put vectors on for a block of code and take them off after it, whatever happens in it.

        Args:
            actives: what acts on every row of a batch.
            rows: what acts on each row alone, or None when the rows are not told apart.

        Raises:
            InputError: rows are told apart already, into another number.
        """
        before = self._rows
        added: list[SteeringHandle] = []
        try:
            if rows is not None:
                if before not in (None, len(rows)):
                    raise InputError(f"Steering tells {before} rows apart already; it cannot also tell {len(rows)}.")
                self._rows = len(rows)
            # One by one: what is on already comes off again when a later one does not fit.
            for active in actives:
                added.append(self.add(active))
            for row, own in enumerate(rows or ()):
                for active in own:
                    added.append(self.add(active, row))
            yield added
        finally:
            for handle in added:
                self.remove(handle)
            self._rows = before
            self.refresh()

    @contextmanager
    def fan(self, layer: int, edits: Sequence[Active]) -> Iterator[None]:
        """Run the blocks up to ``layer`` once and the rest under each edit, as the rows of a batch.

        For forward passes of one row inside; what comes out of the model has a row for each edit.

        Args:
            layer: the block at whose output every edit acts.
            edits: what acts on each row alone; one of strength 0 leaves its row as it is.

        Raises:
            WidthError, LayerError: an edit does not fit this model.
        """
        for active in edits:
            check_fits(active, len(self._blocks), self._width)
        composition = compose([[active] for active in edits], layer)

        def spread(module: nn.Module, inputs: Any, output: Any) -> Any:
            hidden = block_output(output)
            assert hidden.shape[0] == 1
            rows = hidden.expand(len(edits), -1, -1)
            if composition is not None:
                rows = composition.to(hidden.device).apply(rows, self._layout)
            return replace_output(output, rows)

        hook = self._blocks[layer].register_forward_hook(spread)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def layout(self, layout: TokenLayout) -> Iterator[None]:
        """Say where the tokens of the forward passes inside stand, for passes that are no plain sequences."""
        before = (self._layout, self._told)
        self._layout, self._told = layout, True
        try:
            yield
        finally:
            self._layout, self._told = before

    def _compose(self, layer: int) -> Composition | None:
        if layer not in self._compositions:
            rows = range(self._rows) if self._rows is not None else range(1)
            acting = [handle for handle in self._handles if _acts(handle)]
            sets = [[h.active for h in acting if h.row in (None, row)] for row in rows]
            self._compositions[layer] = compose(sets, layer)
        return self._compositions[layer]

    def _steer_block(self, layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            hidden = block_output(output)
            key = (layer, hidden.shape[0], hidden.device)
            fitted = self._fitted.get(key)
            if fitted is None:
                composition = self._compose(layer)
                if composition is None:
                    return None
                fitted = self._fitted[key] = composition.spread(hidden.shape[0]).to(hidden.device)
            return replace_output(output, fitted.apply(hidden, self._layout))

        return hook

    def _see_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find out, before the decoder runs, which tokens are prompt and which are generated."""
        if self._told:
            return
        past = _cached_tokens(kwargs)
        if self._needs_layout is None:
            composed = map(self._compose, self._hooks)
            self._needs_layout = any(one is not None and one.needs_layout for one in composed)
        if past and not self._needs_layout:
            self._layout = None
            return
        index = _token_index(args, kwargs, past)
        if past == 0:
            # Kept even when nothing needs it yet: such a vector may be switched on while this generation runs.
            self._prompt_lengths = index.amax(dim=1, keepdim=True) + 1
        elif self._prompt_lengths is None or self._prompt_lengths.shape[0] != index.shape[0]:
            # A cache that was filled before the steering began: what is in it is prompt, and so is a longer chunk.
            self._prompt_lengths = index[:, -1:] + 1 if index.shape[1] > 1 else index
        self._layout = TokenLayout(index, index >= self._prompt_lengths)


def _acts(handle: SteeringHandle) -> bool:
    return handle.enabled and handle.strength != 0


def _cached_tokens(kwargs: dict[str, Any]) -> int:
    cache = given_cache(kwargs)
    return int(cache.get_seq_length()) if cache is not None else 0


def _token_index(args: tuple[Any, ...], kwargs: dict[str, Any], past: int) -> Tensor:
    """Return the place of each token in its own sequence, padding below 0, [batch, seq]."""
    tokens = kwargs.get("input_ids", args[0] if args else None)
    if tokens is None:
        tokens = kwargs["inputs_embeds"]
    batch, length = tokens.shape[:2]
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == past + length:
        seen = mask.to(torch.long)
        # Padding gets -1, also on the right, where the running count alone would repeat the last token's place.
        return torch.where(seen > 0, seen.cumsum(-1) - 1, -1)[:, -length:]
    positions = kwargs.get("position_ids")
    if isinstance(positions, Tensor) and positions.dim() == 2:
        return positions.expand(batch, -1)
    return torch.arange(past, past + length, device=tokens.device).expand(batch, -1)
