"""What was done to the registry, in order: append-only lines, each sealed and holding the seal of the one before.

::

    journal/events.jsonl   {"act", "actor", "prev", "seq", "sha256", "time", ...}, seq counted from 1 without a gap
    journal/HEAD           {"last", "seq", "sha256", "size", "time"}: the seal and the end of the last settled event

An act is an intent (``publish``, ``alias``, ``rollback``, ``delete``, ``gc``), then its effects, then ``commit`` or
``abort`` with ``of``, the intent's seq. An intent at the end without either was interrupted; the next writer finishes
or undoes it. A note (`NOTES`) has no effect outside of the journal. Order is by ``seq``: a clock may go backwards.

HEAD is replaced after every settled event, so that lines cut off at the end are missed. Bytes after the last line feed
are a write that was cut off, unless HEAD counts them. A whole line whose seq was there before lost a race: it is void.
"""

import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engrain.core.errors import IntegrityError
from engrain.registry.blob import append_line, make_folder, open_regular, read_now, reading, replace, sha256
from engrain.registry.event import ENDS, NOTES, REPAIR, Event
from engrain.registry.sealed import digest_of, seal, unseal

_FIRST = "0" * 64  # what the first event has for the seal of the one before


@dataclass(frozen=True)
class Fault:
    """Something wrong with the journal.

    Attributes:
        key: what a ``repair`` names to say that it is known.
        problem: one sentence.
    """

    key: str
    problem: str


@dataclass(frozen=True)
class Chain:
    """A journal as it was read.

    Attributes:
        events: the good ones, in order.
        outcomes: seq of an intent to ``commit`` or ``abort``; one that is missing is open or was interrupted.
        faults: what is wrong and no ``repair`` knows of.
        remarks: what is odd, and no fault.
    """

    events: tuple[Event, ...]
    outcomes: Mapping[int, str]
    faults: tuple[Fault, ...]
    remarks: tuple[str, ...]

    @property
    def settled(self) -> list[Event]:
        """The events that took place: notes and committed acts."""
        return [event for event in self.events if event.act in NOTES or self.outcomes.get(event.seq) == "commit"]


