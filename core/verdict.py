"""A verdict: gates with numbers, each passed or failed, and what was measured beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA = "engrain.verdict/1"


@dataclass(frozen=True)
class Gate:
    """One condition of a verdict.

    Attributes:
        name: effect, controls, side_effects or boundary.
        passed: whether it holds.
        value: what was measured.
        bound: what it was held against.
        ci95: the 95 % bootstrap interval of ``value``, or None where it has none.
        faults: what exactly broke it, one phrase each; empty when it passed.
    """

    name: str
    passed: bool
    value: float
    bound: float
    ci95: tuple[float, float] | None = None
    faults: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return {
            "name": self.name,
            "passed": self.passed,
            "value": self.value,
            "bound": self.bound,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "faults": list(self.faults),
        }


@dataclass(frozen=True)
class Verdict:
    """Whether a behavior may be compiled.

    Attributes:
        layer: decoder block, counted from 0.
        strength: factor on the direction as stored.
        gates: all of them must pass.
        measured: everything else that was measured, plain JSON by name.
        advice: what to try, one sentence each; empty when it passed.
        seed: of every drawing and resampling.
    """

    layer: int
    strength: float
    gates: tuple[Gate, ...]
    measured: Mapping[str, Any]
    advice: tuple[str, ...]
    seed: int

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.passed for gate in self.gates)

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``engrain verify --json`` prints."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "layer": self.layer,
            "strength": self.strength,
            "gates": [gate.to_json() for gate in self.gates],
            "advice": list(self.advice),
            "seed": self.seed,
            **self.measured,
        }
