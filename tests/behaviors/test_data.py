"""The laws of the shipped data: enough of it, no surface cue, nothing on both sides of a split."""

import hashlib
import re
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from engrain.core.contrast import PairSet, screen
from engrain.plugins.behavior import Behavior
from engrain.plugins.manager import build_manager
from engrain.subject import Subject

NAMES = ("listening", "mode_awareness", "not_rushing")
MARKS = [*".,?!:;-\u2014\u2013\"'()\u2026`*/", "\n"]
FOUND = {name: behavior for name, (behavior, _) in build_manager().behaviors().items() if name in NAMES}


@pytest.fixture(params=NAMES)
def behavior(request: pytest.FixtureRequest) -> Behavior:
    return FOUND[request.param]


@pytest.fixture
def pairs(behavior: Behavior) -> PairSet:
    return behavior.pairs()


def test_there_are_enough_pairs_scenarios_and_domains(pairs: PairSet) -> None:
    assert len(pairs) >= 160
    assert len({pair.scenario for pair in pairs}) >= 80
    assert len({pair.domain for pair in pairs}) >= 8
    assert max(Counter(pair.domain for pair in pairs).values()) <= 0.2 * len(pairs)


def test_every_pair_is_named_and_belongs_to_a_scenario(pairs: PairSet) -> None:
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert all(pair.scenario and not pair.scenario.startswith("pair-") for pair in pairs)


def test_about_one_pair_in_eight_is_a_boundary_pair_in_a_scenario_of_its_own(pairs: PairSet) -> None:
    assert 0.1 <= len(pairs.boundary) / len(pairs) <= 0.17
    assert not {pair.scenario for pair in pairs.boundary} & {pair.scenario for pair in pairs.ordinary}


def test_the_test_split_holds_enough_boundary_pairs_and_none_is_extracted_from(pairs: PairSet) -> None:
    assert len(pairs.split("test").boundary) >= 14
    assert len(pairs.split("train").boundary) <= len(pairs.boundary) / 3


def test_about_one_pair_in_five_has_a_history(pairs: PairSet) -> None:
    share = sum(len(pair.messages) > 1 for pair in pairs) / len(pairs)
    assert 0.15 <= share <= 0.3


def test_the_two_replies_match_in_length(pairs: PairSet) -> None:
    for pair in pairs:
        assert 1 / 1.3 <= len(pair.positive) / len(pair.negative) <= 1.3, pair.id
        assert 1 / 1.3 <= len(pair.positive.split()) / len(pair.negative.split()) <= 1.3, pair.id


def surface(text: str) -> list[float]:
    words = text.split()
    return [len(text), len(words), float(np.mean([len(word) for word in words])), *(text.count(mark) for mark in MARKS)]


def accuracy(features: NDArray[np.float64], sides: NDArray[np.int64], scenarios: list[str], *, centre: bool) -> float:
    groups = [int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) for name in scenarios]
    fit = make_pipeline(StandardScaler(with_mean=centre), LogisticRegression(max_iter=5000, fit_intercept=centre))
    found = cross_val_predict(fit, features, sides, groups=groups, cv=GroupKFold(5))
    return float((found == sides).mean())


def test_length_and_punctuation_do_not_tell_the_sides_apart(pairs: PairSet) -> None:
    ordinary = pairs.ordinary
    positive = np.array([surface(pair.positive) for pair in ordinary], dtype=np.float64)
    negative = np.array([surface(pair.negative) for pair in ordinary], dtype=np.float64)
    sides = np.repeat([1, 0], len(ordinary))
    scenarios = [pair.scenario for pair in ordinary] * 2
    assert accuracy(np.concatenate([positive, negative]), sides, scenarios, centre=True) <= 0.60
    # The stronger question: shown both replies to one prompt, which is the positive?
    paired = np.concatenate([positive - negative, negative - positive])
    assert accuracy(paired, sides, scenarios, centre=False) <= 0.60


def test_no_reply_opens_like_a_template(pairs: PairSet) -> None:
    for side in ("positive", "negative"):
        texts = [getattr(pair, side).lower() for pair in pairs]
        assert len(set(texts)) == len(texts)
        for words, share in ((1, 0.12), (2, 0.05)):
            openings = Counter(" ".join(re.findall(r"[\w']+", text)[:words]) for text in texts)
            assert openings.most_common(1)[0][1] <= share * len(pairs), (side, openings.most_common(3))


def test_a_prompt_never_stands_in_two_scenarios(pairs: PairSet) -> None:
    assert [remark for remark in screen(pairs) if "scenarios" in remark] == []


def test_scenarios_are_many_and_disjoint_from_the_pairs(behavior: Behavior, pairs: PairSet) -> None:
    scenarios = behavior.scenarios()
    prompts = {scenario.prompt for scenario in scenarios}
    assert len(prompts) == len(scenarios) >= 100
    assert len({scenario.id for scenario in scenarios}) == len(scenarios)
    assert not prompts & {pair.messages[-1].content for pair in pairs}


def test_no_prompt_is_shared_between_behaviors() -> None:
    seen: Counter[str] = Counter()
    for behavior in FOUND.values():
        seen.update({pair.messages[-1].content for pair in behavior.pairs()})
        seen.update(scenario.prompt for scenario in behavior.scenarios())
    assert [prompt for prompt, count in seen.items() if count > 1] == []


def test_both_poles_of_mode_awareness_stand_on_the_positive_side() -> None:
    acting = {"executing", "debugging", "deciding"}
    modes = Counter(str(pair.extra["mode"]) for pair in FOUND["mode_awareness"].pairs())
    assert set(modes) == {"thinking", "deciding", "executing", "debugging", "venting", "learning", "reviewing"}
    share = sum(count for mode, count in modes.items() if mode in acting) / modes.total()
    assert 0.4 <= share <= 0.6


def test_each_behavior_declares_what_a_prompt_would_say() -> None:
    for behavior in FOUND.values():
        assert behavior.instruction != behavior.counter_instruction


def test_each_behavior_looks_at_blocks_that_any_model_has() -> None:
    for behavior in FOUND.values():
        subject = Subject.of_behavior(behavior)
        for count in (1, 2, 30, 80):
            layers = subject.layers(count)
            assert 1 <= len(layers) <= 5
            assert set(layers) <= set(range(count))
