"""What servers say in the journal of the versions that they ran."""

from engrain.registry.reference import Reference
from engrain.registry.store import Store


def note_served(store: Store, alias: Reference, before: int | None, after: int, problem: str | None = None) -> None:
    """Note that a server that follows an alias switched, or tried to.

    Args:
        store: where the alias is.
        alias: which one.
        before: the version that ran, or None.
        after: the version that it switched to.
        problem: why it went back to ``before``, in one line; None when ``after`` runs.
    """
    with store.writing() as journal:
        journal.note("serve", alias=str(alias), **{"from": before}, to=after, problem=problem)
