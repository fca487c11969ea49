"""Aliases: moved by compare-and-swap, held to the policy, rolled back, and never in doubt after a crash."""

from typing import Any

import pytest

from brevity import CANARY, STABLE, at, moves, overwrite
from engrain.core.errors import ConflictError, InputError, IntegrityError, PolicyError, UnknownNameError
from engrain.registry.alias import move_alias, parse_alias
from engrain.registry.audit import audit
from engrain.registry.delete import delete
from engrain.registry.journal import read_chain
from engrain.registry.reference import Reference
from engrain.registry.repair import repair
from engrain.registry.rollback import roll_back
from engrain.registry.store import Parent, Store, Version


def judge(store: Store, version: Version, passed: bool, role: str = "vector", name: str = "brevity") -> Version:
    config: dict[str, Any] = {"passed": passed, "turn": len(store.versions("verdict", name))}
    return store.publish("verdict", name, config=config, files={}, parents=[Parent(role, version.digest)])


# Moves.


def test_an_alias_is_resolved_to_what_it_was_moved_to(store: Store) -> None:
    move = move_alias(store, CANARY, 2, reason="try it")
    assert (move.before, move.after.number) == (None, 2)
    assert Store(store.root).resolve("vector/brevity:canary") == store.resolve("vector/brevity@2")
    moved = move_alias(store, CANARY, 4)
    assert moved.before is not None
    assert (moved.before.number, at(store)) == (2, 4)
    assert {name: ref.target.number for name, ref in store.aliases("vector", "brevity").items()} == {"canary": 4}


def test_a_move_that_expects_another_version_is_a_conflict_and_moves_nothing(store: Store) -> None:
    move_alias(store, CANARY, 2, expect=0)
    for expect in (0, 1, 3):
        with pytest.raises(ConflictError, match=f"at version 2, not at {expect} as expected; nothing was moved"):
            move_alias(store, CANARY, 4, expect=expect)
    with pytest.raises(ConflictError, match="is not there, not at 3"):
        move_alias(store, Reference("vector", "brevity", alias="other"), 4, expect=3)
    assert at(store) == 2
    assert move_alias(store, CANARY, 4, expect=2).after.number == 4


def test_an_alias_of_nothing_or_to_nothing_is_refused(store: Store) -> None:
    with pytest.raises(UnknownNameError, match="No version 'vector/brevity@9'"):
        move_alias(store, CANARY, 9)
    with pytest.raises(UnknownNameError, match=r"No vector 'brevty'\. Did you mean 'brevity'"):
        move_alias(store, Reference("vector", "brevty", alias="canary"), 1)
    with pytest.raises(InputError, match="names no alias"):
        parse_alias("vector/brevity@2")
    move_alias(store, CANARY, 2)
    with pytest.raises(UnknownNameError, match="called 'cnary'"):
        store.resolve("vector/brevity:cnary")


def test_a_version_whose_files_are_gone_is_not_moved_to(store: Store) -> None:
    move_alias(store, CANARY, 1)
    path = store.object_path(store.resolve("vector/brevity@2").manifest["config"]["digest"])
    raw = path.read_bytes()
    path.unlink()
    with pytest.raises(IntegrityError, match=r"Nothing was moved\. Fetch it back"):
        move_alias(store, CANARY, 2)
    assert at(store) == 1
    path.write_bytes(raw)


def test_the_journal_says_who_moved_what_when_why_and_on_which_evidence(store: Store) -> None:
    verdict = judge(store, store.resolve("vector/brevity@2"), True)
    move_alias(store, STABLE, 2, reason="passed everything")
    event = next(event for event in read_chain(store.root / "journal").settled if event.act == "alias")
    said = event.fields
    assert (said["alias"], said["from"], said["to"]["v"]) == ("vector/brevity:stable", None, 2)
    assert said["evidence"] == {"verdict": verdict.reference, "manifest": verdict.digest, "passed": True}
    assert said["reason"] == "passed everything"
    assert said["actor"]
    assert said["time"].endswith("Z")


# Policy.


def test_a_protected_alias_takes_only_what_has_a_passing_verdict(store: Store) -> None:
    with pytest.raises(PolicyError, match=r"protected.*no verdict is on it\. Nothing was moved"):
        move_alias(store, STABLE, 2)
    judge(store, store.resolve("vector/brevity@2"), False)
    with pytest.raises(PolicyError, match=r"verdict/brevity@1 on it did not pass"):
        move_alias(store, STABLE, 2)
    judge(store, store.resolve("vector/brevity@2"), True)
    move_alias(store, STABLE, 2)
    assert at(store, STABLE) == 2


