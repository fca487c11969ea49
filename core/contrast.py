"""Contrast pairs: two replies to the same conversation, one with a behavior and one without."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from engrain.core.errors import DataError, UnknownNameError
from engrain.core.files import read_json_lines

Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "test")

# Upper ends of train and calibration on the unit interval; the rest is test. Boundary scenarios are never extracted
# from, so most of them serve the test.
_ORDINARY = (0.50, 0.70)
_BOUNDARY = (0.25, 0.40)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class ContrastPair:
    """Two replies to one conversation.

    Attributes:
        messages: the conversation up to the reply, the last turn being the user's.
        positive: the reply with the behavior.
        negative: the reply without it.
        negative_messages: the conversation of the negative reply where it differs (instruction contrast), else None.
        id: a name for messages to people; may be empty.
        scenario: pairs of one scenario never stand on both sides of a split.
        domain: what the conversation is about; may be empty.
        boundary: the naive version of the behavior would be wrong here; scored apart and never extracted from.
        extra: keys of the line that engrain does not know, kept.
    """

    messages: tuple[Message, ...]
    positive: str
    negative: str
    negative_messages: tuple[Message, ...] | None = None
    id: str = ""
    scenario: str = ""
    domain: str = ""
    boundary: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the pair as an object of a pairs file; ``PairSet.parse`` of it is this pair."""
        line: dict[str, Any] = {"messages": _dump(self.messages)}
        if self.negative_messages is not None:
            line["negative_messages"] = _dump(self.negative_messages)
        line |= {"positive": self.positive, "negative": self.negative}
        line |= {key: value for key in ("id", "scenario", "domain") if (value := getattr(self, key))}
        if self.boundary:
            line["boundary"] = True
        return line | dict(self.extra)


