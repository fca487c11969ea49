"""Packs: a token tree holds every sequence whole, and each token sees its own past alone."""

from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engrain.core.packing import Encoded, Pack, pack_rows, pack_trees, shared_start

TOKENS = st.lists(st.integers(0, 3), max_size=6).map(tuple)
SEQUENCES = st.lists(st.builds(Encoded, TOKENS.map(lambda tokens: (9, *tokens)), TOKENS), min_size=1, max_size=12)
Packer = Callable[[Sequence[Encoded], int], Iterator[Pack]]


def trees(sequences: Sequence[Encoded], tokens: int) -> Iterator[Pack]:
    return pack_trees(sequences, shared_start(sequences), tokens)


@pytest.mark.parametrize("packer", [trees, pack_rows])
@given(sequences=SEQUENCES, tokens=st.integers(1, 40))
def test_every_sequence_stands_whole_in_exactly_one_pack(packer: Packer, sequences: list[Encoded], tokens: int) -> None:
    start = shared_start(sequences) if packer is trees else 0
    seen: list[int] = []
    for pack in packer(sequences, tokens):
        flat, index, generated = (each.reshape(-1) for each in (pack.tokens, pack.index, pack.generated))
        for place, member in enumerate(pack.members):
            whole = sequences[member].prompt + sequences[member].reply
            path = pack.paths[place]
            assert tuple(flat[path].tolist()) == whole[start:]
            assert index[path].tolist() == list(range(start, len(whole)))
            assert pack.prompt_lengths[place] == len(sequences[member].prompt) - start
            assert generated[path].tolist() == [i >= len(sequences[member].prompt) for i in range(start, len(whole))]
            assert tuple(flat[pack.reply(place)].tolist()) == sequences[member].reply
        seen += pack.members
    assert sorted(seen) == list(range(len(sequences)))


@given(sequences=SEQUENCES, tokens=st.integers(1, 40))
def test_a_token_of_a_tree_sees_exactly_its_own_past(sequences: list[Encoded], tokens: int) -> None:
    for pack in trees(sequences, tokens):
        assert pack.visible is not None
        for path in pack.paths:
            for depth, node in enumerate(path.tolist()):
                assert pack.visible[node].nonzero()[:, 0].tolist() == path[: depth + 1].tolist()


@given(sequences=SEQUENCES)
def test_no_two_tokens_of_a_tree_stand_for_the_same_past(sequences: list[Encoded]) -> None:
    for pack in trees(sequences, 10_000):
        pasts = set()
        for place, member in enumerate(pack.members):
            whole, prompt = sequences[member].prompt + sequences[member].reply, len(sequences[member].prompt)
            pasts |= {
                (whole[: end + 1], min(prompt, end + 1))
                for end in range(len(whole) - len(pack.paths[place]), len(whole))
            }
        assert len(pasts) >= pack.tokens.shape[1]


@given(sequences=SEQUENCES, tokens=st.integers(1, 40))
def test_a_pack_is_larger_than_allowed_only_when_one_sequence_is(sequences: list[Encoded], tokens: int) -> None:
    for pack in [*trees(sequences, tokens), *pack_rows(sequences, tokens)]:
        assert pack.tokens.numel() <= tokens or len(pack.members) == 1


@given(sequences=SEQUENCES)
def test_the_shared_start_is_shared_and_leaves_each_prompt_a_token(sequences: list[Encoded]) -> None:
    start = shared_start(sequences)
    assert len({sequence.prompt[:start] for sequence in sequences}) == 1
    assert all(len(sequence.prompt) > start for sequence in sequences)


def test_a_group_stays_together() -> None:
    sequences = [Encoded((9, i // 2), (i, i)) for i in range(10)]
    for packer in (pack_trees(sequences, 1, 6, group=2), pack_rows(sequences, 6, group=2)):
        for pack in packer:
            assert {member // 2 for member in pack.members if member % 2 == 0} == {
                m // 2 for m in pack.members if m % 2
            }


def test_a_reply_and_a_prompt_that_look_alike_are_kept_apart() -> None:
    # The first's reply is the second's prompt: steering that acts on replies alone must tell them apart.
    (pack,) = pack_trees([Encoded((1, 2), (3, 4)), Encoded((1, 2, 3, 4), (5,))], 1, 100)
    assert pack.tokens.shape[1] == 1 + 2 + 3
