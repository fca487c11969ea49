"""Deleting: a tombstone with a reason. The number is never given again; `gc` may remove the bytes later."""

from engrain.core.errors import InputError
from engrain.registry.blob import replace
from engrain.registry.mark import aliases, tombstone_path, tombstone_record
from engrain.registry.reference import Reference
from engrain.registry.store import Store


def delete(store: Store, reference: Reference, reason: str) -> None:
    """Mark a version as deleted: it is not resolved or listed any more, the journal and its number stay.

    Raises:
        UnknownNameError: no such version, or it was deleted before.
        InputError: no number, no reason, or an alias points at it.
    """
    if reference.version is None:
        raise InputError(f"'{reference}' does not say which version; write KIND/NAME@VERSION.")
    if not reason.strip():
        raise InputError(f"Why is '{reference}' deleted? Give a --reason: the journal keeps it.")
    bury(store, reference, reason)


def bury(store: Store, reference: Reference, reason: str) -> None:
    """Put the tombstone; as `delete`, with a number and a reason that are known to be there."""
    kind, name, number = reference.kind, reference.name, reference.version
    assert number is not None
    with store.writing() as journal:
        line = store.line(reference)
        for alias in aliases(store.root, kind, name):
            ref = store.ref(alias)
            if ref is not None and ref.target.number == number:
                raise InputError(f"'{alias}' points at '{reference}'; move it first: engrain registry alias {alias} N.")
        what = f"{kind}/{name}"
        intent = journal.begin("delete", name=what, v=number, manifest=line.digest, reason=reason)
        path = tombstone_path(store.history(kind, name).folder, number)
        record = tombstone_record(what, number, reason, intent.seq, intent.time, str(intent.fields["actor"]))
        replace(path, record, store.root / "tmp")
        journal.commit(intent)
