"""Another process that comes in between: nothing is moved, missed or set aside by mistake."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from brevity import CANARY, at, moves, overwrite
from engrain.core.errors import UnknownNameError
from engrain.registry.alias import move_alias
from engrain.registry.audit import audit
from engrain.registry.collect import collect
from engrain.registry.delete import delete
from engrain.registry.journal import Writer, read_chain
from engrain.registry.reference import Reference
from engrain.registry.rollback import roll_back
from engrain.registry.sealed import seal, unseal
from engrain.registry.store import Store, Version


def events(store: Store) -> Path:
    return store.root / "journal" / "events.jsonl"


def version(number: int) -> Reference:
    return Reference("vector", "brevity", number)


class Meanwhile:
    """A deployment while whose preparation something else happens."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def prepare(self, version: Version) -> None:
        self._act()

    def switch(self, version: Version) -> None:
        raise AssertionError("not switched")

    confirm = switch


def test_an_alias_is_not_moved_to_a_version_that_was_deleted_meanwhile(store: Store) -> None:
    moves(store, 1)
    live = Meanwhile(lambda: delete(store, version(3), "holds private data"))
    with pytest.raises(UnknownNameError, match="holds private data"):
        move_alias(store, CANARY, 3, live=live)
    assert at(store) == 1


def test_an_alias_that_is_gone_again_is_no_error_of_python(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    moves(store, 1)
    found = iter([store.ref(CANARY)])
    # The first move of another process was undone between two looks.
    monkeypatch.setattr(Store, "ref", lambda self, alias: next(found, None))
    with pytest.raises(UnknownNameError, match="No alias"):
        roll_back(store, CANARY)


def test_a_move_that_lost_a_race_without_a_lock_is_no_step_to_roll_back_to(store: Store) -> None:
    moves(store, 1, 2)
    path = events(store)
    raw = path.read_bytes().splitlines(keepends=True)
    winner = unseal(raw[-2].strip(), "", "")
    void = seal(winner | {"to": {"v": 4, "manifest": store.resolve(version(4)).digest}}) + b"\n"
    path.write_bytes(b"".join([*raw[:-1], void, raw[-1]]))
    (store.root / "journal" / "HEAD").unlink()
    moves(store, 3)
    assert roll_back(store, CANARY).after.number == 2
    assert roll_back(store, CANARY).after.number == 1


def test_verify_beside_a_writer_does_not_take_its_work_for_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter([6, 7])

    def and_a_publish(folder: Path) -> Any:
        chain = read_chain(folder)
        for number in numbers:
            store.publish("vector", "brevity", config={"number": number}, files={})
            break
        return chain

    monkeypatch.setattr("engrain.registry.audit.read_chain", and_a_publish)
    assert audit(store).problems == []
    assert store.resolve("vector/brevity").number == 7


def test_what_was_put_right_while_verify_was_at_work_is_not_set_aside(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.resolve(version(1)).path("x")
    overwrite(path, b"y")
    real = Store.writing

    @contextmanager
    def healed(self: Store, *, forgive: bool = False) -> Iterator[Writer]:
        overwrite(path, b"x")
        with real(self, forgive=forgive) as journal:
            yield journal

    monkeypatch.setattr(Store, "writing", healed)
    assert audit(store).quarantined == []
    assert path.read_bytes() == b"x"


def test_a_file_that_a_publisher_names_while_gc_looks_is_no_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.root / "tmp" / "half").write_bytes(b"")
    real = Path.lstat

    def named(path: Path) -> os.stat_result:
        if path.name == "half":
            path.unlink()
        return real(path)

    monkeypatch.setattr(Path, "lstat", named)
    assert collect(store, grace=-1).files == ()
