"""Which layer and which strength: the most effect on the calibration split within a budget of side effects."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from engrain.core.budget import Budget
from engrain.core.composition import activate
from engrain.core.contrast import PairSet
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.scoring import Divergence, NeutralScorer, bootstrap_interval, margins, margins_under
from engrain.core.vector import Calibration, SteeringVector

# The search aims a little below the budget, since neutral text that it did not see must fit in as well.
_AIM = 0.9
# Forward passes over the neutral text for each layer, at most.
_STEPS = 4
# The dose curve at the best layer, as shares of the largest strength within the budget.
_CURVE = (0.25, 0.5, 0.75, 1.25, 1.5)


@dataclass(frozen=True)
class Dose:
    """One layer and strength that was tried.

    Attributes:
        layer: decoder block, counted from 0.
        strength: factor on the direction as stored.
        effect: mean change of the preference margin on the calibration pairs, nats per token.
        effect_low: lower end of its 95 % bootstrap interval over scenarios.
        kl_mean: mean KL(base || steered) on neutral text, nats.
        kl_p95: its 95th percentile over token positions, nats.
        perplexity_ratio: perplexity of the neutral text, steered over base.
        within: whether all of these are within the budget.
    """

    layer: int
    strength: float
    effect: float
    effect_low: float
    kl_mean: float
    kl_p95: float
    perplexity_ratio: float
    within: bool

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def calibrate(
    model: SteerableModel,
    vector: SteeringVector,
    pairs: PairSet,
    neutral: list[Encoded],
    layers: Iterable[int],
    *,
    budget: Budget | None = None,
    progress: Callable[[Dose], None] | None = None,
) -> tuple[SteeringVector, list[Dose]]:
    """Choose the layer and the strength with the most certain effect within the budget.

    At each layer the strength is found at which the side effects reach the budget: they grow nearly with the square
    of the strength, so a few steps do. The effect is measured there, and at the best layer along the whole dose curve,
    past the budget too. The dose is chosen by the lower end of the effect's interval.

    Args:
        model: the model, unsteered.
        vector: the directions.
        pairs: calibration pairs; boundary pairs are passed over.
        neutral: texts to stay close to the base on.
        layers: decoder blocks to try.
        budget: of side effects on the neutral text; the defaults of ``Budget``.
        progress: called with every dose that was measured.

    Returns:
        The vector with its calibration (positions and operation stay what they were), and every dose that was measured.

    Raises:
        InputError: pairs of fewer than two scenarios, or no dose within the budget has an effect above 0.
    """
    budget = budget or Budget()
    ordinary = pairs.ordinary.pairs
    scenarios = [pair.scenario for pair in ordinary]
    if len(set(scenarios)) < 2:
        raise InputError(
            f"Vector '{vector.name}' has pairs of {len(set(scenarios))} scenarios to calibrate on; an interval needs "
            f"two at least, so add pairs."
        )
    base = margins(model, ordinary)
    scorer = NeutralScorer(model, neutral, remember=True)
    doses: list[Dose] = []

    def measure(layer: int, found: dict[float, Divergence]) -> None:
        steered = margins_under(model, ordinary, [activate(vector, layer, strength) for strength in found])
        for (strength, costs), gain in zip(found.items(), steered - base, strict=True):
            low, _ = bootstrap_interval(gain, scenarios)
            effect, within = float(gain.mean()), not budget.faults(costs)
            dose = Dose(layer, strength, effect, low, costs.kl_mean, costs.kl_p95, costs.perplexity_ratio, within)
            doses.append(dose)
            if progress is not None:
                progress(dose)

    for layer in layers:
        within = largest_within(partial(_steer, model, vector, layer), scorer, budget)
        if within is not None:
            measure(layer, dict([within]))
    # By the lower end: of several layers, the largest mean on a few dozen pairs is often luck.
    best = max(doses, key=lambda dose: dose.effect_low, default=None)
    if best is not None:
        # The most that the budget allows may be past the dose at which the effect is largest; past the budget the
        # curve shows what more would cost.
        edits = [activate(vector, best.layer, share * best.strength) for share in _CURVE]
        measure(best.layer, {edit.strength: scorer.divergence(partial(model.steer, edit)) for edit in edits})
        best = max((dose for dose in doses if dose.within), key=lambda dose: dose.effect_low)
    if best is None or best.effect <= 0:
        tried = ", ".join(f"{dose.layer} ({dose.effect:+.3f})" for dose in doses) or "none within the budget"
        raise InputError(
            f"Vector '{vector.name}' has no dose with an effect above 0 within {budget.kl_mean} nats; layers: {tried}. "
            f"Try other layers, other positions, or look at the pairs again."
        )
    # Positions and operation are those of the calibration that it had, with which every dose was measured.
    before = vector.calibration or Calibration(best.layer, best.strength)
    return vector.calibrated(replace(before, layer=best.layer, strength=best.strength)), doses


def most_doses(layers: int) -> int:
    """Return how many doses ``calibrate`` measures at so many layers; fewer where a layer has none in the budget."""
    return layers + len(_CURVE)


def _steer(
    model: SteerableModel, vector: SteeringVector, layer: int, strength: float
) -> AbstractContextManager[object]:
    return model.steer(activate(vector, layer, strength))


def overcorrection(doses: Iterable[Dose], chosen: Calibration) -> Dose | None:
    """Return the lowest dose at the chosen layer that has more effect than the chosen one and breaks the budget."""
    here = [dose for dose in doses if dose.layer == chosen.layer and not dose.within]
    at = max(
        (dose.effect for dose in doses if (dose.layer, dose.strength) == (chosen.layer, chosen.strength)), default=0
    )
    return min((dose for dose in here if dose.effect > at), key=lambda dose: dose.strength, default=None)


def largest_within(
    edit: Callable[[float], AbstractContextManager[object]], scorer: NeutralScorer, budget: Budget
) -> tuple[float, Divergence] | None:
    """Return the strength whose side effects come close to the budget from below, with these, or None without one.

    Args:
        edit: makes a context in which the model is edited at a strength; tried from 1 on.
        scorer: of the unedited model.
        budget: of side effects.
    """
    strength = 1.0
    within: tuple[float, Divergence] | None = None
    for _ in range(_STEPS):
        found = scorer.divergence(partial(edit, strength))
        load = budget.load(found)
        if load <= 1 and (within is None or strength > within[0]):
            within = (strength, found)
            if load >= 0.8:
                break
        strength *= min(16.0, max(0.1, (_AIM / max(load, 1e-9)) ** 0.5))
    return within
