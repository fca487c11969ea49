"""What compilers learn from."""

import json
from dataclasses import fields, replace
from pathlib import Path

from engrain.core.compile.corpus import RETAIN, Corpus
from engrain.core.neutral import SHIPPED, read_neutral
from engrain.core.packing import Encoded
from tiny import tiny

ONE = (Encoded((1, 2), (3,)),)
OTHER = (Encoded((1,), (2, 3)),)


def words(path: Path) -> list[str]:
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [" ".join((one.get("text") or one["messages"][-1]["content"]).split()) for one in lines]


def test_the_digest_knows_every_token_of_every_part() -> None:
    corpus = Corpus(ONE, ONE, ONE, ONE)
    changed = {replace(corpus, **{part.name: OTHER}).digest for part in fields(Corpus)}
    assert len({corpus.digest, *changed}) == 5
    assert corpus.digest == Corpus(ONE, ONE, ONE, ONE).digest


def test_retained_texts_are_read_and_are_none_of_those_that_verdicts_are_on() -> None:
    kept = words(RETAIN)
    assert len(read_neutral(tiny(), RETAIN)) == len(kept) == 352
    assert len(set(kept)) == len(kept)
    assert not set(kept) & set(words(SHIPPED))
