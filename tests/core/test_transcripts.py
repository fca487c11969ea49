"""Proposals from transcripts: the corrected reply against the accepted one, and nothing else."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engrain.core.contrast import Message, parse_pair
from engrain.core.errors import DataError
from engrain.core.transcripts import propose, read_conversations


def talk(*turns: str) -> list[Message]:
    return [Message("assistant" if place % 2 else "user", text) for place, text in enumerate(turns)]


def test_a_corrected_reply_and_the_accepted_one_are_a_pair() -> None:
    (found,) = propose(
        talk("Sort by date.", "Sorted by name.", "No, I said by date.", "Sorted by date.", "Thanks!"), "a"
    )
    assert (found.pair.negative, found.pair.positive) == ("Sorted by name.", "Sorted by date.")
    assert found.pair.messages == (Message("user", "Sort by date."),)
    assert (found.correction, found.acceptance) == ("No, I said by date.", "Thanks!")


def test_after_several_corrections_the_last_reply_is_the_accepted_one() -> None:
    turns = ["Go.", "One.", "No.", "Two.", "That's not it.", "Three.", "Perfect."]
    (found,) = propose(talk(*turns))
    assert (found.pair.negative, found.pair.positive) == ("One.", "Three.")


def test_the_history_before_the_request_is_kept() -> None:
    (found,) = propose(
        talk("Hi.", "Hello.", "Sort.", "By name?", "I meant by date.", "By date.", "Next: print it.", "Ok.")
    )
    assert [message.content for message in found.pair.messages] == ["Hi.", "Hello.", "Sort."]
    assert found.acceptance == ""


@pytest.mark.parametrize(
    "turns",
    [
        ["Go.", "One.", "Thanks.", "Welcome."],
        ["Go.", "One.", "No."],
        ["Go.", "One.", "No.", "Two.", "Still wrong", "Three.", "No!"],
        ["Go.", "One.", "No.", "One."],
        ["Go.", "One.", "Note that I like tea.", "Two.", "Thanks"],
        [],
        ["Go."],
    ],
)
def test_what_was_not_corrected_or_not_accepted_proposes_nothing(turns: list[str]) -> None:
    assert [found.pair.positive for found in propose(talk(*turns))] in ([], ["Two."])
    if "Still wrong" not in turns:
        assert list(propose(talk(*turns))) == []


def test_both_shapes_of_a_file_are_read_and_proposals_are_pairs(tmp_path: Path) -> None:
    turns = [{"role": m.role, "content": m.content} for m in talk("Sort.", "No.", "Stop, sort it.", "Sorted.", "Yes.")]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, turns)))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jsonl").write_text(
        json.dumps({"messages": turns}) + "\n" + json.dumps({"conversation": turns})
    )
    found = [one for file, conversation in read_conversations(tmp_path) for one in propose(conversation, file)]
    assert [one.file for one in found] == ["b.jsonl", "sub/a.jsonl", "sub/a.jsonl"]
    for one in found:
        line = one.to_json()
        assert parse_pair(line, "here", 1).extra["review"] == line["review"]


@pytest.mark.parametrize(
    "line", ['{"role": "user"}', '{"role": "tool", "content": "x"}', '{"messages": 3}', '{"messages": [3]}', "{"]
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"role": "user", "content": "x"}\n' + line)
    with pytest.raises(DataError, match=r"a\.jsonl, line 2"):
        list(read_conversations(tmp_path))


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside.jsonl").write_text('{"role": "user", "content": "secret"}')
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    with pytest.raises(DataError, match="holds no"):
        list(read_conversations(tmp_path / "in"))
    with pytest.raises(DataError, match="is not a folder"):
        list(read_conversations(tmp_path / "none"))


@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=6) | st.just("no")), max_size=12
    )
)
def test_every_proposal_is_a_sound_pair_of_the_conversation(turns: list[tuple[str, str]]) -> None:
    conversation = [Message(*turn) for turn in turns]
    for found in propose(conversation):
        pair = found.pair
        assert pair.positive != pair.negative
        assert tuple(conversation[: len(pair.messages)]) == pair.messages
        assert conversation[len(pair.messages)].content == pair.negative
        assert Message("assistant", pair.positive) in conversation[len(pair.messages) + 1 :]