def now() -> str:
    """Return the time in UTC, with microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def actor() -> str:
    """Return who works here."""
    try:
        return getpass.getuser().encode(errors="replace").decode()
    except (OSError, KeyError):  # a container's user without a line in passwd
        return f"uid {os.getuid()}"


def read_head(folder: Path) -> tuple[int, str, int] | None:
    """Return seq and seal of the last settled event and the size of the journal then, or None when there is no HEAD.

    Raises:
        IntegrityError: it is damaged.
    """
    path = folder / "HEAD"
    raw = read_now(path)
    if raw is None:
        return None
    fields = unseal(raw, f"'{path}'", REPAIR)
    seq, last, size = (fields.get(key) for key in ("seq", "last", "size"))
    if type(seq) is not int or type(size) is not int or min(seq, size) < 0 or not isinstance(last, str):
        raise IntegrityError(f"'{path}' is not the head of a journal. {REPAIR}")
    return seq, last, size


def read_chain(folder: Path) -> Chain:
    """Read the whole journal, passing over what is damaged.

    Raises:
        InputError: it may not be read.
        IntegrityError: it is not a regular file.
    """
    faults: list[Fault] = []
    remarks: list[str] = []
    # HEAD first: the journal may grow in between, and must not seem shorter than it.
    try:
        head = read_head(folder)
        headless = head is None
    except IntegrityError as error:
        head, headless = None, False
        faults.append(Fault("HEAD", str(error)))
    path = folder / "events.jsonl"
    lines = (read_now(path) or b"").split(b"\n")[:-1]
    events = _follow(lines, path, faults, remarks)
    last = events[-1].seq if events else 0
    if head is not None and head[0] > last:
        missing = f"{last + 1} to {head[0]}"
        faults.append(Fault(f"seq {missing}", f"'{path}' lacks its last events, {missing}."))
    elif head is not None and all((event.seq, event.seal) != head[:2] for event in events):
        faults.append(Fault(f"head {head[0]}", f"'{folder / 'HEAD'}' names an event {head[0]} that is not there."))
    elif headless and sum(event.ends for event in events) > 1:
        faults.append(Fault("HEAD", f"'{folder / 'HEAD'}' is missing."))
    known = {key for event in events if event.act == "repair" for key in event.fields.get("faults", [])}
    remarks += [f"known since a repair: {fault.problem}" for fault in faults if fault.key in known]
    outcomes = {event.fields["of"]: event.act for event in events if event.act in ENDS and "of" in event.fields}
    unknown = tuple(fault for fault in faults if fault.key not in known)
    return Chain(tuple(events), outcomes, unknown, tuple(remarks))


def _follow(lines: list[bytes], path: Path, faults: list[Fault], remarks: list[str]) -> list[Event]:
    events: list[Event] = []
    broken = False
    for number, raw in enumerate(lines, 1):
        where = f"'{path}', line {number}"
        try:
            event = Event.parse(raw, where)
        except IntegrityError as error:
            faults.append(Fault(sha256(raw), str(error)))
            broken = True
            continue
        last, before = (events[-1].seq, events[-1].seal) if events else (0, _FIRST)
        if event.seq <= last:
            remarks.append(f"{where} lost a race for number {event.seq}, and counts for nothing.")
            continue
        if not broken and event.act != "repair" and (event.seq, event.fields["prev"]) != (last + 1, before):
            faults.append(Fault(f"before {event.seq}", f"{where} does not follow the one before it."))
        if events and event.time < events[-1].time:
            remarks.append(f"{where}: the clock went backwards; the order is that of the lines, nothing is wrong.")
        events.append(event)
        broken = False
    return events


class Writer:
    """Appends to a journal. Made and used under the lock of the registry.

    Args:
        folder: of the journal.
        temporary_folder: on the same file system.
        forgive: stand behind whatever is damaged; the next event has to be a ``repair`` that names it.

    Attributes:
        pending: the intent at the end that was interrupted, or None.

    Raises:
        IntegrityError: the end of the journal is damaged, so that nothing can follow it.
    """

    def __init__(self, folder: Path, temporary_folder: Path, *, forgive: bool = False) -> None:
        self._folder, self._temporary = folder, temporary_folder
        self._path = folder / "events.jsonl"
        try:
            head = read_head(folder)
        except IntegrityError:
            head = None  # the whole journal says the same; the next event replaces it
        self._seq, self._seal, self._size = head or (0, _FIRST, 0)
        self.pending: Event | None = None
        if forgive:
            self._stand_behind_damage()
            return
        try:
            self._follow_head()
        except IntegrityError:
            # A line long ago may be damaged: where the last one is intact, what comes next can follow it.
            if not self._stand_behind_damage():
                raise

    @property
    def empty(self) -> bool:
        """Whether nothing was ever noted."""
        return self._seq == 0

    def begin(self, act: str, **fields: Any) -> Event:
        """Write an intent; its effects come after this, then `commit` or `abort`."""
        return self._append(act, fields)

    def commit(self, intent: Event) -> None:
        """Note that an intent's effects are all there."""
        self._append("commit", {"of": intent.seq})
        self._settle()

    def abort(self, intent: Event, reason: str) -> None:
        """Note that an intent has no effects."""
        self._append("abort", {"of": intent.seq, "reason": reason})
        self._settle()

    def note(self, act: str, **fields: Any) -> None:
        """Write what has no effects to wait for."""
        assert act in NOTES
        self._append(act, fields)
        self._settle()

    def _follow_head(self) -> None:
        behind = False
        for raw in self._rest():
            event = Event.parse(raw, f"'{self._path}', at byte {self._size}")
            self._size += len(raw) + 1
            if event.seq <= self._seq:
                continue
            if (event.seq, event.fields["prev"]) != (self._seq + 1, self._seal) and event.act != "repair":
                raise IntegrityError(f"'{self._path}': event {event.seq} does not follow the one before it. {REPAIR}")
            self._seq, self._seal = event.seq, event.seal
            self.pending = None if event.ends else event
            behind = True
        if behind and self.pending is None:
            self._settle()

    def _rest(self) -> list[bytes]:
        """Return the whole lines after the one that HEAD names."""
        with reading(self._path):
            try:
                stream = open_regular(self._path)
            except FileNotFoundError:
                size, rest = 0, b""
            else:
                with stream:
                    size = os.fstat(stream.fileno()).st_size
                    stream.seek(self._size)
                    rest = stream.read(max(size - self._size, 0))
        if size < self._size:
            raise IntegrityError(f"'{self._path}' lacks its last events: {size} bytes, not {self._size}. {REPAIR}")
        return rest.split(b"\n")[:-1]

    def _stand_behind_damage(self) -> bool:
        """Take the last intact event for the end; return whether it is the last line, and not before HEAD."""
        raw = read_now(self._path) or b""
        if raw and not raw.endswith(b"\n"):
            # Even what is left of a line is kept: ended, it is one more line that a repair names.
            whole = raw.rfind(b"\n") + 1
            append_line(self._path, whole, raw[whole:])
            raw += b"\n"
        events = read_chain(self._folder).events
        whole_chain = bool(events) and events[-1].seq >= self._seq
        if whole_chain:
            self._seq, self._seal = events[-1].seq, events[-1].seal
            self.pending = None if events[-1].ends else events[-1]
        self._size = len(raw)
        last = raw[:-1].rpartition(b"\n")[2]
        return whole_chain and f'"sha256":"{self._seal}"'.encode() in last

    def _append(self, act: str, fields: Mapping[str, Any]) -> Event:
        said = {"act": act, "actor": actor(), "prev": self._seal, "seq": self._seq + 1, "time": now(), **fields}
        raw = seal(said)
        make_folder(self._folder)
        append_line(self._path, self._size, raw)
        event = Event(self._seq + 1, act, digest_of(raw), said)
        self._seq, self._seal, self._size = event.seq, event.seal, self._size + len(raw) + 1
        self.pending = None if event.ends else event
        return event

    def _settle(self) -> None:
        said = {"last": self._seal, "seq": self._seq, "size": self._size, "time": now()}
        replace(self._folder / "HEAD", seal(said), self._temporary)
