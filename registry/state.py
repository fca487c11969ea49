"""What the journal says there should be: version lines, aliases, tombstones; the files can be written from it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rfc8785

from engrain.core.errors import InputError
from engrain.registry.event import Event
from engrain.registry.mark import Target, ref_path, ref_record, tombstone_path, tombstone_record
from engrain.registry.reference import Reference
from engrain.registry.sealed import seal

_MAX_LOST = 1_000_000  # versions between two events: a number made up may not take all memory


@dataclass
class Track:
    """Where an alias has been.

    Attributes:
        stack: what a roll back steps through, the present target last. A move puts one on top, a roll back takes off.
        every: all targets in the order of time, rolled back or not.
        seq, time: of the event that put it where it is.
    """

    stack: list[Target] = field(default_factory=list)
    every: list[Target] = field(default_factory=list)
    seq: int = 0
    time: str = ""

    def record(self, alias: str) -> bytes:
        """Return what the file of the alias holds."""
        return ref_record(alias, self.stack[-1], self.seq, self.time)


@dataclass
class State:
    """What the files of a registry must hold, by its journal.

    Attributes:
        lines: name, written ``KIND/NAME``, to its version lines, lowest first.
        tracks: alias, written ``KIND/NAME:ALIAS``, to where it has been.
        tombstones: name and number to what the file holds.
        registry: what registry.json holds, or empty when that is not known.
    """

    lines: dict[str, list[bytes]] = field(default_factory=dict)
    tracks: dict[str, Track] = field(default_factory=dict)
    tombstones: dict[tuple[str, int], bytes] = field(default_factory=dict)
    registry: bytes = b""


def replay(settled: Iterable[Event]) -> State:
    """Return the state after these events; one that does not say what it should counts for nothing."""
    state = State()
    for event in settled:
        try:
            _apply(state, event)
        except (AttributeError, InputError, KeyError, TypeError, ValueError):
            continue
    return state


def marks(state: State, root: Path) -> list[tuple[Path, bytes | None]]:
    """Return where an alias or a tombstone is or has to be, sorted, with what the file must hold; None: nothing.

    Raises:
        InputError: the journal names something that cannot be in a registry.
    """
    expected = {
        ref_path(root, Reference.parse(alias)): track.record(alias)
        for alias, track in state.tracks.items()
        if track.stack
    }
    for (what, number), record in state.tombstones.items():
        name = Reference.parse(what)
        expected[tombstone_path(root / "names" / name.kind / name.name, number)] = record
    found = {*(root / "refs").glob("*/*/*"), *(root / "names").glob("*/*/tombstones/*")}
    return [(path, expected.get(path)) for path in sorted(found | expected.keys())]


def _apply(state: State, event: Event) -> None:
    said = event.fields
    if event.act == "publish":
        _add_line(state, said["name"], said["line"])
    elif event.act == "adopt":
        if "registry" in said:
            state.registry = rfc8785.dumps(said["registry"]) + b"\n"
        for name, lines in said.get("names", {}).items():
            for line in lines:
                _add_line(state, name, line)
        for alias, placed in said.get("aliases", {}).items():
            _place(state, alias, None, Target.from_json(placed), placed["seq"], placed["time"])
        for stone in said.get("tombstones", []):
            state.tombstones[stone["name"], stone["v"]] = seal(stone)
    elif event.act in ("alias", "rollback"):
        before, after = said["from"], Target.from_json(said["to"])
        track = state.tracks.setdefault(said["alias"], Track())
        if (0 if before is None else before["seq"]) != track.seq:
            # An event between is lost: what lay below is not certain, the target just before is.
            track.stack = [] if before is None else [Target.from_json(before)]
        if event.act == "rollback":
            del track.stack[max(0, len(track.stack) - said["steps"] - 1) :]
        _place(state, said["alias"], track, after, event.seq, event.time)
    elif event.act == "delete":
        record = tombstone_record(said["name"], said["v"], said["reason"], event.seq, event.time, said["actor"])
        state.tombstones[said["name"], said["v"]] = record


def _add_line(state: State, name: str, fields: dict[str, Any]) -> None:
    lines = state.lines.setdefault(name, [])
    number = fields["v"]
    if number == len(lines) + 1:
        lines.append(seal(fields))
    elif number > len(lines) + _MAX_LOST:
        raise ValueError("no registry has lost so many")
    elif number > len(lines):  # the events of those between are lost
        lines += [b""] * (number - len(lines) - 1) + [seal(fields)]
    elif not lines[number - 1]:
        lines[number - 1] = seal(fields)


def _place(state: State, alias: str, track: Track | None, target: Target, seq: int, time: str) -> None:
    if track is None:  # adopted: what was before is not known
        every = state.tracks[alias].every if alias in state.tracks else []
        track = state.tracks[alias] = Track(every=every)
    track.stack.append(target)
    track.every.append(target)
    track.seq, track.time = seq, time
