"""Pairs: read what is right, refuse what is not by file and line, and keep every scenario on one side of a split."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engrain.core.contrast import SPLITS, Message, PairSet, parse_pair, screen, split_of
from engrain.core.errors import DataError, UnknownNameError

GOOD = {"prompt": "Tea or coffee?", "positive": "Tea.", "negative": "It depends on many things."}


def read(tmp_path: Path, *lines: str | dict[str, Any]) -> PairSet:
    path = tmp_path / "pairs.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text, encoding="utf-8")
    return PairSet.read(path)


def test_a_prompt_stands_for_system_history_and_the_users_turn(tmp_path: Path) -> None:
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (pair,) = read(tmp_path, GOOD | {"system": "Be brief.", "history": history})
    assert [message.role for message in pair.messages] == ["system", "user", "assistant", "user"]
    assert pair.messages[-1] == Message("user", "Tea or coffee?")
    assert pair.negative_messages is None


def test_negative_keys_default_to_the_positives(tmp_path: Path) -> None:
    (pair,) = read(tmp_path, GOOD | {"system": "Be brief.", "negative_system": "Be long."})
    assert pair.negative_messages == (Message("system", "Be long."), Message("user", "Tea or coffee?"))


def test_negative_keys_that_change_nothing_count_as_absent(tmp_path: Path) -> None:
    (pair,) = read(tmp_path, GOOD | {"negative_prompt": GOOD["prompt"]})
    assert pair.negative_messages is None


def test_unknown_keys_are_kept(tmp_path: Path) -> None:
    (pair,) = read(tmp_path, GOOD | {"mode": "deciding", "weight": 3})
    assert pair.extra == {"mode": "deciding", "weight": 3}
    assert pair.to_json()["mode"] == "deciding"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "a JSON object is needed"),
        ('{"prompt": NaN}', "NaN is not JSON"),
        ('{"prompt": "a", "positive": "\\ud800", "negative": "b"}', "surrogate"),
        ("[" * 100_000, "nested too deeply"),
        ({"prompt": "a", "positive": "b"}, "'negative' is missing"),
        ({"prompt": "", "positive": "b", "negative": "c"}, "'prompt' is missing"),
        ({"prompt": "a", "positive": "b", "negative": " b "}, "equals 'negative'"),
        ({"prompt": 1, "positive": "b", "negative": "c"}, "'prompt' must be text"),
        (GOOD | {"boundary": "yes"}, "true or false"),
        (GOOD | {"history": "hi"}, "list of messages"),
        (GOOD | {"history": [{"role": "tool", "content": "x"}]}, "role 'tool'"),
        (GOOD | {"messages": [{"role": "user", "content": "x"}]}, "take out 'prompt'"),
        (
            {"messages": [{"role": "assistant", "content": "x"}], "positive": "b", "negative": "c"},
            "must be the user's",
        ),
        ({"messages": [], "positive": "b", "negative": "c"}, "'messages' is empty"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, line: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, GOOD, "", line)
    assert caught.value.line == 3
    assert caught.value.path.endswith("pairs.jsonl")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pairs"):
        read(tmp_path, "", "  ")


def test_an_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stands already in line 1"):
        read(tmp_path, GOOD | {"id": "a"}, GOOD | {"id": "a", "prompt": "else?"})


def test_bytes_that_are_not_utf8_are_refused_by_place(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(DataError, match="not UTF-8 at byte 15"):
        PairSet.read(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        PairSet.read(tmp_path / "none.jsonl")


@given(st.binary(max_size=300))
def test_whatever_the_bytes_reading_gives_pairs_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "pairs.jsonl"
    path.write_bytes(data)
    said = ""
    try:
        assert len(PairSet.read(path)) > 0
    except DataError as error:
        said = str(error)
    assert "\n" not in said


_TEXT = st.text(min_size=1, max_size=8)
_JSON: Any = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(
    [
        "prompt",
        "positive",
        "negative",
        "messages",
        "history",
        "system",
        "boundary",
        "scenario",
        "negative_history",
        "id",
    ]
)


@given(st.dictionaries(_KEYS, _JSON, max_size=8))
def test_whatever_the_object_parsing_gives_a_pair_or_a_data_error(line: dict[str, Any]) -> None:
    try:
        pair = parse_pair(line, "fuzz", 1)
    except DataError:
        return
    assert pair.messages[-1].role == "user"
    assert pair.positive.strip() != pair.negative.strip()


@given(_TEXT.filter(str.strip), _TEXT.filter(str.strip), _TEXT.filter(str.strip), st.booleans(), st.none() | _TEXT)
def test_writing_and_reading_a_pair_is_identity(
    prompt: str, positive: str, negative: str, boundary: bool, system: str | None
) -> None:
    line: dict[str, Any] = {"prompt": prompt, "positive": positive, "negative": negative, "boundary": boundary}
    if system is not None:
        line["negative_system"] = system
    if positive.strip() == negative.strip():
        return
    pair = parse_pair(line, "here", 1)
    assert parse_pair(pair.to_json(), "here", 1) == pair


def test_a_scenario_stands_on_one_side_of_the_split_alone(tmp_path: Path) -> None:
    pairs = read(tmp_path, *(GOOD | {"prompt": f"{i}?", "scenario": f"s{i // 2}"} for i in range(200)))
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        for pair in pairs.split(split):
            seen.setdefault(pair.scenario, set()).add(split)
    assert len(seen) == 100
    assert all(len(splits) == 1 for splits in seen.values())
    assert sum(len(pairs.split(split)) for split in SPLITS) == 200


def test_adding_pairs_moves_none_to_another_split(tmp_path: Path) -> None:
    lines = [GOOD | {"prompt": f"{i}?"} for i in range(60)]
    few, many = read(tmp_path, *lines[:30]), read(tmp_path, *lines)
    for split in SPLITS:
        kept = {pair.messages for pair in many.split(split)} & {pair.messages for pair in few}
        assert kept == {pair.messages for pair in few.split(split)}


def test_a_pair_without_a_scenario_is_its_own(tmp_path: Path) -> None:
    pairs = read(tmp_path, GOOD, GOOD | {"prompt": "Milk?"})
    assert len({pair.scenario for pair in pairs}) == 2


def test_splits_hold_about_their_share() -> None:
    found = [split_of(f"scenario {i}") for i in range(4000)]
    assert 0.47 < found.count("train") / 4000 < 0.53
    assert 0.17 < found.count("calibration") / 4000 < 0.23


def test_an_unknown_split_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'train'"):
        read(tmp_path, GOOD).split("trian")


def test_the_digest_is_of_the_content_not_of_its_formatting(tmp_path: Path) -> None:
    one = read(tmp_path, json.dumps(GOOD, indent=None)).digest
    assert read(tmp_path, json.dumps(dict(reversed(GOOD.items())), separators=(",", ":"))).digest == one
    assert read(tmp_path, GOOD | {"positive": "Tea!"}).digest != one


def test_screening_finds_length_as_a_cue_and_shared_prompts(tmp_path: Path) -> None:
    long = [{"prompt": f"{i}?", "positive": "yes " * (9 + i), "negative": f"no {i}"} for i in range(20)]
    remarks = " ".join(screen(read(tmp_path, *long)))
    assert "length may be learned" in remarks
    twice = [GOOD | {"scenario": "a"}, GOOD | {"scenario": "b", "positive": "Tea, I'd say."}]
    assert "several scenarios" in " ".join(screen(read(tmp_path, *twice)))
    assert screen(read(tmp_path, {"prompt": "x?", "positive": "one two", "negative": "two one"})) == []


def test_lines_of_anthropics_evals_are_pairs(tmp_path: Path) -> None:
    line = {
        "question": "Is it so?\n\nChoices:\n (A) Yes\n (B) No",
        "answer_matching_behavior": " (A)",
        "answer_not_matching_behavior": " (B)",
    }
    path = tmp_path / "evals.jsonl"
    path.write_text(json.dumps(line) + "\n")
    pair = PairSet.read(path)[0]
    assert (pair.messages[-1].content, pair.positive, pair.negative) == (line["question"], " (A)", " (B)")
    path.write_text(json.dumps(line | {"answer_not_matching_behavior": " (A)"}) + "\n")
    with pytest.raises(DataError, match="no contrast"):
        PairSet.read(path)