def test_each_behavior_has_to_pass(store: Store) -> None:
    version = store.resolve("vector/brevity@2")
    judge(store, version, False)
    judge(store, version, True, name="another-name")
    with pytest.raises(PolicyError, match="verdict/brevity@1 on it did not pass"):
        move_alias(store, STABLE, 2)
    judge(store, version, True)
    move_alias(store, STABLE, 2)
    assert at(store, STABLE) == 2


def test_the_newest_verdict_decides(store: Store) -> None:
    version = store.resolve("vector/brevity@2")
    judge(store, version, True)
    judge(store, version, False)
    with pytest.raises(PolicyError, match="verdict/brevity@2 on it did not pass"):
        move_alias(store, STABLE, 2)


@pytest.mark.parametrize("damaged", ["the older line", "the newer line", "the newer manifest"])
def test_a_protected_alias_takes_no_version_that_a_damaged_verdict_may_be_on(store: Store, damaged: str) -> None:
    version = store.resolve("vector/brevity@2")
    judge(store, version, True)
    failed = judge(store, version, False)
    judge(store, version, True, name="another-name")
    path = store.manifest_path(failed.digest) if "manifest" in damaged else store.history("verdict", "brevity").path
    whole = path.read_bytes()
    at_line = whole.index(b"\n") + 1 if damaged == "the newer line" else 0
    overwrite(path, whole[:at_line] + whole[at_line:].replace(b"sha256:", b"sha255:", 1))
    said = "verdict/brevity@2 on it did not pass" if damaged == "the older line" else "cannot be read.*verify --repair"
    with pytest.raises(PolicyError, match=said):
        move_alias(store, STABLE, 2)
    move_alias(store, STABLE, 2, force=True, reason="known")
    overwrite(path, whole)


def test_a_damaged_verdict_older_than_the_one_that_decides_stops_nothing(store: Store) -> None:
    version = store.resolve("vector/brevity@2")
    judge(store, version, False)
    judge(store, version, True)
    path = store.history("verdict", "brevity").path
    whole = path.read_bytes()
    overwrite(path, whole.replace(b"sha256:", b"sha255:", 1))
    move_alias(store, STABLE, 2)
    assert at(store, STABLE) == 2
    overwrite(path, whole)


@pytest.mark.parametrize("role", ["test", "pairs"])
def test_a_verdict_that_only_mentions_the_version_is_no_evidence(store: Store, role: str) -> None:
    judge(store, store.resolve("vector/brevity@2"), True, role=role)
    with pytest.raises(PolicyError, match="no verdict"):
        move_alias(store, STABLE, 2)


def test_force_needs_a_reason_and_is_journaled_with_it(store: Store) -> None:
    with pytest.raises(InputError, match="--force needs a --reason"):
        move_alias(store, STABLE, 2, force=True, reason=" ")
    move_alias(store, STABLE, 2, force=True, reason="the demo is in an hour")
    event = read_chain(store.root / "journal").settled[-1]
    assert (event.fields["forced"], event.fields["reason"]) == (True, "the demo is in an hour")


def test_the_list_of_protected_aliases_is_the_owners(store: Store) -> None:
    (store.root / "policy.json").write_text('{"protected": ["canary"]}')
    move_alias(store, STABLE, 1)
    with pytest.raises(PolicyError):
        move_alias(store, CANARY, 1)
    (store.root / "policy.json").write_text('{"protected": "stable"}')
    with pytest.raises(IntegrityError, match=r"policy\.json' is not of the form"):
        move_alias(store, STABLE, 1)
    (store.root / "policy.json").unlink()


# Roll back.


def test_one_step_back_is_what_was_there_before(store: Store) -> None:
    moves(store, 1, 2, 5)
    move = roll_back(store, CANARY, reason="it talks too much")
    assert move.before is not None
    assert (move.before.number, move.after.number, at(store)) == (5, 2, 2)
    event = read_chain(store.root / "journal").settled[-1]
    assert (event.act, event.fields["reason"], event.fields["steps"]) == ("rollback", "it talks too much", 1)


