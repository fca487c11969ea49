"""The laws of the data, and that engrain finds the behavior when the package is installed."""

from engrain_plain_words import BEHAVIOR

from engrain.plugins import SPLITS, build_manager


def test_engrain_finds_the_behavior() -> None:
    assert build_manager().behavior("plain_words") == BEHAVIOR


def test_every_pair_is_read_and_each_split_holds_some() -> None:
    pairs = BEHAVIOR.pairs()
    assert len({pair.id for pair in pairs}) == len(pairs)
    for split in SPLITS:
        assert len(pairs.split(split).ordinary) > 0, split


def test_the_two_replies_are_matched_in_length() -> None:
    for pair in BEHAVIOR.pairs().ordinary:
        assert 1 / 1.5 <= len(pair.positive) / len(pair.negative) <= 1.5, pair.id


def test_scenarios_are_disjoint_from_the_pairs() -> None:
    prompts = {pair.messages[-1].content for pair in BEHAVIOR.pairs()}
    assert not prompts & {scenario.prompt for scenario in BEHAVIOR.scenarios()}
