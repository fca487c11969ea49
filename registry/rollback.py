"""Back to what an alias pointed at before: a new event, in which nothing is removed from the history."""

from engrain.core.errors import ConflictError, InputError, IntegrityError, UnknownNameError
from engrain.registry.alias import Live, Move, place
from engrain.registry.blob import read_now
from engrain.registry.event import NOTES, Event
from engrain.registry.mark import Ref, Target, aliases
from engrain.registry.reference import Reference
from engrain.registry.state import Track, replay
from engrain.registry.store import Store


def roll_back(
    store: Store,
    alias: Reference,
    *,
    steps: int = 1,
    to: int | None = None,
    reason: str = "",
    rehash: bool = False,
    live: Live | None = None,
) -> Move:
    """Point an alias at what it pointed at before.

    Moves form a stack: a move puts a target on top, a roll back takes off. Two roll backs go back two moves; what was
    taken off comes back by moving the alias there. A protected alias does not ask for a verdict again: what it goes
    back to was let in before, and the evidence of then is noted.

    Args:
        store: where.
        alias: which one.
        steps: how many moves to take off.
        to: instead, take off until the alias points at this version.
        reason: why, for the journal.
        rehash: hash the files of the version to go back to; without it, only that they are there in full size is
            checked, and they are hashed when they are loaded.
        live: what runs it.

    Raises:
        UnknownNameError: no such alias, or the version to go back to was deleted.
        InputError: it was not there before, or not so many moves ago.
        ConflictError: somebody moved it meanwhile.
        IntegrityError: the journal lacks moves of it, or the version's files are missing, or changed (``rehash``).
    """
    _present(store, alias)
    with store.writing():
        pass  # a move that was interrupted is settled first: its alias may be ahead of the journal
    ref = _present(store, alias)
    events = alias_events(store, alias)
    track = replay(events).tracks.get(str(alias), Track())
    stack = track.stack
    if not stack or track.seq != ref.seq:
        raise IntegrityError(
            f"The journal lacks moves of '{alias}', so that what was before is not certain; it stays at version "
            f"{ref.target.number}. Name the version: engrain registry alias {alias} VERSION --force --reason TEXT."
        )
    if to is not None:
        places = [depth for depth, target in enumerate(reversed(stack)) if target.number == to and depth]
        if not places:
            raise InputError(f"'{alias}' was not at version {to} before {_was_at(stack)}. {_mend(alias)}")
        steps = places[0]
    if steps < 1:
        raise InputError(f"--steps is {steps}; a roll back goes back 1 step or more.")
    if steps >= len(stack):
        raise InputError(f"'{alias}' cannot go back {steps} {_was_at(stack)}. {_mend(alias)}")
    target = stack[-1 - steps]
    version = store.resolve(Reference(alias.kind, alias.name, target.number))
    about = {"reason": reason, "steps": steps, "evidence": _evidence(events, target)}

    def check(found: Ref | None) -> None:
        if found != ref:
            raise ConflictError(f"'{alias}' was moved meanwhile; nothing was rolled back. Look again.")

    return place(store, alias, version, "rollback", about, check, live, rehash=rehash)


def _present(store: Store, alias: Reference) -> Ref:
    ref = store.ref(alias)
    if ref is None:
        known = [str(one) for one in aliases(store.root, alias.kind, alias.name)]
        raise UnknownNameError("alias", str(alias), known, _mend(alias))
    return ref


def alias_events(store: Store, alias: Reference) -> list[Event]:
    """Return the settled events that moved an alias, oldest first; the other lines of the journal are not looked at."""
    path = store.root / "journal" / "events.jsonl"
    raw = read_now(path) or b""
    # Quotes in a text are escaped, so that only a member or a key is found.
    needle = f'"{alias}"'.encode()
    found = []
    place = raw.find(needle)
    while place >= 0:
        end = raw.find(b"\n", place)
        if end < 0:
            break  # a write that was cut off
        try:
            event = Event.parse(raw[raw.rfind(b"\n", 0, place) + 1 : end], f"'{path}'")
        except IntegrityError:
            pass  # the events around it say that it is missing
        else:
            if event.act in NOTES or _committed(raw, end + 1, event):
                found.append(event)
        place = raw.find(needle, end)
    return found


def _committed(raw: bytes, after: int, event: Event) -> bool:
    place = raw.find(f'"of":{event.seq},'.encode(), after)
    if place < 0:
        return False
    line = raw[raw.rfind(b"\n", 0, place) + 1 : raw.find(b"\n", place)]
    # A commit follows its intent; that of another is not for a line of the same number that lost a race.
    return b'"act":"commit"' in line and f'"prev":"{event.seal}"'.encode() in line


def _evidence(events: list[Event], target: Target) -> object:
    for event in reversed(events):
        if event.fields.get("to") == target.to_json():
            return event.fields.get("evidence")
    return None


def _was_at(stack: list[Target]) -> str:
    before = ", ".join(str(target.number) for target in reversed(stack[:-1][-10:]))
    return f"(it was at: {before})" if before else "(it was nowhere before)"


def _mend(alias: Reference) -> str:
    return f"It was not moved. Any version: engrain registry alias {alias} VERSION."
