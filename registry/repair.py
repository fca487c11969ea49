"""`verify --repair`: what is damaged is written again, from the journal or from a remote; nothing is thrown away."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from engrain.core.errors import EngrainError, IntegrityError
from engrain.registry.audit import Problem, disk_names, set_aside
from engrain.registry.blob import make_folder, read_now, replace, write_pieces
from engrain.registry.event import REPAIR
from engrain.registry.journal import read_chain
from engrain.registry.mark import Target, check_stone
from engrain.registry.recovery import settle
from engrain.registry.reference import Reference
from engrain.registry.sealed import unseal
from engrain.registry.state import State, marks, replay
from engrain.registry.store import Store, writing_to

# Returns the pieces of what has a key like ``objects/sha256/ab/cdef...``, or None where there is no such thing.
Fetch = Callable[[str], Iterable[bytes] | None]


def repair(store: Store, problems: Iterable[Problem], fetch: Fetch | None) -> list[str]:
    """Mend what an audit found, as far as that can be done, and return what was done, one sentence each.

    Damaged lines of the journal stay where they are; a ``repair`` event names them, and the files that had been written
    from them are adopted. Names, aliases and tombstones are written again from the journal. Objects and manifests come
    from the remote, by their digest.

    Args:
        store: where.
        problems: what `audit` found.
        fetch: reads from a remote.

    Raises:
        InputError: the registry cannot be written.
    """
    done: list[str] = []
    with store.writing(forgive=True) as journal:
        chain = read_chain(store.root / "journal")
        if chain.faults:
            # What HEAD says is mended by the HEAD that this writes; the rest has to be known from now on.
            keys = [fault.key for fault in chain.faults if not fault.key.lower().startswith(("head", "seq"))]
            journal.note("repair", faults=keys)
            done += [f"The journal goes on after a fault: {fault.problem}" for fault in chain.faults]
        done += _registry_file(store, replay(chain.settled))
        settle(store, journal)
        state = replay(read_chain(store.root / "journal").settled)
        adopted: dict[str, Any] = {"names": {}, "aliases": {}, "tombstones": []}
        for name in sorted({f"{kind}/{name}" for kind, name in disk_names(store)} | state.lines.keys()):
            done += _lines(store, name, state.lines.get(name, []), adopted["names"])
        done += _marks(store, state, adopted)
        if any(adopted.values()):
            journal.note("adopt", **adopted)
            done.append("The journal adopted what it did not have: " + ", ".join(_named(adopted)) + ".")
    if fetch is not None:
        done += _fetched(store, problems, fetch)
    return done


def _registry_file(store: Store, state: State) -> list[str]:
    path = store.root / "registry.json"
    if not state.registry or _read(path) == state.registry:
        return []
    _keep(store, path)
    replace(path, state.registry, store.root / "tmp")
    return [f"'{path}' was written again from the journal."]


def _lines(store: Store, name: str, expected: list[bytes], adopted: dict[str, Any]) -> list[str]:
    kind, _, bare = name.partition("/")
    history = store.history(kind, bare)
    try:
        found = history.raw_lines()
    except EngrainError:
        found = []
    records: list[bytes] = []
    new: list[dict[str, Any]] = []
    for number in range(1, max(len(expected), len(found)) + 1):
        record = expected[number - 1] if number <= len(expected) else b""
        if not record:
            try:
                line = history.parse(found[number - 1], number)
            except (IndexError, IntegrityError):
                if number > len(expected):
                    break  # a damaged line that the journal never had: nobody was told of it
                return []  # lost in both; `audit` goes on saying so
            record = found[number - 1]
            new.append(line.fields)
        records.append(record)
    if new:
        adopted[name] = new
    whole = b"".join(record + b"\n" for record in records)
    if _read(history.path) == whole:
        return []
    _keep(store, history.path)
    replace(history.path, whole, store.root / "tmp")
    history.path.chmod(0o644)
    return [f"'{history.path}' was written again from the journal, with {len(records)} versions."]


def _marks(store: Store, state: State, adopted: dict[str, Any]) -> list[str]:
    """Write aliases and tombstones from the journal; intact ones that it does not know, or not yet, are adopted."""
    done = []
    for path, wanted in marks(state, store.root):
        if (raw := _read(path)) is not None and raw == wanted:
            continue
        fields = _intact(raw, path)
        known = 0 if wanted is None else int(unseal(wanted, "", "")["seq"])
        if fields is not None and fields["seq"] > known:
            if "alias" in fields:
                adopted["aliases"][fields["alias"]] = {key: fields[key] for key in ("v", "manifest", "seq", "time")}
            else:
                adopted["tombstones"].append(fields)
            continue
        if wanted is None:
            set_aside(store, path)
            done.append(f"'{path}' was not written by engrain, and was set aside.")
        else:
            _keep(store, path)
            replace(path, wanted, store.root / "tmp")
            done.append(f"'{path}' was written again from the journal.")
    return done


def _intact(raw: bytes | None, path: Path) -> dict[str, Any] | None:
    try:
        fields = unseal(raw or b"", str(path), REPAIR)
        kind, name = path.parts[-3:-1] if "alias" in fields else path.parts[-4:-2]
        if "alias" in fields:
            Target.from_json(fields)
            good = fields["alias"] == str(Reference(kind, name, alias=path.name)) and isinstance(fields["time"], str)
        else:
            check_stone(fields)
            good = fields["name"] == f"{kind}/{name}" and str(fields["v"]) == path.name
        return fields if good and type(fields["seq"]) is int and fields["seq"] > 0 else None
    except (AttributeError, EngrainError, KeyError, TypeError, ValueError):
        return None


def _fetched(store: Store, problems: Iterable[Problem], fetch: Fetch) -> list[str]:
    done = []
    for problem in problems:
        if problem.needs is None:
            continue
        key = problem.path.relative_to(store.root).as_posix()
        try:
            pieces = fetch(key)
            if pieces is None:
                done.append(f"The remote does not have {key}.")
                continue
            with writing_to(store.root):
                make_folder(problem.path.parent)
                whole = write_pieces(problem.path, pieces, problem.needs, store.root / "tmp")
        except EngrainError as error:
            done.append(f"{key} was not fetched: {error}")
            continue
        damaged = f"What the remote has as {key} is damaged too, and was not taken."
        done.append(f"{key} was fetched from the remote." if whole else damaged)
    return done


def _named(adopted: dict[str, Any]) -> list[str]:
    stones = [f"the tombstone of {stone['name']}@{stone['v']}" for stone in adopted["tombstones"]]
    return [*adopted["names"], *adopted["aliases"], *stones]


def _read(path: Path) -> bytes | None:
    try:
        return read_now(path)
    except EngrainError:
        return None


def _keep(store: Store, path: Path) -> None:
    """Put a damaged file where it can be looked at; a copy stays in its place until it is replaced."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_file() and not path.is_symlink():
        copy = path.with_name(path.name + ".damaged")
        shutil.copyfile(path, copy)
        set_aside(store, copy)
    else:
        set_aside(store, path)