def test_two_roll_backs_go_back_two_moves_and_a_move_goes_on_from_there(store: Store) -> None:
    moves(store, 1, 2, 3, 4)
    roll_back(store, CANARY)
    assert roll_back(store, CANARY).after.number == 2
    moves(store, 5)
    assert roll_back(store, CANARY).after.number == 2
    assert roll_back(store, CANARY).after.number == 1
    with pytest.raises(InputError, match=r"cannot go back 1 \(it was nowhere before\). It was not moved"):
        roll_back(store, CANARY)
    assert at(store) == 1


def test_several_steps_or_a_version_by_its_number(store: Store) -> None:
    moves(store, 1, 2, 3, 2, 4)
    assert roll_back(store, CANARY, steps=3).after.number == 2
    moves(store, 5)
    assert roll_back(store, CANARY, to=1).after.number == 1
    with pytest.raises(InputError, match="was not at version 3"):
        roll_back(store, CANARY, to=3)
    for steps in (0, -1, 7):
        with pytest.raises(InputError):
            roll_back(store, CANARY, steps=steps)


def test_a_roll_back_asks_for_no_verdict_and_repeats_the_evidence_of_then(store: Store) -> None:
    for number in (1, 2):
        judge(store, store.resolve(f"vector/brevity@{number}"), True)
        move_alias(store, STABLE, number)
    judge(store, store.resolve("vector/brevity@1"), False)
    move = roll_back(store, STABLE)
    assert (at(store, STABLE), move.evidence) == (1, move.evidence)
    assert move.evidence is not None
    assert move.evidence["verdict"] == "verdict/brevity@1"


def test_a_roll_back_of_what_is_not_there_names_what_is(store: Store) -> None:
    moves(store, 1)
    with pytest.raises(UnknownNameError, match="Did you mean 'vector/brevity:canary'"):
        roll_back(store, Reference("vector", "brevity", alias="canry"))


def test_a_roll_back_to_a_deleted_version_is_refused_with_its_reason(store: Store) -> None:
    moves(store, 1, 2)
    delete(store, Reference("vector", "brevity", 1), "holds private data")
    with pytest.raises(UnknownNameError, match="holds private data"):
        roll_back(store, CANARY)
    assert at(store) == 2


def test_a_roll_back_does_not_guess_what_a_damaged_journal_hides(store: Store) -> None:
    moves(store, 1, 2, 3)
    path = store.root / "journal" / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)

    def damage(number: int) -> None:
        damaged = list(lines)
        damaged[number] = lines[number].replace(b'"reason":""', b'"reason":"changed"')
        path.write_bytes(b"".join(damaged))

    damage(-2)  # the last move: what was before 3 is not certain
    with pytest.raises(IntegrityError, match=r"stays at version 3. Name the version: engrain registry alias vector"):
        roll_back(store, CANARY)
    damage(-4)  # the one before: one step back is certain, two are not
    with pytest.raises(InputError, match=r"cannot go back 2 \(it was at: 2\)"):
        roll_back(store, CANARY, steps=2)
    assert roll_back(store, CANARY).after.number == 2
    assert len(audit(store).problems) == 1
    (said,) = repair(store, audit(store).problems, None)
    assert "line 14 is damaged" in said


class Server:
    """A deployment that fails where it is told to."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.done: list[str] = []

    def _do(self, step: str, version: Version) -> None:
        self.done.append(f"{step} {version.number}")
        if step == self.fails:
            raise RuntimeError("out of memory")

    def prepare(self, version: Version) -> None:
        self._do("prepare", version)

    def switch(self, version: Version) -> None:
        self._do("switch", version)

    def confirm(self, version: Version) -> None:
        self._do("confirm", version)


def test_a_roll_back_is_prepared_switched_and_confirmed(store: Store) -> None:
    moves(store, 1, 2)
    server = Server()
    roll_back(store, CANARY, live=server)
    assert server.done == ["prepare 1", "switch 1", "confirm 1"]


@pytest.mark.parametrize("step", ["prepare", "switch", "confirm"])
def test_a_step_that_fails_leaves_the_alias_where_it_was(store: Store, step: str) -> None:
    moves(store, 1, 2)
    with pytest.raises(RuntimeError, match="out of memory"):
        roll_back(store, CANARY, live=Server(step))
    assert at(store) == 2
    with pytest.raises(RuntimeError, match="out of memory"):
        move_alias(store, Reference("vector", "brevity", alias="new"), 1, live=Server(step))
    assert list(store.aliases("vector", "brevity")) == ["canary"]
    assert roll_back(store, CANARY).after.number == 1
