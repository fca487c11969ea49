"""What a compiler learns from: whole, of the right splits, kept, and nothing of a test split."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from engrain import gathering
from engrain.core.compile import trajectories
from engrain.core.compile.corpus import Corpus
from engrain.core.compile.trajectories import sample_trajectories
from engrain.core.composition import Active, activate
from engrain.core.contrast import ContrastPair, Message, PairSet, split_of
from engrain.core.vector import SteeringVector
from engrain.gathering import gather_corpus
from engrain.subject import Subject
from saying import behavior, no_bar
from tiny import tiny

SUBJECT = Subject.of_behavior(behavior())
OTHER = Subject.of_behavior(behavior("other", "bbb"))


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model finds everything unlikely, its own replies too; and few replies are enough here."""
    monkeypatch.setattr(trajectories, "_SURPRISE", float("inf"))
    monkeypatch.setattr(gathering, "_CONVERSATIONS", {"train": 12, "calibration": 5})
    monkeypatch.setattr(gathering, "AT_ONCE", 4)


def active(strength: float = 1.0, layer: int = 1) -> Active:
    return activate(SteeringVector({layer: torch.ones(32)}, "v"), layer, strength)


def gather(*subjects: Subject, strength: float = 1.0, seed: int = 0) -> Corpus:
    found = gather_corpus(
        tiny(), subjects, [active(strength) for _ in subjects], seed=seed, bar=no_bar(), say=lambda text: None
    )
    return found


def prompts(corpus: Corpus) -> set[tuple[int, ...]]:
    parts = (corpus.scope, corpus.retain, corpus.held_scope, corpus.held_retain)
    return {one.prompt for part in parts for one in part}


def test_nothing_of_a_test_split_is_among_it_also_where_a_conversation_stands_in_two_splits() -> None:
    subject = SUBJECT
    assert subject.test is not None
    # The same words in a test pair and in a train pair of another scenario; and in a train scenario.
    twin = replace(subject.train.ordinary[0], scenario="elsewhere", positive="something else", id="twin")
    also = ContrastPair(
        (Message("user", subject.scenarios[0]),), "yes it is", "no it is not", scenario="third", id="third"
    )
    subject = replace(subject, test=PairSet((*subject.test, twin, also)))
    corpus = gather(subject)
    assert subject.test is not None
    unseen = {tiny().render(pair.messages) for pair in subject.test} | {tiny().render(one) for one in subject.prompts}
    assert len(unseen) > 10
    assert not unseen & prompts(corpus)


def test_what_is_held_out_is_some_of_every_kind() -> None:
    whole = gather(SUBJECT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "_HELD", 4)
        patch.setattr(gathering, "_HELD_RETAIN", 10)
        some = gather(SUBJECT)
    assert (some.scope, some.retain) == (whole.scope, whole.retain)
    assert set(some.held_scope) < set(whole.held_scope)
    assert not set(some.held_retain) & set(some.retain)
    assert len(some.held_retain) == 10 < len(whole.held_retain) == 32
    assert {bool(text.prompt) for text in some.held_retain} == {True, False}


def test_train_is_learned_from_and_calibration_held_out() -> None:
    corpus = gather(SUBJECT)
    for pairs, scope, retain in (
        (SUBJECT.train, corpus.scope, corpus.retain),
        (SUBJECT.calibration, corpus.held_scope, corpus.held_retain),
    ):
        for pair in pairs:
            both = set(tiny().encode_pair(pair))
            assert pairs is SUBJECT.calibration or both <= set(retain if pair.boundary else scope)
            assert not both & set(scope if pair.boundary else retain)
    told = {tiny().render(one): split_of(one) for one in SUBJECT.scenarios}
    assert {told.get(one.prompt, "train") for one in corpus.scope} == {"train"}
    assert {told.get(one.prompt, "calibration") for one in corpus.held_scope} == {"calibration"}
    assert not set(corpus.retain) & set(corpus.held_retain)
    boundary = {side for pair in SUBJECT.train if pair.boundary for side in tiny().encode_pair(pair)}
    told_once = Counter(one for one in corpus.retain if one not in boundary)
    assert {(bool(one.prompt), times) for one, times in told_once.items()} == {(False, 1), (True, 2)}
    # Raw text and chat turns.
    assert {bool(one.prompt) for one in corpus.retain} == {True, False}


def test_several_behaviors_are_sampled_under_all_of_them_together() -> None:
    both, one, other = gather(SUBJECT, OTHER), gather(SUBJECT), gather(OTHER)
    assert {pair for pair in one.scope if pair in both.scope} >= {
        side for pair in SUBJECT.train.ordinary for side in tiny().encode_pair(pair)
    }
    assert {side for pair in OTHER.train.ordinary for side in tiny().encode_pair(pair)} <= set(both.scope)
    assert set(both.retain) == set(one.retain) | set(other.retain)


def test_what_was_sampled_is_kept_for_the_same_teacher_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(*arguments: object, **options: object) -> object:
        calls.append(1)
        return sample_trajectories(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(gathering, "sample_trajectories", count)
    first = gather(SUBJECT)
    assert len(calls) == 3 + 2
    assert gather(SUBJECT) == first
    assert len(calls) == 5
    for changes in ({"strength": 2.0}, {"seed": 1}):
        calls.clear()
        assert gather(SUBJECT, **changes) != first
        assert len(calls) == 5


def test_an_interrupted_run_goes_on_and_ends_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gather(SUBJECT, seed=3)
    calls: list[int] = []

    def stop(*arguments: object, **options: object) -> object:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return sample_trajectories(*arguments, **options)  # type: ignore[arg-type]

    def count(*arguments: object, **options: object) -> object:
        calls.append(1)
        return sample_trajectories(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(gathering, "__version__", "another")
    monkeypatch.setattr(gathering, "sample_trajectories", stop)
    with pytest.raises(KeyboardInterrupt):
        gather(SUBJECT, seed=3)
    monkeypatch.setattr(gathering, "sample_trajectories", count)
    assert gather(SUBJECT, seed=3) == whole
    assert len(calls) == 5


def test_a_limit_leaves_out_by_hash_and_not_by_place() -> None:
    turned = replace(SUBJECT, scenarios=SUBJECT.scenarios[::-1], train=PairSet(SUBJECT.train.pairs[::-1]))
    assert {one.prompt for one in gather(turned).scope} == {one.prompt for one in gather(SUBJECT).scope}
