"""The journal: torn, damaged, from an older engrain, on a full disk, under kills and under many writers."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from brevity import CANARY, STABLE, at, moves, overwrite
from engrain.core.errors import ConflictError, InputError, IntegrityError
from engrain.registry.alias import move_alias
from engrain.registry.audit import audit
from engrain.registry.delete import delete
from engrain.registry.journal import read_chain
from engrain.registry.reference import Reference
from engrain.registry.repair import repair
from engrain.registry.rollback import roll_back
from engrain.registry.store import Store

VERSION_5 = Reference("vector", "brevity", 5)
ROOT = Path(__file__).parents[2]


def test_a_registry_without_a_journal_opens_and_gains_it_at_the_first_write(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "data" / "v1" / "registry-without-journal", tmp_path / "home")
    store = Store(tmp_path / "home")
    assert [version.config["text"] for version in store.versions("vector", "brevity")] == ["one", "two"]
    assert store.resolve("vector/brevity@1").parents[0].digest == store.resolve("dataset/brevity").digest
    assert store.resolve("verdict/brevity").config["passed"] is True
    assert audit(store).problems == []
    assert not (store.root / "journal").exists()
    move_alias(store, STABLE, 2)
    assert [event.act for event in read_chain(store.root / "journal").settled] == ["adopt", "alias"]
    assert audit(store).problems == []
    history = store.history("vector", "brevity").path
    history.write_bytes(history.read_bytes().replace(b"alice", b"mallo"))
    assert {problem.path for problem in audit(store).problems} == {history}


def test_a_registry_of_the_first_format_is_read_verified_and_rolled_back(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "data" / "v1" / "registry", tmp_path / "home")
    store = Store(tmp_path / "home")
    assert audit(store).problems == []
    assert [version.config["text"] for version in store.versions("vector", "brevity")] == ["text 1", "text 2", "text 4"]
    assert store.resolve(STABLE).path("x.bin").read_bytes() == b"text 2"
    assert roll_back(store, STABLE).after.number == 1
    assert audit(store).problems == []


def test_a_torn_last_line_is_passed_over_and_removed(store: Store) -> None:
    moves(store, 1)
    path = store.root / "journal" / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"act":"ali')
    assert at(store) == 1
    assert audit(store).problems == []
    moves(store, 2)
    assert path.read_bytes().startswith(whole + b'{"act":"alias"')


def test_a_clock_that_goes_backwards_is_remarked_and_changes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves(store, 1, 2)
    monkeypatch.setattr("engrain.registry.journal.now", lambda: "1999-01-01T00:00:00.000000Z")
    moves(store, 3)
    report = audit(store)
    assert report.passed
    assert any("clock went backwards" in remark and "nothing is wrong" in remark for remark in report.remarks)
    assert roll_back(store, CANARY).after.number == 2


def test_writers_without_a_lock_that_works_never_write_over_each_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves(store, 1)
    # Another writer comes in between; the lock does not keep it out.
    with store.writing() as late:
        raw = (store.root / "journal" / "events.jsonl").read_bytes()
        late.commit(late.begin("gc", files=0, size=0))
        late._seq, late._size = late._seq - 2, len(raw)
        with pytest.raises(ConflictError, match="was written by somebody else meanwhile; nothing is lost"):
            late.begin("gc", files=0, size=0)
    moves(store, 2)
    assert at(store) == 2


def test_an_empty_alias_file_is_named_and_written_again(store: Store) -> None:
    moves(store, 1, 2)
    path = store.root / "refs" / "vector" / "brevity" / "canary"
    overwrite(path, b"")
    with pytest.raises(IntegrityError, match=r"canary' is damaged. The versions are safe"):
        store.resolve(CANARY)
    assert store.resolve("vector/brevity").number == 5
    report = audit(store)
    assert [problem.path for problem in report.problems] == [path]
    assert repair(store, report.problems, None) == [f"'{path}' was written again from the journal."]
    assert at(store) == 2


def test_killed_processes_lose_nothing_and_changed_bytes_are_found() -> None:
    for what, count in (("kill", 100), ("flip", 300)):
        command = [sys.executable, "-m", "benchmarks.registry_faults", what, "--count", str(count), "--dry"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        assert f"{count} injections, 0 problems" in done.stdout


@pytest.mark.parametrize("lock", [[], ["--no-lock"]])
def test_processes_that_publish_and_move_at_once_leave_no_gap_and_no_duplicate(lock: list[str]) -> None:
    options = ["--processes", "4", "--publishes", "15", "--dry", *lock]
    command = [sys.executable, "-m", "benchmarks.registry_writers", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["versions"] == 60 if not lock else found["versions"] <= 60


def test_a_disk_that_fills_up_at_any_moment_leaves_what_was_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves(store, 1, 2)
    real = os.write
    for act in (lambda: moves(store, 3), lambda: roll_back(store, CANARY), lambda: delete(store, VERSION_5, "old")):
        for call in range(3):
            left = iter(range(call))

            def full(handle: int, raw: bytes, left: Iterator[int] = left) -> int:
                return real(handle, raw) if next(left, None) is not None else real(handle, raw[: len(raw) // 2])

            with monkeypatch.context() as patch:
                patch.setattr(os, "write", full)
                with contextlib.suppress(InputError):
                    act()
            assert audit(store).problems == []
            assert at(store) in (1, 2, 3)
    assert store.publish("vector", "brevity", config={"number": 6}, files={}).number == 6
