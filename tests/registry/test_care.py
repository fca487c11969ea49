"""Verify, repair, delete, gc, leases: nothing needed is ever removed, one bad item stops nothing else."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from brevity import CANARY, overwrite
from engrain.core.errors import InputError, IntegrityError, UnknownNameError
from engrain.registry.alias import move_alias
from engrain.registry.audit import audit
from engrain.registry.collect import KEPT_TARGETS, collect
from engrain.registry.delete import delete
from engrain.registry.lease import lease
from engrain.registry.reference import Reference
from engrain.registry.remote import FolderRemote
from engrain.registry.repair import repair
from engrain.registry.store import Parent, Store, Version


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three versions, an alias on the second, and a deleted third."""
    made = Store(tmp_path / "home")
    for number in (1, 2, 3):
        publish(made, number)
    move_alias(made, CANARY, 1)
    move_alias(made, CANARY, 2)
    delete(made, Reference("vector", "brevity", 3), "holds private data")
    return made


def publish(store: Store, number: int, *parents: Parent, name: str = "brevity") -> Version:
    files = {"x.bin": f"content {number}".encode()}
    return store.publish("vector", name, config={"number": number}, files=files, parents=parents)


def version(number: int) -> Reference:
    return Reference("vector", "brevity", number)


def mend(store: Store, remote: Path | None = None) -> list[str]:
    return repair(store, audit(store).problems, None if remote is None else FolderRemote(remote).get)


# Verify and repair.


def test_a_clean_registry_passes_with_its_counts(store: Store) -> None:
    report = audit(store)
    assert (report.problems, report.remarks, report.versions, report.files) == ([], [], 3, 9)


@pytest.mark.parametrize("damage", [b"", b"\0" * 9, b"content 9"], ids=["cut", "zeroed", "changed"])
def test_a_damaged_object_is_set_aside_and_fetched_back_from_a_remote(
    store: Store, tmp_path: Path, damage: bytes
) -> None:
    shutil.copytree(store.root, tmp_path / "remote")
    path = store.resolve(version(1)).path("x.bin")
    overwrite(path, damage)
    report = audit(store)
    (problem,) = report.problems
    assert (problem.path, problem.uses) == (path, ("vector/brevity@1",))
    assert [place.read_bytes() for place in report.quarantined] == [damage]
    assert store.resolve(version(2)).path("x.bin").read_bytes() == b"content 2"
    assert [problem.what for problem in audit(store).problems] == ["is missing"]
    (said,) = mend(store, tmp_path / "remote")
    assert "fetched from the remote" in said
    assert audit(store).passed
    assert store.resolve(version(1)).path("x.bin").read_bytes() == b"content 1"


def test_what_a_remote_has_damaged_too_is_not_taken(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.root, tmp_path / "remote")
    path = store.resolve(version(1)).path("x.bin")
    overwrite(tmp_path / "remote" / path.relative_to(store.root), b"content 8")
    path.unlink()
    (said,) = mend(store, tmp_path / "remote")
    assert "damaged too" in said
    assert not path.exists()


def test_a_truncated_manifest_is_named_and_the_other_versions_are_read(store: Store) -> None:
    path = store.manifest_path(store.resolve(version(1)).digest)
    overwrite(path, path.read_bytes()[:50])
    with pytest.raises(IntegrityError, match=r"does not hold the bytes.*verify --repair --remote"):
        store.resolve(version(1))
    (problem,) = audit(store).problems
    assert (problem.path, problem.uses) == (path, ("vector/brevity@1",))
    assert store.resolve(CANARY).number == 2


def test_content_that_is_published_again_takes_the_place_of_what_was_damaged(store: Store) -> None:
    overwrite(store.resolve(version(1)).path("x.bin"), b"content 7")
    assert publish(store, 1).number == 4
    assert audit(store).passed
    assert store.resolve(version(1)).path("x.bin").read_bytes() == b"content 1"


def lines(store: Store) -> Path:
    return store.history("vector", "brevity").path


