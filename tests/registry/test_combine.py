"""Arithmetic on published task vectors: against a literal sum, with lineage, and what is refused."""

import json
import os
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engrain.cli.main import main
from engrain.core.errors import EngrainError, FingerprintError, InputError, StrengthError, UnknownNameError, VectorError
from engrain.core.fingerprint import Fingerprint
from engrain.core.task_vector import TaskVector, weighted_sum
from engrain.registry.audit import audit
from engrain.registry.combine import combine, parse_part
from engrain.registry.lineage import Lineage
from engrain.registry.store import Parent, Store
from engrain.registry.task_vectors import publish_task_vector, read_task_vector
from engrain.registry.vectors import parse_steering

PRINT = Fingerprint("here", "Tiny", "sha256:a", "sha256:b", "sha256:c", "sha256:d", "float32")
DOWN, UP, HEAD = "model.layers.2.mlp.down_proj.weight", "model.layers.5.mlp.up_proj.weight", "lm_head.weight"


def make(name: str, seed: int, *tensors: str, base: Fingerprint = PRINT) -> TaskVector:
    generator = torch.Generator().manual_seed(seed)
    return TaskVector(name, {one: torch.randn(4, 6, generator=generator) for one in tensors}, base)


LISTENING, CALM = make("listening", 1, DOWN, UP), make("not_rushing", 2, DOWN, HEAD)


@pytest.fixture
def store() -> Store:
    made = Store()
    publish_task_vector(made, "listening", LISTENING)
    publish_task_vector(made, "not_rushing", CALM)
    return made


def literal(name: str, *parts: tuple[TaskVector, float]) -> Tensor:
    """Add number by number, in python's floats."""
    rows = [[0.0] * 6 for _ in range(4)]
    for task_vector, scale in parts:
        if name in task_vector.tensors:
            for row, numbers in enumerate(task_vector.tensors[name].tolist()):
                for column, number in enumerate(numbers):
                    rows[row][column] += scale * number
    return torch.tensor(rows, dtype=torch.float64).float()


def test_the_sum_is_that_of_the_scaled_numbers_with_all_parts_as_parents(store: Store) -> None:
    done = combine(store, [("listening@1", 1.0), ("task-vector/not_rushing", 0.8)], "pair")
    assert done.version.reference == "task-vector/pair@1"
    assert done.parts == (("task-vector/listening@1", 1.0), ("task-vector/not_rushing@1", 0.8))
    found = read_task_vector(store, "pair")
    assert found.tensors.keys() == {DOWN, UP, HEAD}
    for name, delta in found.tensors.items():
        assert torch.equal(delta, literal(name, (LISTENING, 1.0), (CALM, 0.8))), name
    digests = {store.resolve(f"task-vector/{name}").digest for name in ("listening", "not_rushing")}
    assert {(one.role, one.digest) for one in done.version.parents} == {("task-vector", one) for one in digests}
    assert {node.references[0] for node in Lineage(store).ancestors(done.version).below} == {
        "task-vector/listening@1",
        "task-vector/not_rushing@1",
    }
    assert done.version.provenance is not None
    said = json.loads(store.read(done.version.provenance))["predicate"]
    assert (said["act"], {one["scale"] for one in said["config"]["parts"]}) == ("combine", {1, 0.8})
    assert set(said["data"].values()) == digests
    assert audit(store).problems == []


def test_the_order_of_the_parts_changes_nothing_to_the_bit(store: Store) -> None:
    publish_task_vector(store, "third", make("third", 3, DOWN, UP))
    parts = [("listening", 0.3), ("not_rushing", -1.7), ("third", 1e-3)]
    one = combine(store, parts, "pair").version
    assert combine(store, parts[::-1], "pair").version == one
    assert combine(store, [parts[1], parts[0], parts[2]], "other").version.number == 1


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=4))
def test_a_sum_is_that_of_its_scales_when_all_parts_are_one(scales: list[float]) -> None:
    total = weighted_sum([(LISTENING, scale) for scale in scales])
    assert torch.allclose(total.tensors[DOWN], (LISTENING * sum(scales)).tensors[DOWN], atol=1e-6)


def test_to_combine_one_is_to_scale_it_and_with_minus_one_to_turn_it_round(store: Store) -> None:
    combine(store, [("listening", -1.0)], "arguing")
    found = read_task_vector(store, "arguing")
    assert all(torch.equal(found.tensors[name], -delta) for name, delta in LISTENING.tensors.items())
    assert combine(store, [("listening", 1.0), ("arguing", 1.0)], "nothing").interference[0].cosines == {
        2: pytest.approx(-1.0),
        5: pytest.approx(-1.0),
    }
    assert read_task_vector(store, "nothing").norm() == 0


