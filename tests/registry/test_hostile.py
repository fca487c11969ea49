"""What a stranger or a fault can put in the way: sealed rubbish, endless numbers, damaged verdicts, odd remotes."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brevity import CANARY, STABLE, at, moves, overwrite
from engrain.core.errors import ConflictError, InputError, IntegrityError, PolicyError
from engrain.registry.alias import move_alias
from engrain.registry.audit import audit
from engrain.registry.delete import delete
from engrain.registry.journal import read_chain, read_head
from engrain.registry.lineage import Lineage
from engrain.registry.log import read_log
from engrain.registry.mark import tombstone_path
from engrain.registry.reference import Reference
from engrain.registry.remote import FolderRemote
from engrain.registry.repair import repair
from engrain.registry.rollback import roll_back
from engrain.registry.sealed import seal, unseal
from engrain.registry.store import Parent, Store
from engrain.registry.transfer import pull, push


def events(store: Store) -> Path:
    return store.root / "journal" / "events.jsonl"


def version(number: int) -> Reference:
    return Reference("vector", "brevity", number)


# Sealed, but not by engrain.


def append(store: Store, **said: Any) -> None:
    """Write one more event with a good seal and a good link to the one before."""
    last = read_chain(store.root / "journal").events[-1]
    fields = {"actor": "x", "time": "2026-01-01T00:00:00.000000Z", "prev": last.seal, "seq": last.seq + 1} | said
    with events(store).open("ab") as stream:
        stream.write(seal(fields) + b"\n")


DIGEST = "sha256:" + "0" * 64
LINE = {"v": 6, "manifest": DIGEST, "time": "2026-01-01T00:00:00Z", "actor": "x"}
MOVE = {
    "alias": "vector/brevity:canary",
    "from": None,
    "to": {"v": 1, "manifest": DIGEST},
    "reason": "",
    "evidence": None,
}
SEALED: dict[str, dict[str, Any]] = {
    "a publish without a line": {"act": "publish", "name": "vector/brevity"},
    "a publish under a path": {"act": "publish", "name": "vector/../../tmp", "line": LINE},
    "a publish of an unknown kind": {"act": "publish", "name": "spell/brevity", "line": LINE},
    "a publish with a path for a digest": {
        "act": "publish",
        "name": "vector/brevity",
        "line": LINE | {"manifest": "../../x"},
    },
    "a move without a target": {"act": "alias", "alias": "vector/brevity:canary", "from": None},
    "a move of a path": {"act": "alias", **MOVE, "alias": "vector/brevity:../x"},
    "a move of nothing": {"act": "alias", **MOVE, "alias": "vector/brevity"},
    "a roll back without steps": {"act": "rollback", **MOVE},
    "a move with rubbish for evidence": {"act": "alias", **MOVE, "evidence": "yes"},
    "a deletion of a path": {"act": "delete", "name": "../x", "v": 1, "reason": ""},
    "a collection without counts": {"act": "gc"},
    "a commit of nothing": {"act": "commit"},
    "an adoption of a path": {"act": "adopt", "aliases": {"vector/../x:y": {}}},
    "an adoption of half a tombstone": {"act": "adopt", "tombstones": [{"name": "vector/brevity", "v": 1}]},
    "a quarantine of numbers": {"act": "quarantine", "files": [1]},
}


@pytest.mark.parametrize("said", SEALED.values(), ids=SEALED.keys())
def test_a_sealed_event_that_says_not_what_it_should_is_a_fault_and_stops_nothing(
    store: Store, said: dict[str, Any]
) -> None:
    moves(store, 1, 2)
    append(store, **said)
    assert any("is not a line of a journal" in problem.what for problem in audit(store).problems)
    assert next(read_log(read_chain(store.root / "journal"))).what.endswith("@1 -> @2")
    assert at(store) == 2
    repair(store, audit(store).problems, None)
    assert audit(store).problems == []
    assert roll_back(store, CANARY).after.number == 1


def test_an_act_of_a_later_engrain_is_passed_over(store: Store) -> None:
    append(store, act="compact", of="everything")
    append(store, act="abort", of=read_chain(store.root / "journal").events[-1].seq, reason="test")
    moves(store, 1)
    assert at(store) == 1


def test_a_number_made_up_takes_no_memory(store: Store) -> None:
    with store.writing() as journal:
        journal.commit(journal.begin("publish", name="vector/brevity", line=LINE | {"v": 999_999_999_999_999}))
    assert audit(store).problems == []
    assert store.resolve("vector/brevity").number == 5


def test_a_line_with_a_number_of_five_thousand_digits_is_damaged_and_no_error_of_python(store: Store) -> None:
    path = store.history("vector", "brevity").path
    whole = path.read_bytes()
    with path.open("ab") as stream:
        stream.write(b'{"v":' + b"9" * 5000 + b"}\n")
    assert any("line 6 is damaged" in problem.what for problem in audit(store).problems)
    assert store.resolve(version(5)).number == 5
    path.write_bytes(whole)


@pytest.mark.parametrize("size", ["-1", "Infinity", '"9"', "1.5"])
def test_a_head_that_is_sealed_and_is_none_is_named(store: Store, size: str) -> None:
    path = store.root / "journal" / "HEAD"
    whole = path.read_bytes()
    said = unseal(whole, "", "")
    # Sealed over the changed bytes, as somebody would who knows how.
    bare = seal(said | {"size": 424242})
    start = bare.index(b'"sha256":"')
    rest = bare[:start] + bare[start + 10 + 64 + 2 :]
    changed = rest.replace(b"424242", size.encode())
    digest = hashlib.sha256(changed).hexdigest().encode()
    raw = changed[:start] + b'"sha256":"' + digest + b'",' + changed[start:]
    overwrite(path, raw)
    with pytest.raises(IntegrityError, match="is not the head of a journal"):
        read_head(store.root / "journal")
    overwrite(path, whole)


@pytest.mark.parametrize(
    "said",
    [
        {"name": "vector/brevity", "v": 1, "seq": 1, "time": "2026"},
        {"name": "vector/other", "v": 1, "seq": 1, "time": "2026", "actor": "x", "reason": "y"},
        {"name": "vector/brevity", "v": 2, "seq": 1, "time": "2026", "actor": "x", "reason": "y"},
        {"name": 7, "v": 1, "seq": 1, "time": "2026", "actor": "x", "reason": "y"},
    ],
)
def test_a_tombstone_that_is_not_this_versions_is_named(store: Store, said: dict[str, Any]) -> None:
    path = tombstone_path(store.history("vector", "brevity").folder, 1)
    path.parent.mkdir()
    path.write_bytes(seal(said))
    with pytest.raises(IntegrityError, match="is not the tombstone of version 1"):
        store.resolve(version(1))
    repair(store, audit(store).problems, None)


@pytest.mark.parametrize("said", [{"v": "1"}, {"seq": 1.5}, {"manifest": "x"}])
def test_an_alias_that_is_sealed_and_is_none_is_named_and_set_right(store: Store, said: dict[str, Any]) -> None:
    moves(store, 1)
    path = store.root / "refs" / "vector" / "brevity" / "canary"
    overwrite(path, seal(unseal(path.read_bytes(), "", "") | said))
    with pytest.raises(IntegrityError, match="is not the alias"):
        store.resolve(CANARY)
    repair(store, audit(store).problems, None)
    assert at(store) == 1


# Damage in what decides.


def test_the_highest_version_published_again_is_put_right(store: Store) -> None:
    highest = store.resolve("vector/brevity")
    for path, raw in ((highest.path("x"), b"y"), (store.manifest_path(highest.digest), b"")):
        overwrite(path, raw)
        assert store.publish("vector", "brevity", config={"number": 5}, files={"x": b"x"}) == highest
    assert highest.path("x").read_bytes() == b"x"


def test_a_damaged_verdict_does_not_let_an_older_one_speak(store: Store) -> None:
    parents = [Parent("vector", store.resolve(version(2)).digest)]
    store.publish("verdict", "brevity", config={"passed": True}, files={}, parents=parents)
    failed = store.publish("verdict", "brevity", config={"passed": False}, files={}, parents=parents)
    path = store.object_path(failed.manifest["config"]["digest"])
    whole = path.read_bytes()
    overwrite(path, whole.replace(b"false", b"true "))
    with pytest.raises(PolicyError, match="verdict/brevity@2 on it did not pass"):
        move_alias(store, STABLE, 2)
    overwrite(path, whole)


def test_a_roll_back_hashes_what_it_goes_back_to_when_asked(store: Store) -> None:
    moves(store, 1, 2)
    path = store.resolve(version(1)).path("x")
    overwrite(path, b"y")
    with pytest.raises(IntegrityError, match=r"'vector/brevity@1' has .* bytes were changed\. Nothing was moved"):
        roll_back(store, CANARY, rehash=True)
    assert at(store) == 2
    overwrite(path, b"x")
    assert roll_back(store, CANARY, rehash=True).after.number == 1


def test_the_pairs_of_a_vector_are_found_under_a_name_that_was_not_deleted(store: Store) -> None:
    for text in ("one", "two", "one"):
        found = store.publish("dataset", "pairs", config={"text": text}, files={})
    delete(store, Reference("dataset", "pairs", 1), "renamed")
    assert str(store.find(found.digest)) == "dataset/pairs@3"
    delete(store, Reference("dataset", "pairs", 3), "renamed")
    assert str(store.find(found.digest)) == "dataset/pairs@1"


def test_a_lineage_in_which_the_ways_double_is_drawn_once(store: Store) -> None:
    parent = store.resolve("vector/brevity")
    for number in range(40):
        parents = [Parent("one", parent.digest), Parent("other", parent.digest)]
        parent = store.publish("vector", "twice", config={"number": number}, files={}, parents=parents)
    tree = Lineage(store).ancestors(parent)
    first, second = tree.below
    assert (first.digest, first.again, second.again, second.below) == (second.digest, False, True, ())


# Remotes.


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> Path:
    moves(store, 1, 2)
    move_alias(store, Reference("vector", "brevity", alias="other"), 4)
    push(store, FolderRemote(tmp_path / "remote"))
    return tmp_path / "remote"


def rewrite(path: Path, raw: bytes) -> None:
    path.unlink()
    path.write_bytes(raw)


@pytest.mark.parametrize("extra", [{"actor": 7}, {"actor": "\ud800"}, {"time": 7}, {"provenance": "x"}])
def test_a_line_of_a_remote_that_could_not_be_written_again_is_refused(
    folder: Path, tmp_path: Path, extra: dict[str, Any]
) -> None:
    said = unseal((folder / "names/vector/brevity/versions/1").read_bytes(), "", "") | extra
    bare = json.dumps(said, separators=(",", ":"), sort_keys=True).encode()
    digest = hashlib.sha256(bare).hexdigest()
    rewrite(folder / "names/vector/brevity/versions/1", bare.replace(b'"time"', f'"sha256":"{digest}","time"'.encode()))
    with pytest.raises(IntegrityError, match="is not the line of that version"):
        pull(Store(tmp_path / "other"), FolderRemote(folder))


def test_of_a_line_of_a_remote_only_what_is_known_is_taken(folder: Path, tmp_path: Path) -> None:
    path = folder / "names/vector/brevity/versions/1"
    rewrite(path, seal(unseal(path.read_bytes(), "", "") | {"note": "a" * 1000}))
    other = Store(tmp_path / "other")
    pull(other, FolderRemote(folder))
    assert "note" not in other.line(version(1)).fields
    assert audit(other).problems == []


def test_an_alias_of_a_remote_does_not_stand_in_for_another(folder: Path, tmp_path: Path) -> None:
    refs = folder / "refs" / "vector" / "brevity"
    rewrite(refs / "canary", (refs / "other").read_bytes())
    with pytest.raises(IntegrityError, match=r"canary' in .* is no alias"):
        pull(Store(tmp_path / "other"), FolderRemote(folder))


def test_a_tombstone_of_a_remote_does_not_stop_a_pull_where_an_alias_points_at_its_version(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    other = Store(tmp_path / "other")
    pull(other, FolderRemote(folder))
    moves(store, 3)
    delete(store, version(2), "holds private data")
    store.publish("vector", "brevity", config={"number": 6}, files={})
    push(store, FolderRemote(folder))
    done = pull(other, FolderRemote(folder))
    assert done.versions == ["vector/brevity@6"]
    assert any("'vector/brevity@2' was deleted there, and stays here" in remark for remark in done.remarks)


def test_a_disk_that_fails_while_a_remote_is_read_gives_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> Iterator[bytes]:
        yield b"{"
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("engrain.registry.remote.chunks", fails)
    with pytest.raises(InputError, match=r"cannot be used \(Input/output error\); check the folder"):
        pull(Store(tmp_path / "other"), FolderRemote(folder))


def test_a_remote_that_refuses_one_object_is_asked_for_the_others(store: Store, folder: Path) -> None:
    remote = FolderRemote(folder)
    first, second = (store.object_path(store.resolve(version(n)).manifest["config"]["digest"]) for n in (1, 2))
    raw = first.read_bytes()
    overwrite(first, b"")
    overwrite(second, b"")
    there = folder / first.relative_to(store.root)
    there.unlink()
    there.symlink_to(folder / "elsewhere")
    said = repair(store, audit(store).problems, remote.get)
    assert sum("was fetched from the remote" in one for one in said) == 1
    assert sum("symbolic link" in one for one in said) == 1
    first.write_bytes(raw)


def test_a_conflict_names_the_version_once(store: Store, folder: Path, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    other.publish("vector", "brevity", config={"number": 9}, files={})
    with pytest.raises(ConflictError, match=r"^'vector/brevity@1' in .*remote' is another version than here"):
        pull(other, FolderRemote(folder))
