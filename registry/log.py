"""The journal as people read it: newest first, what was done, who did it, when, why and on which evidence."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engrain.registry.event import NOTES, Event
from engrain.registry.journal import Chain
from engrain.registry.reference import Reference

# What became of an event, by the act that ended it; one that nothing ended is open.
_OUTCOMES = {"commit": "done", "abort": "undone"}


@dataclass(frozen=True)
class Entry:
    """One event, and what became of it.

    Attributes:
        event: as the journal has it.
        outcome: done, undone, or open.
    """

    event: Event
    outcome: str

    @property
    def what(self) -> str:
        """What it was done to, in a phrase."""
        said = self.event.fields
        if self.event.act in ("alias", "rollback"):
            origin = "new" if said["from"] is None else f"@{said['from']['v']}"
            return f"{said['alias']}  {origin} -> @{said['to']['v']}"
        if self.event.act == "publish":
            return f"{said['name']}@{said['line']['v']}"
        if self.event.act == "delete":
            return f"{said['name']}@{said['v']}"
        if self.event.act == "gc":
            return f"{said['files']} files, {said['size']} bytes"
        if self.event.act == "serve":
            origin = "nothing" if said["from"] is None else f"@{said['from']}"
            problem = "" if said["problem"] is None else f"; it went back: {said['problem']}"
            return f"{said['alias']}  {origin} -> @{said['to']}{problem}"
        listed = [*said.get("names", ()), *said.get("aliases", ()), *said.get("files", ()), *said.get("faults", ())]
        return ", ".join(map(str, listed))

    def to_json(self) -> dict[str, Any]:
        """Return all that the journal says, and the outcome."""
        left_out = ("prev", "line", "registry")
        said = {key: value for key, value in self.event.fields.items() if key not in left_out}
        return said | {"what": self.what, "outcome": self.outcome}


def read_log(chain: Chain, reference: Reference | None = None) -> Iterator[Entry]:
    """Yield the entries about a name, a version or an alias, newest first; about everything when none is given."""
    for event in reversed(chain.events):
        if event.act in ("commit", "abort") or (reference is not None and not _concerns(event, reference)):
            continue
        outcome = "done" if event.act in NOTES else _OUTCOMES.get(chain.outcomes.get(event.seq, ""), "open")
        yield Entry(event, outcome)


def _concerns(event: Event, reference: Reference) -> bool:
    said = event.fields
    name = f"{reference.kind}/{reference.name}"
    if event.act in ("alias", "rollback"):
        ends = (said["to"], said["from"] or {})
        if reference.alias is not None:
            return bool(said["alias"] == str(reference))
        in_name = said["alias"].partition(":")[0] == name
        return in_name and (reference.version is None or any(end.get("v") == reference.version for end in ends))
    if event.act == "serve":
        followed = Reference.parse(said["alias"])
        in_alias = (followed.kind, followed.name) == (reference.kind, reference.name)
        in_alias = in_alias and reference.alias in (None, followed.alias)
        return in_alias and reference.version in (None, said["from"], said["to"])
    if reference.alias is not None:
        return str(reference) in said.get("aliases", {})
    if event.act in ("publish", "delete"):
        number = said["line"]["v"] if event.act == "publish" else said["v"]
        return said["name"] == name and reference.version in (None, number)
    return name in said.get("names", {})
