"""What a writer does first: write registry.json where there is none, and settle what another left half done."""

import uuid
from typing import TYPE_CHECKING, Any

import rfc8785

from engrain.core.errors import IntegrityError
from engrain.registry.blob import read_now, sha256, write
from engrain.registry.event import Event
from engrain.registry.journal import Writer, now
from engrain.registry.manifest import parse_object
from engrain.registry.mark import read_tombstone
from engrain.registry.reference import KINDS, Reference

if TYPE_CHECKING:
    from engrain.registry.store import Store


def write_registry_file(store: "Store") -> None:
    """Write registry.json where there is none. Call under the lock."""
    path = store.root / "registry.json"
    if not path.exists():
        about: dict[str, Any] = {"format": 1, "id": uuid.uuid4().hex, "created": now()}
        raw = rfc8785.dumps(about) + b"\n"
        write(path, raw, sha256(raw), store.root / "tmp")


def settle(store: "Store", journal: Writer) -> None:
    """Finish or undo an interrupted act; give the journal that has nothing what is there. Call while writing.

    Raises:
        IntegrityError: a registry without a journal is damaged.
    """
    if (intent := journal.pending) is not None:
        if _took_place(store, intent):
            journal.commit(intent)
        else:
            journal.abort(intent, "interrupted")
    elif journal.empty:
        names = {
            f"{kind}/{name}": [line.fields for line in store.history(kind, name).lines()]
            for kind in KINDS
            for name in store.names(kind)
        }
        about = parse_object(read_now(store.root / "registry.json") or b"", "registry.json")
        journal.note("adopt", registry=about, names=names)


def _took_place(store: "Store", intent: Event) -> bool:
    said = intent.fields
    try:
        if intent.act == "publish":
            last = store.history(*said["name"].split("/")).last()
            return last is not None and last.fields == said["line"]
        if intent.act in ("alias", "rollback"):
            ref = store.ref(Reference.parse(said["alias"]))
            return ref is not None and ref.seq == intent.seq
        if intent.act == "delete":
            return read_tombstone(store.history(*said["name"].split("/")).folder, said["v"]) is not None
    except IntegrityError:
        pass  # what it wrote is damaged, and nobody was told of it: `verify` sets it right
    return False
