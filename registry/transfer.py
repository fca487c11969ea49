"""Push and pull: the objects that are missing on the other side, then the numbers, then the aliases.

Whatever is interrupted goes on where it was: objects that are there are not sent again, and a version is numbered only
when all of its objects are there. What arrives is hashed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engrain.core.errors import ConflictError, InputError, IntegrityError, PolicyError, UnknownNameError
from engrain.registry.alias import move_alias
from engrain.registry.blob import chunks, digest_of, is_whole, make_folder, measure, write_pieces
from engrain.registry.delete import bury
from engrain.registry.journal import read_chain
from engrain.registry.manifest import LINE_MEMBERS, TITLE_KEY, VersionLine
from engrain.registry.mark import Target, aliases, read_tombstone, ref_path, tombstone_path
from engrain.registry.reference import KINDS, Reference
from engrain.registry.remote import Remote
from engrain.registry.sealed import unseal
from engrain.registry.state import replay
from engrain.registry.store import Store, writing_to
from engrain.registry.tensors import SAFETENSORS_TYPE, check_tensors, refuse_pickle

_SMALL = 16 << 20  # bytes: no manifest, statement or record has as many
_DAMAGED = "The remote's copy is damaged; nothing was taken from it. Push it again from a registry that has it."


@dataclass
class Transfer:
    """What was done.

    Attributes:
        objects, size: objects and manifests that were copied, and their bytes.
        present: objects and manifests that were there already.
        versions: references of versions that were new on the other side.
        aliases: aliases that were made or moved there.
        remarks: what was left alone, and why.
    """

    objects: int = 0
    size: int = 0
    present: int = 0
    versions: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


Progress = Callable[[str], None]


def push(store: Store, remote: Remote, names: Sequence[Reference] = (), progress: Progress | None = None) -> Transfer:
    """Copy names with all of their versions, and their aliases, to a remote.

    An alias of the remote moves only if the alias here was once where that one is now.

    Args:
        store: from where.
        remote: to where.
        names: which; all when none are given.
        progress: is called with the reference of every version that is new on the other side.

    Raises:
        InputError: the remote cannot be written, or does not keep two writers apart.
        ConflictError: the remote has another version under the same number.
        IntegrityError: something here is damaged; it is not sent.
    """
    remote.check()
    done = Transfer()
    there = {key: size for room in ("objects/", "manifests/") for key, size in remote.list(room)}
    for name in _chosen(store, names):
        listed = {key for key, _ in remote.list(f"names/{name}/")}
        history = store.history(name.kind, name.name)
        for line, raw in zip(history.lines(), history.raw_lines(), strict=False):
            reference = str(Reference(name.kind, name.name, line.number))
            stone = tombstone_path(history.folder, line.number)
            deleted = stone.exists()
            for path, size in _objects(store, line, name.kind, deleted):
                _send(store, remote, path, size, there, done)
            key = f"names/{name}/versions/{line.number}"
            if key not in listed and remote.put(key, raw):
                done.versions.append(reference)
                if progress is not None:
                    progress(reference)
            else:
                _same(_small(remote, key) or b"", line, reference, remote)
            if deleted:
                remote.put(f"names/{name}/tombstones/{line.number}", stone.read_bytes())
        _push_aliases(store, remote, name, done)
    return done


def pull(store: Store, remote: Remote, names: Sequence[Reference] = (), progress: Progress | None = None) -> Transfer:
    """Copy names with all of their versions from a remote; aliases that are not here yet are made, others stay.

    The arguments are those of `push`, the other way round.

    Raises:
        InputError: the remote cannot be read.
        UnknownNameError: it has no such name.
        ConflictError: this registry has another version under the same number.
        IntegrityError: something there is damaged; it is not taken.
    """
    done = Transfer()
    offered = _offered(remote, names)
    for name, numbers in offered.items():
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            raise IntegrityError(f"'{remote.where}' lacks versions of '{name}'. Push it again from where they are.")
        for number in sorted(numbers):
            _pull_version(store, remote, Reference(name.kind, name.name, number), done, progress)
    # Last, when the verdicts that a protected alias asks for are there.
    for name in offered:
        _pull_aliases(store, remote, name, done)
    return done


def _chosen(store: Store, names: Sequence[Reference]) -> list[Reference]:
    if not names:
        return [Reference(kind, name) for kind in KINDS for name in store.names(kind)]
    for name in names:
        if name.version is not None or name.alias is not None:
            raise InputError(f"'{name}' is one version; names travel whole: write {name.kind}/{name.name}.")
        store.line(name)
    return list(names)


def _objects(store: Store, line: VersionLine, kind: str, deleted: bool) -> Iterable[tuple[Path, int]]:
    """Yield the files of a version, its manifest last, with their sizes."""
    path = store.manifest_path(line.digest)
    if deleted and not path.exists():
        return
    manifest = store.read_manifest(line.digest, kind)
    for layer in (manifest["config"], *manifest["layers"]):
        blob = store.object_path(layer["digest"])
        if blob.exists() or not deleted:
            yield blob, layer["size"]
    if line.provenance is not None:
        statement = store.object_path(line.provenance)
        yield statement, len(store.read(line.provenance))
    yield path, path.stat().st_size


def _send(store: Store, remote: Remote, path: Path, size: int, there: dict[str, int], done: Transfer) -> None:
    key = path.relative_to(store.root).as_posix()
    if key in there:
        if there[key] != size:
            raise IntegrityError(f"'{remote.where}' has '{key}' with {there[key]} bytes, not {size}. Remove it there.")
        done.present += 1
        return
    digest = digest_of(path)
    if not is_whole(path, size) or measure(chunks(path))[0] != digest:
        raise IntegrityError(f"'{path}' is damaged and was not sent. Mend it first: engrain registry verify --repair.")
    remote.put(key, path)
    there[key] = size
    done.objects, done.size = done.objects + 1, done.size + size


def _same(raw: bytes, line: VersionLine, reference: str, remote: Remote) -> None:
    if unseal(raw, f"'{reference}' in '{remote.where}'", _DAMAGED).get("manifest") != line.digest:
        raise _published_apart(reference, remote)


def _published_apart(reference: str, remote: Remote) -> ConflictError:
    return ConflictError(
        f"'{reference}' in '{remote.where}' is another version than here: both were published apart. Nothing of it was "
        f"copied; publish yours under another name."
    )


def _push_aliases(store: Store, remote: Remote, name: Reference, done: Transfer) -> None:
    tracks = replay(read_chain(store.root / "journal").settled).tracks
    for alias in aliases(store.root, name.kind, name.name):
        ref = store.ref(alias)
        if ref is None:
            continue
        key = f"refs/{name}/{alias.alias}"
        old = _small(remote, key)
        if old is not None:
            target = _target(old, alias, remote)
            if target == ref.target:
                continue
            if str(alias) not in tracks or target not in tracks[str(alias)].every:
                done.remarks.append(f"'{alias}' was left alone: at {target.number} there, it never was so here.")
                continue
        if not remote.swap(key, ref_path(store.root, alias).read_bytes(), old):
            raise ConflictError(f"'{alias}' was moved in '{remote.where}' meanwhile; it was left alone. Push again.")
        done.aliases.append(str(alias))


def _target(raw: bytes, alias: Reference, remote: Remote) -> Target:
    where = f"'{alias}' in '{remote.where}'"
    said = unseal(raw, where, _DAMAGED)
    try:
        if said["alias"] != str(alias):
            raise KeyError("alias")
        return Target.from_json(said)
    except (InputError, KeyError, TypeError) as error:
        raise IntegrityError(f"{where} is no alias. {_DAMAGED}") from error


def _small(remote: Remote, key: str) -> bytes | None:
    """Return a record of a remote, or None when there is none."""
    pieces = remote.get(key)
    return None if pieces is None else b"".join(_at_most(_SMALL, pieces, f"'{key}' in '{remote.where}'"))


def _at_most(size: int, pieces: Iterable[bytes], where: str) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > size:
            raise IntegrityError(f"{where} has more than {size} bytes. {_DAMAGED}")
        yield piece


def _offered(remote: Remote, names: Sequence[Reference]) -> dict[Reference, set[int]]:
    found: dict[Reference, set[int]] = {}
    for key, _ in remote.list("names/"):
        _, kind, name, what, number = key.split("/")
        if what == "versions" and kind in KINDS:
            found.setdefault(Reference(kind, name), set()).add(int(number))
    wanted = [Reference(name.kind, name.name) for name in names]
    for one in wanted:
        if one not in found:
            raise UnknownNameError(f"name in '{remote.where}' called", str(one), map(str, found))
    return {one: found[one] for one in wanted or sorted(found, key=str)}


def _pull_version(
    store: Store, remote: Remote, reference: Reference, done: Transfer, progress: Progress | None
) -> None:
    kind, name, number = reference.kind, reference.name, reference.version
    assert number is not None
    key = f"names/{kind}/{name}/versions/{number}"
    where = f"'{key}' in '{remote.where}'"
    said = unseal(_small(remote, key) or b"", where, _DAMAGED)
    try:
        # Of a stranger's line only what is known, so that nothing else gets into the journal here.
        line = VersionLine.from_fields({key: said[key] for key in LINE_MEMBERS if key in said}, number)
    except ValueError as error:
        raise IntegrityError(f"{where} is not the line of that version. {_DAMAGED}") from error
    history = store.history(kind, name)
    lines = history.raw_lines()
    if number <= len(lines):
        if history.parse(lines[number - 1], number).digest != line.digest:
            raise _published_apart(str(reference), remote)
    else:
        if progress is not None:
            progress(str(reference))
        deleted = _small(remote, f"names/{kind}/{name}/tombstones/{number}") is not None
        _take(store, remote, line, kind, deleted, done)
        with store.writing() as journal:
            last = history.last()
            if (0 if last is None else last.number) + 1 != number:
                raise ConflictError(f"'{kind}/{name}' was published to meanwhile; nothing is lost. Pull again.")
            _take(store, remote, line, kind, deleted, Transfer())  # again, now that no `gc` can be at it
            store.add_line(journal, kind, name, line.fields, remote=remote.where)
        done.versions.append(str(reference))
    _pull_tombstone(store, remote, reference, done)


def _take(store: Store, remote: Remote, line: VersionLine, kind: str, deleted: bool, done: Transfer) -> None:
    """Fetch the objects of a version that are not here: its manifest first, which says what the others are."""
    path = store.manifest_path(line.digest)
    if not _fetch(store, remote, path, None, done):
        if deleted:
            return
        raise IntegrityError(f"'{remote.where}' lacks the manifest {line.digest}. Push it again.")
    manifest = store.read_manifest(line.digest, kind)
    for layer in (manifest["config"], *manifest["layers"]):
        blob = store.object_path(layer["digest"])
        if not _fetch(store, remote, blob, layer["size"], done) and not deleted:
            raise IntegrityError(f"'{remote.where}' lacks the object {layer['digest']}. Push it again.")
        if blob.exists():
            where = f"'{layer['digest']}' in '{remote.where}'"
            refuse_pickle(layer.get("annotations", {}).get(TITLE_KEY, ""), blob, where)
            if layer["mediaType"] == SAFETENSORS_TYPE:
                check_tensors(blob, where)
    if line.provenance is not None:
        _fetch(store, remote, store.object_path(line.provenance), None, done)


def _fetch(store: Store, remote: Remote, path: Path, size: int | None, done: Transfer) -> bool:
    if path.is_file() and not path.is_symlink() and size in (None, path.stat().st_size):
        done.present += 1
        return True
    key = path.relative_to(store.root).as_posix()
    pieces = remote.get(key)
    if pieces is None:
        return False
    pieces = _at_most(_SMALL if size is None else size, pieces, f"'{key}' in '{remote.where}'")
    digest = digest_of(path)
    with writing_to(store.root):
        store.make_rooms()
        make_folder(path.parent)
        if not write_pieces(path, pieces, digest, store.root / "tmp"):
            raise IntegrityError(f"'{key}' in '{remote.where}' does not hold the bytes that its name says. {_DAMAGED}")
    done.objects, done.size = done.objects + 1, done.size + path.stat().st_size
    return True


def _pull_tombstone(store: Store, remote: Remote, reference: Reference, done: Transfer) -> None:
    number = reference.version
    assert number is not None
    key = f"names/{reference.kind}/{reference.name}/tombstones/{number}"
    folder = store.history(reference.kind, reference.name).folder
    if read_tombstone(folder, number) is None and (raw := _small(remote, key)) is not None:
        said = unseal(raw, f"'{key}' in '{remote.where}'", _DAMAGED)
        try:
            bury(store, reference, str(said.get("reason")).encode(errors="replace").decode())
        except InputError as error:  # an alias here points at it
            done.remarks.append(f"'{reference}' was deleted there, and stays here: {error}")


def _pull_aliases(store: Store, remote: Remote, name: Reference, done: Transfer) -> None:
    for key, _ in remote.list(f"refs/{name}/"):
        alias = Reference(name.kind, name.name, alias=key.rpartition("/")[2])
        target = _target(_small(remote, key) or b"", alias, remote)
        ref = store.ref(alias)
        if ref is not None:
            if ref.target != target:
                said = f"at version {ref.target.number} here and at {target.number} there"
                done.remarks.append(f"'{alias}' is {said}; it was left alone. To move it: engrain registry alias.")
            continue
        version = Reference(name.kind, name.name, target.number)
        try:
            store.check_not_deleted(version)
        except UnknownNameError as error:
            done.remarks.append(f"'{alias}' is on a deleted version in '{remote.where}', and was not made: {error}")
            continue
        if store.line(version).digest != target.digest:
            raise IntegrityError(f"'{key}' in '{remote.where}' points at another version. {_DAMAGED}")
        try:
            move_alias(store, alias, target.number, expect=0, reason=f"pulled from {remote.where}")
        except PolicyError as error:
            done.remarks.append(str(error))
        else:
            done.aliases.append(str(alias))
