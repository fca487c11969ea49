"""Which layer and which strength: the most effect on the calibration split within a budget of side effects."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from engrain.core.composition import activate
from engrain.core.contrast import PairSet
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.scoring import Divergence, NeutralScorer, bootstrap_interval, margins
from engrain.core.vector import Calibration, SteeringVector

# Nats of mean KL(base || steered) on neutral text.
KL_BUDGET = 0.2
# The search aims a little below the budget, since neutral text that it did not see must fit in as well.
_AIM = 0.9
# Forward passes over the neutral text for each layer, at most.
_STEPS = 4


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
    """

    layer: int
    strength: float
    effect: float
    effect_low: float
    kl_mean: float
    kl_p95: float

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
    kl_budget: float = KL_BUDGET,
    progress: Callable[[Dose], None] | None = None,
) -> tuple[SteeringVector, list[Dose]]:
    """Choose the layer and the strength with the most certain effect within the budget.

    At each layer the strength is found at which the divergence on neutral text reaches the budget: it grows nearly
    with the square of the strength, so a few steps do. The effect is measured there, and at the best layer at half
    of that strength too. The dose is chosen by the lower end of the effect's interval.

    Args:
        model: the model, unsteered.
        vector: the directions.
        pairs: calibration pairs; boundary pairs are passed over.
        neutral: texts to stay close to the base on.
        layers: decoder blocks to try.
        kl_budget: nats of mean KL(base || steered) on the neutral text.
        progress: called with every dose that was measured.

    Returns:
        The vector with its calibration, and every dose that was measured.

    Raises:
        InputError: pairs of fewer than two scenarios, or no dose within the budget has an effect above 0.
    """
    ordinary = pairs.ordinary.pairs
    scenarios = [pair.scenario for pair in ordinary]
    base = margins(model, ordinary)
    scorer = NeutralScorer(model, neutral, remember=True)
    doses: list[Dose] = []

    def measure(layer: int, strength: float, found: Divergence) -> None:
        with model.steer(activate(vector, layer, strength)):
            gain = margins(model, ordinary) - base
        low, _ = bootstrap_interval(gain, scenarios)
        doses.append(Dose(layer, strength, float(gain.mean()), low, found.kl_mean, found.kl_p95))
        if progress is not None:
            progress(doses[-1])

    for layer in layers:
        within = _largest_within(model, vector, layer, scorer, kl_budget)
        if within is not None:
            measure(layer, *within)
    # By the lower end: of several layers, the largest mean on a few dozen pairs is often luck.
    best = max(doses, key=lambda dose: dose.effect_low, default=None)
    if best is not None:
        # The most that the budget allows may be past the dose at which the effect is largest.
        half = best.strength / 2
        measure(best.layer, half, scorer.divergence(partial(model.steer, activate(vector, best.layer, half))))
        best = max(doses, key=lambda dose: dose.effect_low)
    if best is None or best.effect <= 0:
        tried = ", ".join(f"{dose.layer} ({dose.effect:+.3f})" for dose in doses) or "none within the budget"
        raise InputError(
            f"Vector '{vector.name}' has no dose with an effect above 0 within {kl_budget} nats; layers: {tried}. "
            f"Try other layers, other positions, or look at the pairs again."
        )
    return vector.calibrated(Calibration(best.layer, best.strength)), doses


def _largest_within(
    model: SteerableModel, vector: SteeringVector, layer: int, scorer: NeutralScorer, kl_budget: float
) -> tuple[float, Divergence] | None:
    """Return the strength whose divergence comes close to the budget from below, with that divergence."""
    strength = 1.0
    within: tuple[float, Divergence] | None = None
    for _ in range(_STEPS):
        found = scorer.divergence(partial(model.steer, activate(vector, layer, strength)))
        if found.kl_mean <= kl_budget and (within is None or strength > within[0]):
            within = (strength, found)
        if within is not None and within[1].kl_mean >= 0.8 * kl_budget:
            break
        strength *= min(16.0, max(0.1, (_AIM * kl_budget / max(found.kl_mean, 1e-9)) ** 0.5))
    return within
