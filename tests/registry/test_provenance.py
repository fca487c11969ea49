"""How a version was made stands beside it; lineage, comparison and the log as they are read."""

import json
import os
import platform
from pathlib import Path

import pytest

from brevity import overwrite
from engrain.core.errors import InputError
from engrain.registry.alias import move_alias
from engrain.registry.audit import audit
from engrain.registry.compare import compare
from engrain.registry.delete import delete
from engrain.registry.describe import describe_version
from engrain.registry.journal import read_chain
from engrain.registry.lineage import Lineage
from engrain.registry.log import read_log
from engrain.registry.provenance import Provenance
from engrain.registry.reference import Reference
from engrain.registry.rollback import roll_back
from engrain.registry.store import Parent, Store

MADE = Provenance("extract", {"layers": "all", "rate": 0.5}, {"data": 7}, {"pairs": "sha256:" + "1" * 64})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Pairs, two vectors made from them, a verdict on the second; an alias that was moved and rolled back."""
    made = Store(tmp_path / "home")
    pairs = made.publish("dataset", "brevity", config={}, files={"pairs.jsonl": b"{}\n"})
    for layer in (6, 7):
        config = {"origin": {"layer": layer}, "name": "brevity"}
        made.publish("vector", "brevity", config=config, files={}, parents=[Parent("pairs", pairs.digest)])
    parent = Parent("vector", made.resolve("vector/brevity").digest)
    made.publish("verdict", "brevity", config={"passed": True}, files={}, parents=[parent])
    for number in (1, 2):
        move_alias(made, Reference("vector", "brevity", alias="canary"), number, reason=f"to {number}")
    roll_back(made, Reference("vector", "brevity", alias="canary"), reason="too curt")
    return made


def test_provenance_says_how_and_changes_no_digest(store: Store) -> None:
    plain = store.publish("profile", "one", config={"a": 1}, files={})
    version = store.publish("profile", "two", config={"a": 1}, files={}, provenance=MADE)
    assert version.digest == plain.digest
    assert version.provenance is not None
    assert plain.provenance is None
    statement = json.loads(store.read(version.provenance))
    assert statement["subject"] == [{"name": "profile/two", "digest": {"sha256": version.digest[7:]}}]
    said = statement["predicate"]
    assert (said["config"], said["seeds"], said["data"]) == (dict(MADE.config), dict(MADE.seeds), dict(MADE.data))
    assert said["packages"]["python"] == platform.python_version()
    assert "engrain" in said["plugins"]
    assert said["hardware"]["cores"] == os.cpu_count()
    assert describe_version(store, version)["statement"] == statement
    assert audit(store).problems == []


def test_the_same_content_again_keeps_the_first_statement(store: Store) -> None:
    first = store.publish("profile", "two", config={"a": 1}, files={}, provenance=MADE)
    again = store.publish("profile", "two", config={"a": 1}, files={}, provenance=Provenance("compile", {}))
    assert (again.number, again.provenance) == (1, first.provenance)


def test_a_configuration_that_is_not_data_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match="holds something that JSON cannot"):
        store.publish("profile", "two", config={}, files={}, provenance=Provenance("extract", {"rate": float("nan")}))
    assert store.names("profile") == []


def test_a_damaged_statement_is_named_and_the_version_is_used_all_the_same(store: Store) -> None:
    version = store.publish("profile", "two", config={"a": 1}, files={}, provenance=MADE)
    path = store.object_path(version.provenance or "")
    overwrite(path, b"")
    assert [problem.path for problem in audit(store).problems] == [path]
    assert store.resolve("profile/two").config == {"a": 1}
    assert describe_version(store, version)["statement"] is None


def test_lineage_goes_from_the_pairs_to_what_is_deployed(store: Store) -> None:
    lineage = Lineage(store)
    verdict = lineage.ancestors(store.resolve("verdict/brevity"))
    (vector,) = verdict.below
    (pairs,) = vector.below
    assert [(node.role, node.references) for node in (verdict, vector, pairs)] == [
        ("", ("verdict/brevity@1",)),
        ("vector", ("vector/brevity@2",)),
        ("pairs", ("dataset/brevity@1",)),
    ]
    used = lineage.descendants(store.resolve("dataset/brevity"))
    assert sorted(node.references[0] for node in used.below) == ["vector/brevity@1", "vector/brevity@2"]
    assert [node.aliases for node in used.below if node.references == ("vector/brevity@1",)] == [
        ("vector/brevity:canary",)
    ]


def test_a_parent_that_is_not_here_is_a_leaf(store: Store) -> None:
    parent = Parent("pairs", "sha256:" + "2" * 64)
    version = store.publish("vector", "other", config={}, files={}, parents=[parent])
    (leaf,) = Lineage(store).ancestors(version).below
    assert (leaf.digest, leaf.references, leaf.below) == (parent.digest, (), ())


def test_a_comparison_names_what_differs_and_nothing_else(store: Store) -> None:
    one, two = store.resolve("vector/brevity@1"), store.resolve("vector/brevity@2")
    (difference,) = compare(one, two)
    assert (difference.where, difference.first, difference.second) == ("config.origin.layer", 6, 7)
    assert compare(one, one) == []


def test_the_log_is_that_of_a_name_a_version_or_an_alias_newest_first(store: Store) -> None:
    delete(store, Reference("vector", "brevity", 2), "too curt")
    chain = read_chain(store.root / "journal")

    def acts(reference: str | None) -> list[str]:
        parsed = None if reference is None else Reference.parse(reference)
        return [entry.event.act for entry in read_log(chain, parsed)]

    assert acts("vector/brevity:canary") == ["rollback", "alias", "alias"]
    assert acts("vector/brevity@1") == ["rollback", "alias", "alias", "publish"]
    assert acts("vector/brevity") == ["delete", "rollback", "alias", "alias", "publish", "publish"]
    assert acts("verdict/brevity") == ["publish"]
    assert acts(None)[-1] == "adopt"
    newest = next(read_log(chain, Reference.parse("vector/brevity:canary")))
    assert (newest.what, newest.outcome) == ("vector/brevity:canary  @2 -> @1", "done")