DAMAGES: dict[str, Callable[[Store], None]] = {
    "a version line is changed": lambda s: overwrite(lines(s), lines(s).read_bytes().replace(b'"v":2', b'"v":7')),
    "version lines are cut off": lambda s: os.truncate(lines(s), 300),
    "all version lines are gone": lambda s: lines(s).unlink(),
    "an alias is empty": lambda s: overwrite(s.root / "refs/vector/brevity/canary", b""),
    "all aliases are gone": lambda s: shutil.rmtree(s.root / "refs"),
    "a tombstone is gone": lambda s: (s.root / "names/vector/brevity/tombstones/3").unlink(),
    "HEAD is zeroed": lambda s: overwrite(s.root / "journal/HEAD", bytes(100)),
    "HEAD is gone": lambda s: (s.root / "journal/HEAD").unlink(),
    "registry.json is empty": lambda s: overwrite(s.root / "registry.json", b""),
    "a line of the journal is changed": lambda s: overwrite(
        s.root / "journal/events.jsonl",
        (s.root / "journal/events.jsonl").read_bytes().replace(b'"forced":false', b'"forced":fAlse', 1),
    ),
    "the end of the journal is cut off": lambda s: os.truncate(s.root / "journal/events.jsonl", 2000),
    "the journal is empty": lambda s: os.truncate(s.root / "journal/events.jsonl", 0),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_the_journal_or_the_files_still_say_is_set_right(store: Store, damage: Callable[[Store], None]) -> None:
    before = {one.number: one.config for one in store.versions("vector", "brevity")}
    damage(store)
    assert not audit(store).passed
    assert mend(store)
    report = audit(store)
    assert report.problems == []
    assert {one.number: one.config for one in store.versions("vector", "brevity")} == before
    assert store.resolve(CANARY).number == 2
    with pytest.raises(UnknownNameError, match="holds private data"):
        store.resolve(version(3))
    assert publish(store, 4).number == 4
    move_alias(store, CANARY, 4)
    assert audit(store).problems == []


def test_a_registry_that_cannot_be_written_is_checked_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.resolve(version(1)).path("x.bin")
    overwrite(path, b"")

    def refuse(*arguments: object, **more: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("engrain.registry.store.make_folder", refuse)
    report = audit(store)
    assert [problem.path for problem in report.problems] == [path]
    assert any("stay where they are" in remark for remark in report.remarks)
    assert path.exists()


def test_a_registry_of_another_user_gives_one_clear_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def theirs(path: str, flags: int, *mode: int, **more: int) -> int:
        if str(path).endswith("registry.lock") or str(path).endswith("events.jsonl"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", theirs)  # not chmod: the tests may run as root, whom that does not stop
    assert store.resolve(CANARY).number == 2
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)\. Set ENGRAIN_HOME.*is safe"):
        publish(store, 4)


# Deleting and collecting.


def test_a_deleted_version_is_not_found_and_its_number_is_never_given_again(store: Store) -> None:
    with pytest.raises(UnknownNameError, match=r"deleted on 20\d\d.*by .*: holds private data"):
        store.resolve(version(3))
    assert store.resolve("vector/brevity").number == 2
    assert publish(store, 3).number == 4
    with pytest.raises(UnknownNameError):
        delete(store, version(3), "again")


def test_deleting_needs_a_number_a_reason_and_no_alias_on_it(store: Store) -> None:
    for reference, reason, message in (
        (Reference("vector", "brevity"), "old", "which version"),
        (version(1), "", "Give a --reason"),
        (version(2), "old", r"'vector/brevity:canary' points at 'vector/brevity@2'; move it first"),
    ):
        with pytest.raises(InputError, match=message):
            delete(store, reference, reason)
    assert len(store.versions("vector", "brevity")) == 2


def test_gc_says_what_it_would_remove_and_removes_it_only_when_told(store: Store) -> None:
    (store.root / "tmp" / "left").write_bytes(b"half")
    found = collect(store, grace=0)
    assert len(found.files) == 4  # config, file and manifest of version 3, and what a crash left
    assert all(path.exists() for path in found.files)
    assert collect(store).files == ()  # nothing is a day old
    assert collect(store, grace=0, dry_run=False).files == found.files
    assert not any(path.exists() for path in found.files)
    assert audit(store).problems == []
    assert [one.number for one in store.versions("vector", "brevity")] == [1, 2]
    assert collect(store, grace=0, dry_run=False).files == ()


def test_gc_keeps_the_manifest_of_a_deleted_version_while_something_made_from_it_is_there(store: Store) -> None:
    parent = publish(store, 4)
    child = publish(store, 5, Parent("vector", parent.digest))
    delete(store, version(4), "superseded")
    collect(store, grace=0, dry_run=False)
    assert store.manifest_path(parent.digest).exists()
    assert not store.object_path(parent.manifest["config"]["digest"]).exists()
    delete(store, version(child.number), "superseded")
    collect(store, grace=0, dry_run=False)
    assert not store.manifest_path(parent.digest).exists()


def test_gc_never_touches_the_last_targets_of_an_alias(store: Store) -> None:
    for number in range(4, 4 + KEPT_TARGETS + 1):
        publish(store, number)
        move_alias(store, CANARY, number)
    for number in range(1, 4 + KEPT_TARGETS):
        if number != 3:
            delete(store, version(number), "old")
    found = collect(store, grace=0, dry_run=False)
    kept = [int(reference.partition("@")[2]) for reference, _ in found.kept]
    assert kept == list(range(5, 4 + KEPT_TARGETS))
    for number in range(1, 4 + KEPT_TARGETS):
        digest = store.history("vector", "brevity").lines()[number - 1].digest
        assert store.manifest_path(digest).exists() == (number in kept)


def test_gc_leaves_what_a_running_process_holds_until_it_ends(store: Store, tmp_path: Path) -> None:
    publish(store, 4)
    code = """
import sys, time
from pathlib import Path
from engrain.registry.lease import lease
from engrain.registry.store import Store
store = Store(Path(sys.argv[1]))
with lease(store, store.resolve("vector/brevity@4")):
    print("held", flush=True)
    time.sleep(600)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, str(store.root)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        delete(store, version(4), "old")
        found = collect(store, grace=0, dry_run=False)
        assert found.kept == (("vector/brevity@4", "a running process uses it"),)
        holder.kill()
    assert collect(store, grace=0, dry_run=False).kept == ()
    assert list((store.root / "leases").iterdir()) == []
    assert audit(store).problems == []


def test_a_lease_ends_with_its_context_and_is_refused_when_the_files_are_gone(store: Store) -> None:
    publish(store, 4)
    held = store.resolve(version(4))
    with lease(store, held):
        delete(store, version(4), "old")
        assert len(collect(store, grace=0).kept) == 1
    collect(store, grace=0, dry_run=False)
    with pytest.raises(IntegrityError, match="was removed meanwhile"), lease(store, held):
        pass


def test_gc_removes_nothing_while_something_is_damaged(store: Store) -> None:
    overwrite(store.root / "refs/vector/brevity/canary", b"")
    with pytest.raises(IntegrityError, match="canary"):
        collect(store, grace=0, dry_run=False)
    mend(store)
    overwrite(store.root / "journal/HEAD", b"")
    (store.root / "journal/events.jsonl").write_bytes(b"{}\n" + (store.root / "journal/events.jsonl").read_bytes())
    with pytest.raises(IntegrityError, match=r"Nothing was removed|line 1"):
        collect(store, grace=0, dry_run=False)


def test_a_file_that_is_not_a_day_old_stays(store: Store) -> None:
    path = store.manifest_path(store.history("vector", "brevity").lines()[2].digest)
    os.utime(path, (time.time() - 90_000,) * 2)
    assert collect(store).files == (path,)


# Content that is not taken.


@pytest.mark.parametrize(
    ("title", "raw", "media_type"),
    [
        ("x.pt", b"PK", "application/octet-stream"),
        ("x.bin", b"\x80\x04\x95", "application/octet-stream"),
        ("x.bin", b"PK\x03\x04 and so on", "application/octet-stream"),
        ("x.safetensors", b"", "application/vnd.safetensors"),
        ("x.safetensors", b"\xff" * 16, "application/vnd.safetensors"),
        ("x.safetensors", b"\x02\0\0\0\0\0\0\0{}more", "application/vnd.safetensors"),
        ("x.safetensors", b"\x02\0\0\0\0\0\0\0[]", "application/vnd.safetensors"),
        (
            "x.safetensors",
            b'\x3a\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}   abcd',
            "application/vnd.safetensors",
        ),
    ],
)
def test_a_pickle_or_a_torn_tensor_file_is_refused(store: Store, title: str, raw: bytes, media_type: str) -> None:
    with pytest.raises(InputError, match="safetensors"):
        store.publish("vector", "new", config={}, files={title: raw}, media_types={title: media_type})
    assert store.names("vector") == ["brevity"]


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_as_long_as_a_pickle_begins_is_no_pickle(store: Store, length: int) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
    raw = length.to_bytes(8, "little") + header + b"abcd"
    store.publish("vector", "new", config={}, files={"x": raw}, media_types={"x": "application/vnd.safetensors"})
    assert store.resolve("vector/new").path("x").read_bytes() == raw
