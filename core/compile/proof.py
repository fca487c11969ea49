"""A proof: what was asked of compiled weights and what they do, in numbers, on texts that nothing was made from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from engrain.core.change import Change
from engrain.core.errors import InputError
from engrain.core.scoring import Divergence

SCHEMA = "engrain.proof/1"


@dataclass(frozen=True)
class Share:
    """A part of what the vector does.

    Attributes:
        value: 1 for all of it.
        ci95: its 95 % bootstrap interval over scenarios or prompts, or None with fewer than two.
        n: number of pairs or replies.
    """

    value: float
    ci95: tuple[float, float] | None
    n: int

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Return what ``to_json`` wrote."""
        return cls(**{**found, "ci95": found["ci95"] and tuple(found["ci95"])})

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return vars(self) | {"ci95": None if self.ci95 is None else list(self.ci95)}


@dataclass(frozen=True)
class Drift:
    """How far neutral text moves.

    Attributes:
        compiled: from the base to the compiled weights.
        steered: from the base to the steered model.
    """

    compiled: Divergence
    steered: Divergence

    @property
    def ratio(self) -> float:
        """KL(base || compiled) over KL(base || steered), each a mean over positions."""
        return self.compiled.kl_mean / self.steered.kl_mean

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Return what ``to_json`` wrote."""
        return cls(Divergence(**found["compiled"]), Divergence(**found["steered"]))

    def to_json(self) -> dict[str, Any]:
        """Return the fields, and the ratio."""
        return {"compiled": self.compiled.to_json(), "steered": self.steered.to_json(), "ratio": self.ratio}


@dataclass(frozen=True)
class Fidelity:
    """How much of the steered model some weights are, in scope and elsewhere.

    Attributes:
        recovered: (compiled - base) / (steered - base) of the preference margin on the test pairs.
        kl_recovered: 1 - KL(steered || compiled) / KL(steered || base), on replies that the steered model made.
        drift: on neutral text, "raw" and "chat" apart.
    """

    recovered: Share
    kl_recovered: Share
    drift: Mapping[str, Drift]

    @property
    def drift_ratio(self) -> float:
        """The larger of the ratios on raw text and on chat turns."""
        return max(one.ratio for one in self.drift.values())

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Return what ``to_json`` wrote."""
        drift = {what: Drift.from_json(one) for what, one in found["drift"].items()}
        return cls(Share.from_json(found["recovered"]), Share.from_json(found["kl_recovered"]), drift)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, and the drift ratio."""
        return {
            "recovered": self.recovered.to_json(),
            "kl_recovered": self.kl_recovered.to_json(),
            "drift": {what: one.to_json() for what, one in self.drift.items()},
            "drift_ratio": self.drift_ratio,
        }


@dataclass(frozen=True)
class Depth:
    """The hidden states of one block, where the steered model's replies are predicted.

    With d the shift from base to steered, and s the shift from base to compiled:

    Attributes:
        layer: decoder block, counted from 0.
        residual: E|s - d|^2 / E|d|^2: 0 for the steered model, 1 for the base.
        projection: E<s, d> / E|d|^2. Where a vector v is added with strength a, d is a v, and this <s, v> / (a |v|^2).
        cosine: of the mean of s with the mean of d; 0 where nothing moved.
    """

    layer: int
    residual: float
    projection: float
    cosine: float


@dataclass(frozen=True)
class Point:
    """The task vector at one scale.

    Attributes:
        scale: factor on it.
        effect: mean change of the margin on the test pairs, nats per token.
        ci95: its interval over scenarios.
        kl_mean: mean KL(base || scaled) on all the neutral text, nats.
    """

    scale: float
    effect: float
    ci95: tuple[float, float] | None
    kl_mean: float


@dataclass(frozen=True)
class Proof:
    """What was asked for, and what the weights do.

    Law: ``from_json`` of what ``to_json`` returns is this proof.

    Attributes:
        steered: what steering does to the margin on the test pairs.
        compiled: how much of that the weights are.
        rounded: the same with every touched tensor of the compiled model, W + delta, rounded to bfloat16.
        depths: hidden states at the steered blocks, halfway to the end, and at the last block.
        scales: the task vector scaled, 0 and 1 among them, ascending.
        control: what a random direction of the same length does, compiled by the same recipe; None without one.
        seed: of every drawing and resampling.
        attention: of "base", "steered" and "compiled" the share of attention that the steered model's replies pay to
            the user's last turn, from the first changed block on; empty for families that hand out no weights.
    """

    steered: Change
    compiled: Fidelity
    rounded: Fidelity
    depths: tuple[Depth, ...]
    scales: tuple[Point, ...]
    control: Change | None
    seed: int
    attention: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Return what ``to_json`` wrote.

        Raises:
            InputError: it is something else.
        """
        if found.get("schema") != SCHEMA:
            raise InputError(f"A proof has the schema '{SCHEMA}', this is {found.get('schema')!r}.")
        try:
            control = found["control"]
            return cls(
                Change.from_json(found["steered"]),
                Fidelity.from_json(found["compiled"]),
                Fidelity.from_json(found["rounded"]),
                tuple(Depth(**one) for one in found["depths"]),
                tuple(Point(**{**one, "ci95": one["ci95"] and tuple(one["ci95"])}) for one in found["scales"]),
                None if control is None else Change.from_json(control),
                found["seed"],
                # Those of before say nothing of it.
                found.get("attention", {}),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"This is no whole proof ({type(error).__name__}: {error}).") from error

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "schema": SCHEMA,
            "steered": self.steered.to_json(),
            "compiled": self.compiled.to_json(),
            "rounded": self.rounded.to_json(),
            "depths": [asdict(one) for one in self.depths],
            "scales": [asdict(one) | {"ci95": one.ci95 and list(one.ci95)} for one in self.scales],
            "control": None if self.control is None else self.control.to_json(),
            "seed": self.seed,
            "attention": dict(self.attention),
        }