def test_interference_is_the_cosine_at_each_block_that_two_parts_both_change(store: Store) -> None:
    publish_task_vector(store, "third", make("third", 3, DOWN, UP))
    done = combine(store, [("listening", 1.0), ("not_rushing", 1.0), ("third", 1.0)], "all")
    found = {(one.first, one.second): one.cosines for one in done.interference}
    assert [sorted(cosines) for cosines in found.values()] == [[2], [2, 5], [2]]
    one, other = (vector.tensors[DOWN].double().flatten() for vector in (LISTENING, CALM))
    expected = float(one @ other / (one.norm() * other.norm()))
    assert found["task-vector/listening@1", "task-vector/not_rushing@1"] == {2: pytest.approx(expected)}


REFUSED: dict[str, tuple[TaskVector, type[EngrainError], str]] = {
    "another base": (
        make("odd", 4, DOWN, base=replace(PRINT, source="there", weights="sha256:x")),
        FingerprintError,
        "were made on different bases, .*: weights differ",
    ),
    "another shape": (
        replace(CALM, name="odd", tensors={DOWN: torch.ones(6, 4)}),
        VectorError,
        rf"change '{DOWN}' with the shapes .*, so they cannot be added",
    ),
}


@pytest.mark.parametrize(("odd", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_added_is_refused_in_one_line_and_nothing_is_published(
    store: Store, odd: TaskVector, error: type[EngrainError], message: str
) -> None:
    publish_task_vector(store, "odd", odd)
    parts = [("listening", 1.0), ("odd", 1.0)]
    for order in (parts, parts[::-1]):
        with pytest.raises(error, match=message) as caught:
            combine(store, order, "pair")
        said = str(caught.value)
        assert ("\n" in said, "task-vector/listening@1" in said, "task-vector/odd@1" in said) == (False, True, True)
    assert "pair" not in store.names("task-vector")


def test_other_kinds_unknown_names_and_odd_scales_are_refused(store: Store) -> None:
    store.publish("vector", "listening", config={}, files={})
    with pytest.raises(InputError, match="is a vector, a task vector is needed"):
        combine(store, [("vector/listening", 1.0)], "pair")
    with pytest.raises(UnknownNameError, match="Did you mean 'listening'"):
        combine(store, [("listning", 1.0)], "pair")
    for scale in (float("nan"), float("inf")):
        with pytest.raises(StrengthError, match="must be a finite number"):
            combine(store, [("listening", scale)], "pair")
    with pytest.raises(VectorError, match="at least one"):
        combine(store, [], "pair")


def test_a_part_is_split_at_the_last_equals_sign() -> None:
    assert parse_part("task-vector/listening@3") == ("task-vector/listening@3", 1.0)
    assert parse_part("listening=-0.5") == ("listening", -0.5)
    assert parse_part("a=b=2") == ("a=b", 2.0)
    for text in ("", "=2", "listening="):
        with pytest.raises(InputError, match=r"is not REF\[=SCALE\]"):
            parse_part(text)


@pytest.mark.parametrize("number", ["much", "nan", "-inf", "1e999"])
def test_a_number_that_is_not_finite_is_refused_where_it_is_read(number: str) -> None:
    for read in (parse_part, parse_steering, partial(parse_steering, factor="scale")):
        with pytest.raises(StrengthError, match=f"of 'listening' is '{number}'; it must be a finite number"):
            read(f"listening={number}")


def test_how_a_task_vector_was_made_stands_beside_it(store: Store) -> None:
    made = replace(LISTENING, origin={"backend": "rank1", "spec": {"ridge": 0.03}})
    version = publish_task_vector(store, "made", made, [Parent("vector", "sha256:" + "1" * 64)])
    said = json.loads(store.read(version.provenance or ""))["predicate"]
    assert (said["act"], said["config"]["origin"]) == ("compile", made.origin)
    assert said["config"]["base"]["weights"] == "sha256:a"
    assert said["data"] == {"vector": "sha256:" + "1" * 64}


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[object, str, str]:
    monkeypatch.setattr(sys, "argv", ["engrain", "registry", "combine", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code, *capsys.readouterr()


def test_the_command_publishes_says_how_far_the_parts_interfere_and_prints_one_object(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("task-vector/listening@1", "not_rushing=0.8", "--as", "pair")
    code, out, err = run(capsys, monkeypatch, *words)
    assert (code, err) == (0, "")
    first, second, third, last = out.splitlines()
    assert last.endswith("engrain verify task-vector/pair@1")
    assert first == "task-vector/pair@1 = 1 * task-vector/listening@1 + 0.8 * task-vector/not_rushing@1"
    assert second == "cosine of task-vector/listening@1 and task-vector/not_rushing@1:"
    assert third.startswith("  block 2: ")
    code, out, err = run(capsys, monkeypatch, *words, "--json")
    found = json.loads(out)
    assert (code, err, found["reference"]) == (0, "", "task-vector/pair@1")
    assert found["parts"][1] == {"reference": "task-vector/not_rushing@1", "scale": 0.8}
    assert list(found["interference"][0]["cosines"]) == ["2"]
    code, out, err = run(capsys, monkeypatch, "listening=much", "--as", "pair")
    assert (code, out) == (2, "")
    assert err.count(os.linesep) == 1
