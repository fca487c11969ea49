"""Several active vectors at one layer, composed into a few tensors so that ten cost what one costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engrain.core.errors import InputError, LayerError, StrengthError, WidthError
from engrain.core.number import finite
from engrain.core.positions import check_operation, check_positions, position_mask
from engrain.core.vector import SteeringVector


@dataclass(frozen=True)
class Active:
    """A vector in use.

    With d the direction at a layer, |d| its length, u = d/|d| and h the block's output:

    * ``add``: h + strength * d
    * ``ablate``: h - strength * (h . u) u; strength 1 takes the direction out
    * ``clamp``: the part of h along u is set to strength * |d|

    Several at one layer all read the block's own output; ablations and clamps of directions that are not orthogonal
    are solved jointly, so that the order is immaterial. Strength 0 turns any of them off.

    Attributes:
        vector: the directions.
        layers: the decoder blocks at whose output it acts.
        strength: factor on the direction as stored.
        positions: all, prompt, generated or from:N.
        operation: add, ablate or clamp.
        preserve_norm: keep the length of every hidden state that is changed.
    """

    vector: SteeringVector
    layers: tuple[int, ...]
    strength: float
    positions: str = "all"
    operation: str = "add"
    preserve_norm: bool = False

    def __post_init__(self) -> None:
        check_strength(self.strength, self.vector.name)
        check_positions(self.positions)
        check_operation(self.operation)
        for layer in self.layers:
            self.vector.at(layer)

    def to_json(self) -> dict[str, Any]:
        """Return how the vector is used, without the vector; plain JSON."""
        return {
            "layers": list(self.layers),
            "strength": self.strength,
            "positions": self.positions,
            "operation": self.operation,
            "preserve_norm": self.preserve_norm,
        }


def check_strength(strength: float, name: str) -> float:
    """Return ``strength`` when it is a finite number.

    Raises:
        StrengthError: it is not.
    """
    if not finite(strength):
        raise StrengthError(f"The strength of '{name}' is {strength!r}; it must be a finite number.")
    return float(strength)


def activate(
    vector: SteeringVector,
    layer: int | str | None = None,
    strength: float | None = None,
    positions: str | None = None,
    operation: str | None = None,
    *,
    preserve_norm: bool = False,
) -> Active:
    """Return the vector in use, what is not given taken from its calibration.

    Args:
        vector: the directions.
        layer: a decoder block counted from 0, or "all" for every block the vector has.
        strength: factor on the direction as stored.
        positions: all, prompt, generated or from:N.
        operation: add, ablate or clamp.
        preserve_norm: keep the length of every hidden state that is changed.

    Raises:
        LayerError: no layer given and the vector has no calibration, or it has no direction there.
        StrengthError: no strength given where the calibration has none to give, or it is not finite.
    """
    chosen = vector.calibration
    if layer is None:
        if chosen is None:
            raise LayerError(
                f"Vector '{vector.name}' has no calibration, so the layer and the strength must be given "
                f"(layer=..., strength=...; --layer L --strength S), or calibrate it first."
            )
        layers: tuple[int, ...] = (chosen.layer,)
    elif layer == "all":
        layers = vector.layers
    elif isinstance(layer, int) and not isinstance(layer, bool):
        layers = (layer,)
    else:
        raise LayerError(f"Layer {layer!r} of '{vector.name}' is neither a block number nor 'all'.")
    if strength is None:
        if chosen is None or layers != (chosen.layer,):
            raise StrengthError(f"Vector '{vector.name}' has no calibrated strength at layer {layer}; give one.")
        strength = chosen.strength
    return Active(
        vector,
        layers,
        strength,
        positions or (chosen.positions if chosen else "all"),
        operation or (chosen.operation if chosen else "add"),
        preserve_norm,
    )


def check_fits(active: Active, layers: int, width: int) -> None:
    """Check that a vector can act on a model.

    Raises:
        WidthError, LayerError: it was made for another width or for more blocks.
    """
    if active.vector.width != width:
        raise WidthError(
            f"Vector '{active.vector.name}' has width {active.vector.width}, the model has {width}. "
            f"It was made on another model; extract it again on this one."
        )
    for layer in active.layers:
        if not 0 <= layer < layers:
            raise LayerError(f"Layer {layer} of '{active.vector.name}' is not in the model; it has 0-{layers - 1}.")


@dataclass(frozen=True)
class TokenLayout:
    """Where the tokens of one forward pass stand in their own sequences.

    Attributes:
        index: place in the sequence, padding not counted and itself below 0, [batch, seq].
        generated: whether the token is past the prompt, [batch, seq].
    """

    index: Tensor
    generated: Tensor


@dataclass(frozen=True)
class _Projection:
    """Joint ablation and clamp: coordinates c = h . dual are moved by gain * c + target along the units.

    All padded with zeros to the row with most directions: units, duals [rows, k, d_model]; gain, target [rows, 1, k].
    """

    units: Tensor
    duals: Tensor
    gain: Tensor
    target: Tensor

    def delta(self, hidden: Tensor) -> Tensor:
        coordinates = hidden @ self.duals.transpose(1, 2)
        moved: Tensor = (coordinates * self.gain + self.target) @ self.units
        return moved


@dataclass(frozen=True)
class _Group:
    """What acts on the same positions: shift [rows, 1, d_model]."""

    positions: str
    shift: Tensor | None
    projection: _Projection | None


@dataclass(frozen=True)
class Composition:
    """Everything that acts at one layer.

    Attributes:
        rows: 1 when every row of a batch gets the same, else the number of rows told apart.
        groups: by positions; all read the block's own output.
        keep_norm: rows whose norm is kept, booleans [rows, 1, 1], or None.
    """

    rows: int
    groups: tuple[_Group, ...]
    keep_norm: Tensor | None

    @property
    def needs_layout(self) -> bool:
        """Whether the positions of the tokens matter."""
        return any(group.positions != "all" for group in self.groups)

    @property
    def reads_hidden(self) -> bool:
        """Whether what is added depends on the hidden state, and is not the same for all."""
        return self.keep_norm is not None or any(group.projection is not None for group in self.groups)

    def group(self, positions: str) -> _Group | None:
        """Return what acts on these positions, or None."""
        return next((group for group in self.groups if group.positions == positions), None)

    def select(self, rows: Tensor) -> "Composition":
        """Return the composition whose rows are those at these places.

        Args:
            rows: places, counted from 0, [n]; each may stand any number of times.
        """

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.index_select(0, rows)

        return Composition(len(rows), tuple(_map_group(group, pick) for group in self.groups), pick(self.keep_norm))

    def spread(self, batch: int) -> "Composition":
        """Return the composition for a batch whose rows are repeated in place (several samples or beams a row).

        Raises:
            InputError: the batch is no multiple of the rows.
        """
        if self.rows in (1, batch):
            return self
        if batch % self.rows:
            raise InputError(
                f"The steering was given for {self.rows} rows, the batch has {batch}; give one set per row."
            )

        def repeat(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.repeat_interleave(batch // self.rows, dim=0)

        return Composition(batch, tuple(_map_group(group, repeat) for group in self.groups), repeat(self.keep_norm))

    def to(self, device: torch.device) -> "Composition":
        """Return the composition on a device; the vectors stay float32."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return Composition(self.rows, tuple(_map_group(group, move) for group in self.groups), move(self.keep_norm))

    def apply(self, hidden: Tensor, layout: TokenLayout | None) -> Tensor:
        """Return ``hidden`` with everything applied.

        Args:
            hidden: a block's output, [batch, seq, d_model]; untouched.
            layout: needed when ``needs_layout``.

        Returns:
            A new tensor of the same shape and dtype. Sums are made in float32 and rounded once.
        """
        out = hidden
        for group in self.groups:
            if group.projection is None and group.positions == "all":
                assert group.shift is not None
                out = out + group.shift
                continue
            delta = hidden.new_zeros((), dtype=torch.float32)
            if group.projection is not None:
                delta = group.projection.delta(hidden.float())
            if group.shift is not None:
                delta = delta + group.shift
            if group.positions != "all":
                assert layout is not None
                mask = position_mask(group.positions, layout.index, layout.generated).unsqueeze(-1)
                # where, not a product: what is not meant stays as it is to the bit, also beside an infinite delta.
                delta = torch.where(mask.to(hidden.device), delta, delta.new_zeros(()))
            out = out + delta
        if self.keep_norm is not None:
            before, after = _norm(hidden), _norm(out)
            out = torch.where(self.keep_norm & (after > 0), out * (before / after), out)
        return out.to(hidden.dtype)


