"""Aliases: names that move from version to version, each move compared, journaled and undone if it fails."""

from dataclasses import dataclass
from typing import Any, Protocol

from engrain.core.errors import ConflictError, InputError, IntegrityError
from engrain.registry.blob import chunks, is_whole, measure, reading, remove, replace
from engrain.registry.mark import Ref, Target, ref_path, ref_record
from engrain.registry.policy import check_policy, deciding_verdict
from engrain.registry.reference import Reference
from engrain.registry.store import Store
from engrain.registry.version import Version


class Live(Protocol):
    """Whatever runs what an alias points at. Each step raises to say no; the alias then stays, or goes back.

    `switch` and `confirm` are called while the registry is locked: they must not write to it.
    """

    def prepare(self, version: Version, /) -> None:
        """Have it ready beside what runs now; nothing is switched yet."""

    def switch(self, version: Version, /) -> None:
        """Run it."""

    def confirm(self, version: Version, /) -> None:
        """Check that it runs well; if not, run what ran before, and raise."""


@dataclass(frozen=True)
class Move:
    """A move that took place.

    Attributes:
        alias: which one.
        before: what it pointed at, or None when it is new.
        after: what it points at.
        seq: of the event in the journal.
        evidence: the verdict that it was moved on, as the journal has it, or None.
    """

    alias: Reference
    before: Target | None
    after: Target
    seq: int
    evidence: dict[str, Any] | None


def parse_alias(text: str, default_kind: str | None = None) -> Reference:
    """Read ``KIND/NAME:ALIAS``.

    Raises:
        InputError: it is something else.
    """
    reference = Reference.parse(text, default_kind)
    if reference.alias is None:
        raise InputError(f"'{text}' names no alias; write KIND/NAME:ALIAS, for example vector/brevity:stable.")
    return reference


def move_alias(
    store: Store,
    alias: Reference,
    number: int,
    *,
    expect: int | None = None,
    reason: str = "",
    force: bool = False,
    live: Live | None = None,
) -> Move:
    """Point an alias at a version.

    Args:
        store: where.
        alias: which one; made when it is not there.
        number: of the version.
        expect: the version that it has to point at now, 0 for none; without it, whatever it points at.
        reason: why, for the journal.
        force: past the policy of a protected alias; needs a reason.
        live: what runs it.

    Raises:
        UnknownNameError: no such version.
        PolicyError: the alias is protected, and the version has no passing verdict.
        ConflictError: it does not point where it was expected to.
        IntegrityError: the version's files are missing.
        InputError: forced without a reason.
    """
    if force and not reason.strip():
        raise InputError("--force needs a --reason: the journal keeps it for whoever asks later.")
    version = store.resolve(Reference(alias.kind, alias.name, number))
    evidence = deciding_verdict(store, version.digest)
    if not force:
        check_policy(store, alias, version.digest, evidence)
    about = {"reason": reason, "forced": force, "evidence": None if evidence is None else evidence.to_json()}

    def check(ref: Ref | None) -> None:
        found = 0 if ref is None else ref.target.number
        if expect is not None and found != expect:
            said = f"at version {found}" if found else "not there"
            raise ConflictError(f"'{alias}' is {said}, not at {expect} as expected; nothing was moved. Look again.")

    return place(store, alias, version, "alias", about, check, live)


class Check(Protocol):
    """Looks at an alias under the lock, and raises when it is not to be moved."""

    def __call__(self, ref: Ref | None, /) -> None: ...


def place(
    store: Store,
    alias: Reference,
    version: Version,
    act: str,
    about: dict[str, Any],
    check: Check,
    live: Live | None,
    *,
    rehash: bool = False,
) -> Move:
    """Move an alias in the steps prepare, switch, confirm.

    Prepared: the version's files are there in full size (they are hashed when they are read, and now with ``rehash``).
    Switched: the journal has the intent and the alias's file is replaced. Confirmed: the journal has the commit. A
    process that is killed after the switch has moved it; the next writer confirms that.
    """
    _prepare(store, version, rehash)
    if live is not None:
        live.prepare(version)
    path = ref_path(store.root, alias)
    after = Target(version.number, version.digest)
    with store.writing() as journal:
        ref = store.ref(alias)
        check(ref)
        store.check_not_deleted(Reference(alias.kind, alias.name, version.number))  # which may have come in between
        before = None if ref is None else ref.target
        origin = None if ref is None else ref.target.to_json() | {"seq": ref.seq}
        intent = journal.begin(act, alias=str(alias), **{"from": origin}, to=after.to_json(), **about)
        old = None if ref is None else path.read_bytes()
        replace(path, ref_record(str(alias), after, intent.seq, intent.time), store.root / "tmp")
        if live is not None:
            try:
                live.switch(version)
                live.confirm(version)
            except BaseException as error:
                if old is None:
                    remove(path)
                else:
                    replace(path, old, store.root / "tmp")
                journal.abort(intent, f"not confirmed: {error}")
                raise
        journal.commit(intent)
    return Move(alias, before, after, intent.seq, about.get("evidence"))


def _prepare(store: Store, version: Version, rehash: bool) -> None:
    mend = "Nothing was moved. Fetch it back: engrain registry verify --repair --remote REMOTE."
    for digest, size in version.blobs.items():
        path = store.object_path(digest)
        if not is_whole(path, size):
            raise IntegrityError(f"'{version.reference}' lacks '{path}' ({size} bytes). {mend}")
        with reading(path):
            if rehash and measure(chunks(path))[0] != digest:
                raise IntegrityError(f"'{version.reference}' has '{path}', whose bytes were changed. {mend}")
