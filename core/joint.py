"""Strengths of several behaviors that are on together, and what each of them does to the others."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from engrain.core.budget import Budget
from engrain.core.calibrate import largest_within
from engrain.core.composition import Active
from engrain.core.contrast import PairSet
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.progress import Count
from engrain.core.scoring import Divergence, NeutralScorer, margins
from engrain.core.vector import SteeringVector

# How often the strengths are set against one another.
_ROUNDS = 3


@dataclass(frozen=True)
class Joint:
    """Several behaviors on together. Effects are changes of the preference margin, nats per token.

    Attributes:
        strengths: of each.
        alone: the effect of each on its own pairs, at the strength it was calibrated with by itself.
        together: the effect of all of them on the pairs of each.
        interference: of each, by itself at its new strength, the effect on the pairs of every one.
        neutral: how far all of them together are from the base on neutral text.
    """

    strengths: Mapping[str, float]
    alone: Mapping[str, float]
    together: Mapping[str, float]
    interference: Mapping[str, Mapping[str, float]]
    neutral: Divergence

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return vars(self) | {"neutral": self.neutral.to_json()}


def passes(names: int) -> int:
    """Return how often ``calibrate_jointly`` scores the pairs of a behavior, for so many behaviors."""
    return names * (2 + _ROUNDS + names)


def calibrate_jointly(
    model: SteerableModel,
    vectors: Mapping[str, SteeringVector],
    pairs: Mapping[str, PairSet],
    neutral: list[Encoded],
    *,
    budget: Budget | None = None,
    progress: Count | None = None,
) -> tuple[dict[str, SteeringVector], Joint]:
    """Choose strengths for vectors that are on together, within one budget for all of them.

    Layers stay as they are. All strengths are scaled until the side effects of the whole reach the budget. How they
    stand to one another is set in rounds: a behavior that keeps less of the effect that it has alone gets more. The
    round is taken in which the one that keeps the least keeps the most.

    Args:
        model: the model, unsteered.
        vectors: each calibrated by itself, by name.
        pairs: the calibration pairs of each; boundary pairs are passed over.
        neutral: texts to stay close to the base on.
        budget: of the side effects of all together; the defaults of ``Budget``.
        progress: called with the number of scored behaviors, ``passes`` in all.

    Returns:
        The vectors with their new strengths, and what was measured.

    Raises:
        InputError: fewer than two vectors, one without a calibration or without an effect by itself, or nothing
            within the budget.
    """
    budget = budget or Budget()
    if len(vectors) < 2:
        raise InputError(f"Jointly calibrated are two vectors or more, {len(vectors)} was given.")
    uncalibrated = [name for name, vector in vectors.items() if vector.calibration is None]
    if uncalibrated:
        raise InputError(f"'{uncalibrated[0]}' has no calibration of its own; calibrate it by itself first.")
    actives = {name: model.activate(vector) for name, vector in vectors.items()}

    def score(name: str) -> Tensor:
        found = margins(model, pairs[name].ordinary.pairs)
        if progress is not None:
            progress(1)
        return found

    base = {name: score(name) for name in actives}

    def effects(steered: Mapping[str, Active], on: Mapping[str, Tensor]) -> dict[str, float]:
        with model.steer(*steered.values()):
            return {name: float((score(name) - base[name]).mean()) for name in on}

    alone = {name: effects({name: active}, {name: base[name]})[name] for name, active in actives.items()}
    if min(alone.values()) <= 0:
        name = min(alone, key=alone.__getitem__)
        raise InputError(f"'{name}' has no effect by itself ({alone[name]:+.3f} nats); calibrate it again by itself.")

    scorer = NeutralScorer(model, neutral, remember=True)
    weights = dict.fromkeys(actives, 1.0)
    rounds: list[tuple[float, dict[str, float], dict[str, float], Divergence]] = []
    for _ in range(_ROUNDS):
        within = largest_within(partial(_steer, model, actives, weights), scorer, budget)
        if within is None:
            break
        factor, found = within
        strengths = {name: factor * weights[name] * active.strength for name, active in actives.items()}
        together = effects(_at(actives, strengths), base)
        kept = {name: together[name] / alone[name] for name in actives}
        rounds.append((min(kept.values()), strengths, together, found))
        # Within a factor of two at a time: an effect near 0 or below it says little about how much is needed.
        middle = sum(kept.values()) / len(kept)
        weights = {name: weight * _bounded(middle, kept[name]) for name, weight in weights.items()}
    if not rounds:
        raise InputError(
            f"No strengths of {', '.join(actives)} together stay within {budget.kl_mean} nats; use fewer at once."
        )
    _, strengths, together, found = max(rounds, key=lambda one: one[0])
    ready = _at(actives, strengths)
    interference = {name: effects({name: active}, base) for name, active in ready.items()}
    calibrated = {
        name: vector.calibrated(replace(calibration, strength=strengths[name]))
        for name, vector in vectors.items()
        if (calibration := vector.calibration) is not None
    }
    return calibrated, Joint(strengths, alone, together, interference, found)


def _at(actives: Mapping[str, Active], strengths: Mapping[str, float]) -> dict[str, Active]:
    return {name: replace(active, strength=strengths[name]) for name, active in actives.items()}


def _steer(
    model: SteerableModel, actives: Mapping[str, Active], weights: Mapping[str, float], factor: float
) -> AbstractContextManager[object]:
    strengths = {name: factor * weights[name] * active.strength for name, active in actives.items()}
    return model.steer(*_at(actives, strengths).values())


def _bounded(middle: float, kept: float) -> float:
    """Return how much more strength a behavior gets that keeps ``kept`` of its effect where ``middle`` is usual."""
    if middle <= 0:
        return 1.0
    return min(2.0, max(0.5, middle / kept)) if kept > 0 else 2.0