@dataclass(frozen=True)
class PairSet(Sequence[ContrastPair]):
    """An ordered set of contrast pairs.

    Attributes:
        pairs: the pairs, in the order of the file.
        source: where they come from, for messages to people.
    """

    pairs: tuple[ContrastPair, ...]
    source: str = "pairs"

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a pairs file (JSON lines, UTF-8).

        Raises:
            DataError: a bad line (file, line number and what is wrong), or no pair at all.
        """
        path = Path(path)
        pairs: list[ContrastPair] = []
        first_line: dict[str, int] = {}
        for number, line in read_json_lines(path):
            pair = parse_pair(line, path, number)
            if pair.id and first_line.setdefault(pair.id, number) != number:
                raise DataError(path, number, f"the id '{pair.id}' stands already in line {first_line[pair.id]}.")
            pairs.append(pair)
        if not pairs:
            raise DataError(path, None, 'holds no pairs; a line is {"prompt": ..., "positive": ..., "negative": ...}.')
        return cls(tuple(pairs), str(path))

    @property
    def ordinary(self) -> Self:
        """The pairs that are not boundary pairs."""
        return self._only(lambda pair: not pair.boundary)

    @property
    def boundary(self) -> Self:
        """The boundary pairs."""
        return self._only(lambda pair: pair.boundary)

    def split(self, name: str) -> Self:
        """Return one of the three splits: train, calibration or test.

        A scenario's place is decided by the hash of its name alone, so it stays where it is when pairs are added.

        Raises:
            UnknownNameError: no such split.
        """
        if name not in SPLITS:
            raise UnknownNameError("split", name, SPLITS)
        ordinary = {pair.scenario for pair in self.pairs if not pair.boundary}
        return self._only(lambda pair: split_of(pair.scenario, boundary=pair.scenario not in ordinary) == name)

    @property
    def digest(self) -> str:
        """sha256 of the pairs' content, independent of formatting and of the file's name."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(json.dumps(pair.to_json(), sort_keys=True, ensure_ascii=False).encode() + b"\n")
        return f"sha256:{digest.hexdigest()}"

    def to_json_lines(self) -> bytes:
        """Return the set as a pairs file."""
        return b"".join(json.dumps(pair.to_json(), ensure_ascii=False).encode() + b"\n" for pair in self.pairs)

    def _only(self, keep: Callable[[ContrastPair], bool]) -> Self:
        return type(self)(tuple(pair for pair in self.pairs if keep(pair)), self.source)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[ContrastPair]:
        return iter(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        return self.pairs[index]


def split_of(scenario: str, *, boundary: bool = False) -> Split:
    """Return the split that a scenario belongs to, by the hash of its name."""
    digest = hashlib.sha256(f"engrain split 1\n{scenario}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    train, calibration = _BOUNDARY if boundary else _ORDINARY
    return "train" if place < train else "calibration" if place < calibration else "test"


_TEXT_KEYS = (
    "prompt",
    "positive",
    "negative",
    "id",
    "system",
    "domain",
    "scenario",
    "negative_prompt",
    "negative_system",
)
_ROLES = ("system", "user", "assistant")
_TURN_KEYS = ("messages", "history", "negative_history", "negative_messages")


def parse_pair(line: Mapping[str, Any], path: object, number: int | None) -> ContrastPair:
    """Return the pair in one object of a pairs file.

    Raises:
        DataError: a key is missing, empty or of the wrong type, or the two replies are the same.
    """

    def wrong(problem: str) -> DataError:
        return DataError(path, number, problem)

    line = _from_evals(line)
    for key in _TEXT_KEYS:
        if key in line and not isinstance(line[key], str):
            raise wrong(f"'{key}' must be text, this is {type(line[key]).__name__}.")
    for key in ("positive", "negative"):
        if not line.get(key, "").strip():
            raise wrong(f"'{key}' is missing or empty; a pair needs both replies.")
    if line["positive"].strip() == line["negative"].strip():
        raise wrong("'positive' equals 'negative'; the pair shows no contrast.")
    if not isinstance(line.get("boundary", False), bool):
        raise wrong("'boundary' must be true or false.")
    turns = {key: _parse_turns(line[key], key, path, number) for key in _TURN_KEYS if key in line}
    if "messages" in line:
        clash = [key for key in ("prompt", "system", "history") if key in line]
        if clash:
            raise wrong(f"'messages' stands for the whole conversation; take out '{clash[0]}' or 'messages'.")
        messages = turns["messages"]
        if not messages:
            raise wrong("'messages' is empty; the last one must be the user's.")
    elif line.get("prompt", "").strip():
        messages = _conversation(line.get("system"), turns.get("history", ()), line["prompt"])
    else:
        raise wrong("'prompt' is missing or empty; give 'prompt' or 'messages'.")
    negative = turns.get("negative_messages")
    if negative is None and any(key in line for key in ("negative_prompt", "negative_system", "negative_history")):
        if "messages" in line:
            raise wrong("'messages' goes with 'negative_messages', not with 'negative_prompt' and its like.")
        negative = _conversation(
            line.get("negative_system", line.get("system")),
            turns.get("negative_history", turns.get("history", ())),
            line.get("negative_prompt", line["prompt"]),
        )
    for conversation in (messages, negative or messages):
        if conversation[-1].role != "user":
            raise wrong(f"the last message before the reply must be the user's, this is '{conversation[-1].role}'.")
    known = {*_TEXT_KEYS, *_TURN_KEYS, "boundary"}
    return ContrastPair(
        messages=messages,
        positive=line["positive"],
        negative=line["negative"],
        negative_messages=None if negative == messages else negative,
        id=line.get("id", ""),
        # A pair without a scenario is its own: named by its words, so that it keeps its split in any file.
        scenario=line.get("scenario") or _own_scenario(messages, line),
        domain=line.get("domain", ""),
        boundary=line.get("boundary", False),
        extra={key: value for key, value in line.items() if key not in known},
    )


# The keys of Anthropic's evals (Perez et al., arXiv 2212.09251), whose replies are the letters of two choices.
_EVALS = {"question": "prompt", "answer_matching_behavior": "positive", "answer_not_matching_behavior": "negative"}


def _from_evals(line: Mapping[str, Any]) -> Mapping[str, Any]:
    if not _EVALS.keys() <= line.keys() or line.keys() & set(_EVALS.values()):
        return line
    return {_EVALS.get(key, key): value for key, value in line.items()}


def _conversation(system: str | None, history: Sequence[Message], prompt: str) -> tuple[Message, ...]:
    start = (Message("system", system),) if system else ()
    return (*start, *history, Message("user", prompt))


def _own_scenario(messages: Sequence[Message], line: Mapping[str, Any]) -> str:
    words = "\n".join([*(message.content for message in messages), line["positive"], line["negative"]])
    return f"pair-{hashlib.sha256(words.encode()).hexdigest()[:16]}"


def _parse_turns(value: Any, key: str, path: object, number: int | None) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise DataError(path, number, f"'{key}' must be a list of messages.")
    return tuple(parse_message(turn, path, number, f"a message in '{key}'") for turn in value)


def parse_message(turn: object, path: object, number: int | None, what: str = "a message") -> Message:
    """Return the message in one object of a file of ours.

    Args:
        turn: the object.
        path: the file, for errors.
        number: the line in it, or None.
        what: how an error calls the message.

    Raises:
        DataError: it is not ``{"role": system, user or assistant, "content": text}``.
    """
    if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
        raise DataError(path, number, f'{what} is not {{"role": text, "content": text}}.')
    if turn["role"] not in _ROLES:
        raise DataError(
            path, number, f"{what} has the role {turn['role'][:60]!r}; there is system, user and assistant."
        )
    return Message(turn["role"], turn["content"])


def _dump(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def screen(pairs: PairSet) -> list[str]:
    """Return what a careful reader would object to in the pairs, one sentence each; an empty list is the best result.

    Looked for: the same reply several times, replies whose lengths differ by more than a half, one side longer
    throughout, several scenarios that share a prompt (they could stand on both sides of a split).
    """
    remarks: list[str] = []
    for side in ("positive", "negative"):
        repeated = [text for text, count in Counter(getattr(pair, side) for pair in pairs).items() if count > 1]
        if repeated:
            remarks.append(f"{len(repeated)} {side} replies stand more than once, the first: {repeated[0][:60]!r}.")
    ratios = [len(pair.positive) / len(pair.negative) for pair in pairs]
    uneven = sum(not 1 / 1.5 <= ratio <= 1.5 for ratio in ratios)
    if uneven:
        remarks.append(f"{uneven} of {len(pairs)} pairs differ in length by more than a half: length may be learned.")
    longer = sum(ratio > 1 for ratio in ratios) / max(len(ratios), 1)
    if len(pairs) >= 20 and not 0.2 <= longer <= 0.8:
        remarks.append(f"the positive reply is the longer one in {longer:.0%} of the pairs: length may be learned.")
    places: dict[tuple[Message, ...], set[str]] = {}
    for pair in pairs:
        places.setdefault(pair.messages, set()).add(pair.scenario)
    shared = [messages for messages, scenarios in places.items() if len(scenarios) > 1]
    if shared:
        remarks.append(
            f"{len(shared)} conversations stand in several scenarios, so both sides of a split may hold one; "
            f"the first: {shared[0][-1].content[:60]!r}."
        )
    return remarks
