"""Joint calibration: one budget for all, effects as measured one by one, strengths that favor who keeps least."""

from functools import partial

import pytest
import torch

from engrain.core.budget import Budget
from engrain.core.contrast import ContrastPair, Message, PairSet
from engrain.core.errors import InputError
from engrain.core.extract import extract
from engrain.core.joint import Joint, calibrate_jointly, passes
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.scoring import NeutralScorer, margins
from engrain.core.vector import Calibration, SteeringVector

NEUTRAL = [Encoded((), tuple(range(20, 60))), Encoded((), tuple(range(90, 130)))]
BUDGET = Budget(kl_mean=0.05, kl_p95=0.5, perplexity=2.0)


def pairs(positive: str, negative: str) -> PairSet:
    made = [
        ContrastPair((Message("user", f"Say {i}."),), f"{positive} {i}", f"{negative} {i}", scenario=f"s{i}")
        for i in range(6)
    ]
    return PairSet(tuple(made))


PAIRS = {"a": pairs("aaa", "zzz"), "q": pairs("qqqq", "mm")}


def effect(model: SteerableModel, vector: SteeringVector, own: PairSet) -> float:
    base = margins(model, own.pairs)
    with model.steer(vector):
        return float((margins(model, own.pairs) - base).mean())


def calibrated(model: SteerableModel) -> dict[str, SteeringVector]:
    made = {}
    for name, own in PAIRS.items():
        vector, dose = extract(model, own, layers=[1], name=name), Calibration(1, 0.5)
        # On random weights a direction has an effect of either sign.
        works = effect(model, vector.calibrated(dose), own) > 0
        made[name] = (vector if works else -vector).calibrated(dose)
    return made


@pytest.fixture(scope="module")
def joint() -> tuple[dict[str, SteeringVector], Joint, list[int]]:
    from tiny import tiny

    model, told = tiny("llama"), list[int]()
    vectors, found = calibrate_jointly(model, calibrated(model), PAIRS, NEUTRAL, budget=BUDGET, progress=told.append)
    return vectors, found, told


Found = tuple[dict[str, SteeringVector], Joint, list[int]]


def test_all_together_stay_within_one_budget(llama: SteerableModel, joint: Found) -> None:
    vectors, found, _ = joint
    together = NeutralScorer(llama, NEUTRAL).divergence(lambda: llama.steer(*vectors.values()))
    assert not BUDGET.faults(together)
    assert found.neutral.kl_mean == pytest.approx(together.kl_mean, rel=1e-4)
    # And come close to it: half as strong again would break it.
    stronger = [vector.calibrated(Calibration(1, 1.5 * found.strengths[name])) for name, vector in vectors.items()]
    assert BUDGET.faults(NeutralScorer(llama, NEUTRAL).divergence(lambda: llama.steer(*stronger)))


def test_the_matrix_holds_what_each_vector_does_to_the_pairs_of_each(llama: SteerableModel, joint: Found) -> None:
    vectors, found, _ = joint
    for name, vector in vectors.items():
        for other, own in PAIRS.items():
            assert found.interference[name][other] == pytest.approx(effect(llama, vector, own), abs=1e-5)


def test_the_vectors_carry_the_strengths_that_were_chosen(joint: Found) -> None:
    vectors, found, _ = joint
    for name, vector in vectors.items():
        assert vector.calibration == Calibration(1, found.strengths[name])


def test_progress_adds_up_to_what_was_announced(joint: Found) -> None:
    assert sum(joint[2]) == passes(2)


def test_the_one_that_keeps_least_keeps_at_least_what_equal_shares_would_leave_it(llama: SteerableModel) -> None:
    vectors = calibrated(llama)
    # What the one adds, the other takes away in part.
    against = vectors["q"].at(1) - 0.4 * vectors["a"].at(1)
    vectors["q"] = SteeringVector({1: against}, "q").calibrated(Calibration(1, 0.5))
    _, found = calibrate_jointly(llama, vectors, PAIRS, NEUTRAL, budget=BUDGET)
    scorer = NeutralScorer(llama, NEUTRAL)
    shares = [0.5 * 1.05**step for step in range(60)]
    equal = [[vector.calibrated(Calibration(1, share)) for vector in vectors.values()] for share in shares]
    within = [one for one in equal if not BUDGET.faults(scorer.divergence(partial(llama.steer, *one)))]
    base = {name: margins(llama, own.pairs) for name, own in PAIRS.items()}
    with llama.steer(*within[-1]):
        kept = [
            float((margins(llama, own.pairs) - base[name]).mean()) / found.alone[name] for name, own in PAIRS.items()
        ]
    # The search stops a little below the budget, the literal one at it.
    assert min(found.together[name] / found.alone[name] for name in PAIRS) >= 0.9 * min(kept)


def test_one_vector_and_one_without_an_effect_are_refused(llama: SteerableModel) -> None:
    vectors = calibrated(llama)
    with pytest.raises(InputError, match="two vectors or more"):
        calibrate_jointly(llama, {"a": vectors["a"]}, PAIRS, NEUTRAL)
    away = SteeringVector({1: -vectors["q"].at(1)}, "q").calibrated(Calibration(1, 0.5))
    with pytest.raises(InputError, match="'q' has no effect by itself"):
        calibrate_jointly(llama, vectors | {"q": away}, PAIRS, NEUTRAL)
    bare = SteeringVector({1: torch.ones(32)}, "q")
    with pytest.raises(InputError, match="'q' has no calibration"):
        calibrate_jointly(llama, vectors | {"q": bare}, PAIRS, NEUTRAL)
