"""What a request is steered by, as it crosses a process border and stands in the hash of a cached block."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from combinations import LAYERS, active, combination
from engrain.core.composition import compose
from engrain.plugins.vllm.combination import Combination, block_keys


def test_what_crosses_a_process_border_acts_as_what_was_sent() -> None:
    sent = combination(
        active(1, 2.0), active(2, -1.0, "generated", "ablate"), active(3, 0.5, "from:3", "clamp", keep=True)
    )
    came = Combination.from_wire(sent.wire)
    assert came.digest == sent.digest
    for layer in LAYERS:
        one, other = compose([list(sent.actives.values())], layer), compose([list(came.actives.values())], layer)
        assert repr(one) == repr(other)


def test_the_wire_is_plain_data() -> None:
    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(item) for key, item in value.items())
        return (
            all(map(plain, value)) if isinstance(value, list) else isinstance(value, str | int | float | bool | bytes)
        )

    assert plain(combination(active(1), active(2)).wire)


def test_the_digest_is_of_what_acts_and_not_of_order_or_names() -> None:
    one = Combination.of({"a": active(1), "b": active(2, 3.0)})
    other = Combination.of({"b": active(1), "x": active(2, 3.0), "off": active(4, 0.0)})
    assert one is not None
    assert other is not None
    assert one.digest == other.digest


@pytest.mark.parametrize(
    "other",
    [
        active(2),
        active(1, 1.0000001),
        active(1, positions="prompt"),
        active(1, operation="ablate"),
        active(1, keep=True),
    ],
)
def test_the_digest_differs_with_whatever_changes_the_result(other: object) -> None:
    assert combination(active(1)).digest != combination(other).digest  # type: ignore[arg-type]


def test_nothing_that_acts_is_no_combination() -> None:
    assert Combination.of({"a": active(1, 0.0)}) is None


def test_a_generation_only_combination_shares_the_blocks_of_its_prompt() -> None:
    wire = combination(active(1, positions="generated")).wire
    assert block_keys(wire, 0, 16, prompt=32) == block_keys(wire, 16, 32, prompt=32) == []
    assert block_keys(wire, 32, 48, prompt=32) != []
    # The block in which the prompt ends holds generated tokens.
    assert block_keys(wire, 32, 48, prompt=40) != []


kinds = st.lists(st.sampled_from(["all", "prompt", "generated", "from:0", "from:5", "from:16", "from:40"]), min_size=1)


@given(kinds, st.integers(1, 60), st.integers(1, 60), st.integers(0, 3))
def test_blocks_with_equal_keys_are_steered_alike(kinds: list[str], one: int, other: int, block: int) -> None:
    # The oracle: which terms act on each token up to the block's end, for two requests with the same tokens whose
    # prompts end in different places.
    wire = combination(*(active(seed, positions=kind) for seed, kind in enumerate(kinds))).wire
    size = 16

    def acting(prompt: int) -> list[list[bool]]:
        def acts(kind: str, token: int) -> bool:
            if kind in ("prompt", "generated"):
                return (token < prompt) == (kind == "prompt")
            return kind == "all" or token >= int(kind.removeprefix("from:"))

        return [[acts(kind, token) for kind in kinds] for token in range((block + 1) * size)]

    def hashed(prompt: int) -> str:
        return json.dumps([block_keys(wire, b * size, (b + 1) * size, prompt) for b in range(block + 1)])

    if hashed(one) == hashed(other):
        assert acting(one) == acting(other)
    # An unsteered request has no keys at all.
    if hashed(one) == json.dumps([[]] * (block + 1)):
        assert not any(any(terms) for terms in acting(one))
