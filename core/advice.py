"""What to try after a verdict that did not pass."""

from collections.abc import Sequence

import torch

from engrain.core.composition import Active
from engrain.core.extract import pair_differences
from engrain.core.model import SteerableModel
from engrain.core.number import checked
from engrain.core.training import Training

# What is read of a dose that the calibration tried.
_DOSE = ("layer", "strength", "effect", "effect_low")
# How many pairs that pull against the rest are named.
_NAMED = 5


def advise(model: SteerableModel, active: Active, training: Training, failed: Sequence[str]) -> tuple[str, ...]:
    """Return what to try, one sentence each.

    Args:
        model: the model, unsteered.
        active: the vector in use, at one block.
        training: what it was made from.
        failed: the names of the gates that did not pass.
    """
    found: list[str] = []
    if "side_effects" in failed:
        found.append(
            f"The dose is too strong: {active.strength:.3g} at layer {active.layers[0]}. Calibrate again, or "
            f"over other layers: engrain calibrate NAME --layers all."
        )
    if {"effect", "controls"} & set(failed):
        found += _other_layers(active)
        against = pulling_against(model, active, training)
        if against:
            found.append(f"Look at the pairs that pull against the rest: {', '.join(against[:_NAMED])}.")
        otherwise = (
            "--positions first or last" if training.gradients else "--method gradient, --positions first or last"
        )
        found.append(
            f"Add pairs: the vector was made from {len(training.pairs.ordinary)}; or extract it with {otherwise}."
        )
    return tuple(found)


def advise_compiling(failed: Sequence[str]) -> tuple[str, ...]:
    """Return what to try with weights that did not pass, one sentence each.

    Args:
        failed: the names of the gates that did not pass.
    """
    found: list[str] = []
    if {"effect", "controls"} & set(failed):
        found.append(
            "Little of the vector is in the weights: compile it with --backend bias, which has all of it, and if that "
            "passes, train the other one on more of the behavior's conversations."
        )
    if "side_effects" in failed:
        found.append("Use less of the change (--task-vector NAME=0.7), or compile it with more text to leave alone.")
    if "boundary" in failed:
        found.append("Compile it with boundary pairs among the texts to leave alone.")
    return tuple(found)


def _other_layers(active: Active) -> list[str]:
    """Return the advice that the sweep's own numbers give."""
    doses = checked(active.vector.origin.get("calibration_doses"), _DOSE)
    others = [dose for dose in doses if dose["layer"] != active.layers[0]]
    if not others:
        return ["Calibrate over more layers: engrain calibrate NAME --layers all."]
    best = max(others, key=lambda dose: float(dose["effect_low"]))
    return [
        f"Another layer: the calibration found an effect of {best['effect']:+.3f} (at least {best['effect_low']:+.3f}) "
        f"at layer {best['layer']}, strength {best['strength']:.3g}."
    ]


def pulling_against(model: SteerableModel, active: Active, training: Training) -> list[str]:
    """Return the ids of the pairs whose own share points against the mean of the others, strongest first.

    Args:
        model: the model, unsteered.
        active: the vector in use, at one block.
        training: what it was made from.
    """
    ordinary = training.pairs.ordinary.pairs
    layer = active.layers[0]
    differences = pair_differences(model, ordinary, layer, training.positions, gradients=training.gradients)
    others = (differences.sum(dim=0) - differences) / max(1, len(differences) - 1)
    cosines = torch.cosine_similarity(differences, others).tolist()
    against = [(cosine, pair) for pair, cosine in zip(ordinary, cosines, strict=True) if cosine < 0]
    return [pair.id or pair.positive[:40] for _, pair in sorted(against, key=lambda one: one[0])]