def _norm(hidden: Tensor) -> Tensor:
    length: Tensor = hidden.float().norm(dim=-1, keepdim=True)
    return length


def _map_group(group: _Group, change: Callable[[Tensor | None], Tensor | None]) -> _Group:
    p = group.projection
    moved = None
    if p is not None:
        moved = _Projection(*(_sure(change(tensor)) for tensor in (p.units, p.duals, p.gain, p.target)))
    return _Group(group.positions, change(group.shift), moved)


def _sure(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def compose(rows: Sequence[Sequence[Active]], layer: int) -> Composition | None:
    """Compose what acts at one layer, or return None when nothing does.

    Args:
        rows: the active vectors of every row told apart; one row when all get the same.
        layer: decoder block, counted from 0.
    """
    return stack([_compose_row(row, layer) for row in rows])


def stack(rows: Sequence[Composition | None]) -> Composition | None:
    """Return compositions of one row each as the rows of one; None where all of them are None.

    Args:
        rows: what acts on each row, or None for a row that nothing acts on; on one device.
    """
    acting = [row for row in rows if row is not None]
    if not acting:
        return None
    if len(rows) == 1:
        return acting[0]
    kinds = sorted({group.positions for row in acting for group in row.groups})
    groups = tuple(_stack_groups([None if row is None else row.group(kind) for row in rows], kind) for kind in kinds)
    kept = [row.keep_norm for row in acting if row.keep_norm is not None]
    if not kept:
        return Composition(len(rows), groups, None)
    off = torch.zeros_like(kept[0])
    keep = torch.cat([off if row is None or row.keep_norm is None else row.keep_norm for row in rows])
    return Composition(len(rows), groups, keep)


def _stack_groups(groups: Sequence[_Group | None], positions: str) -> _Group:
    shifts = [None if group is None else group.shift for group in groups]
    projections = [None if group is None else group.projection for group in groups]
    shift = next((one for one in shifts if one is not None), None)
    if shift is not None:
        none = torch.zeros_like(shift)
        shift = torch.cat([none if one is None else one for one in shifts])
    return _Group(positions, shift, _stack_projections(projections))


def _stack_projections(projections: Sequence[_Projection | None]) -> _Projection | None:
    acting = [one for one in projections if one is not None]
    if not acting:
        return None
    most = max(one.units.shape[1] for one in acting)

    def fill(name: str, dim: int) -> Tensor:
        like: Tensor = getattr(acting[0], name)
        shape = [1, *like.shape[1:]]
        shape[dim] = most
        rows = []
        for one in projections:
            row = like.new_zeros(shape)
            if one is not None:
                own: Tensor = getattr(one, name)
                row.narrow(dim, 0, own.shape[dim]).copy_(own)
            rows.append(row)
        return torch.cat(rows)

    return _Projection(fill("units", 1), fill("duals", 1), fill("gain", 2), fill("target", 2))


def _compose_row(row: Sequence[Active], layer: int) -> Composition | None:
    here = [one for one in row if one.strength != 0 and layer in one.layers]
    if not here:
        return None
    # One group for each kind of positions; within it addition is a sum and the rest is solved jointly.
    kinds = sorted({one.positions for one in here})
    groups = tuple(_compose_group([one for one in here if one.positions == kind], kind, layer) for kind in kinds)
    keep = any(one.preserve_norm for one in here)
    return Composition(1, groups, torch.ones(1, 1, 1, dtype=torch.bool) if keep else None)


def _compose_group(row: Sequence[Active], positions: str, layer: int) -> _Group:
    added = [one for one in row if one.operation == "add"]
    shift = None
    if added:
        # float64: the sum is the same to the last float32 bit in nearly every order.
        total = torch.stack([one.strength * one.vector.at(layer).double() for one in added]).sum(dim=0)
        shift = total.float().reshape(1, 1, -1)
    projecting = [one for one in row if one.operation != "add"]
    return _Group(positions, shift, _project(projecting, layer) if projecting else None)


def _project(row: Sequence[Active], layer: int) -> _Projection:
    directions = torch.stack([one.vector.at(layer).double() for one in row])
    lengths = directions.norm(dim=-1, keepdim=True)
    units = torch.where(lengths > 0, directions / lengths, directions)
    gain = torch.tensor([-one.strength if one.operation == "ablate" else -1.0 for one in row], dtype=torch.float64)
    reach = torch.tensor([one.strength if one.operation == "clamp" else 0.0 for one in row], dtype=torch.float64)
    # The coordinates of h in the span of the units: rows of the pseudo-inverse; the unit itself when alone.
    # Two copies of a direction differ by float32 rounding; without the tolerance that would be a direction too.
    duals = torch.linalg.pinv(units, rtol=1e-4).T
    target = reach * lengths.squeeze(-1)
    parts = (units[None], duals[None], gain[None, None], target[None, None])
    return _Projection(*(part.float() for part in parts))
