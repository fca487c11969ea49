"""The store: what was published stays as it was, under a number that never means anything else.

::

    registry.json                               {"created", "format": 1, "id"}, written once, by the first publish
    objects/sha256/ab/cdef...                   blobs, read-only, the path is the sha256 of the bytes
    manifests/sha256/ab/cdef...                 OCI image manifests in canonical JSON (RFC 8785); the digest identifies
    names/<kind>/<name>/versions.jsonl          one line per version, only ever appended to
    names/<kind>/<name>/tombstones/<number>     a version that was deleted, and why
    refs/<kind>/<name>/<alias>                  what an alias points at
    journal/                                    who did what, when, why: see journal.py
    leases/                                     what running processes use
    quarantine/                                 damaged files that `verify` took out of the way
    tmp/                                        files being written; what lies here after a crash is rubbish
    locks/registry.lock                         held by a writer while it numbers a version or moves an alias

A line of ``versions.jsonl`` is ``{"actor", "manifest", "sha256", "time", "v"}`` in canonical JSON, and ``provenance``
where it is known: ``v`` counts from 1 without a gap, ``time`` is UTC with microseconds, ``sha256`` (bare hex) is
that of the line's other members. Bytes after the last line feed are a write that was cut off: readers pass over them,
the next writer removes them.

A manifest has neither time, user, machine, name nor number: the same content has the same digest everywhere. Its config
blob is the caller's config, no more. Parents stand in its annotation ``vnd.engrain.parents`` (absent when there are
none): canonical JSON of ``[{"digest", "role"}, ...]``, sorted by role, then digest, none twice. Content without files
has the one layer that OCI prescribes for that, the empty descriptor.

Readers take no lock: all they read is immutable, replaced whole, or ends at its last line feed. A registry that has no
journal yet, as those written before there was one, gets it at the first write. Needs POSIX.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from engrain.core.errors import InputError, IntegrityError, UnknownNameError
from engrain.core.names import NAME
from engrain.registry.blob import (
    MEND,
    fan_out,
    is_intact,
    is_whole,
    load,
    make_folder,
    read_now,
    reading,
    sha256,
    sync_folder,
    write,
)
from engrain.registry.history import History
from engrain.registry.journal import Writer, actor, now
from engrain.registry.manifest import Parent, VersionLine, check_manifest, parse_object
from engrain.registry.mark import Ref, aliases, read_ref, read_tombstone, tombstone_path
from engrain.registry.package import Package, pack
from engrain.registry.provenance import Provenance
from engrain.registry.recovery import settle, write_registry_file
from engrain.registry.reference import KINDS, MADE_BY, Reference, check_kind
from engrain.registry.version import Version

__all__ = ["Parent", "Store", "Version", "default_root"]

_FORMAT = 1


def default_root() -> Path:
    """Return the folder of the registry: ``$ENGRAIN_HOME``, else ``engrain`` in the user's data folder."""
    home = os.environ.get("ENGRAIN_HOME")
    return Path(home).expanduser().absolute() if home else platformdirs.user_data_path("engrain")


class Store:
    """Versions in a folder. Making a `Store` reads and creates nothing; a folder that is not there is an empty store.

    Law: what `publish` returns is what `resolve` of its reference returns, in every process, until the disk fails or
    the version is deleted.

    Every method raises InputError when the folder may not be read (in `publish`: written) or is of a newer format, and
    IntegrityError, naming the file, when something in it is not what was written.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = default_root() if root is None else root.absolute()

    def publish(
        self,
        kind: str,
        name: str,
        *,
        config: Mapping[str, Any],
        files: Mapping[str, bytes | Path],
        parents: Sequence[Parent] = (),
        media_types: Mapping[str, str] | None = None,
        provenance: Provenance | None = None,
    ) -> Version:
        """Store a version under the next number; content equal to the highest version's is that version.

        Args:
            kind: one of `KINDS`.
            name: matches ``[a-z][a-z0-9_-]{0,127}``.
            config: JSON data; no time, user or machine, or the same content gets another digest.
            files: title to bytes or to a regular file; titles are file names of letters, digits and ``._-``.
            parents: what it was made from; their order means nothing.
            media_types: title to media type; ``application/octet-stream`` for titles that are not in it.
            provenance: how it was made, kept beside the version and no part of its digest.

        Raises:
            UnknownNameError: no such kind, or a media type for a file that is not there.
            InputError: an argument breaks its rule, a file is a pickle, cannot be read or changes while it is read.
        """
        package = pack(kind, name, config, files, parents, media_types or {})
        if (same := self._highest_is(kind, name, package.digest)) is not None and self._has(package):
            return self._version(kind, name, same)
        statement = None if provenance is None else provenance.statement(f"{kind}/{name}", package.digest)
        if statement is not None:
            package = package.with_statement(statement)
        with writing_to(self.root):
            self.make_rooms()
            self.put(package, rehash=True)
            with self.writing() as journal:
                if (same := self._highest_is(kind, name, package.digest)) is not None:
                    return self._version(kind, name, same)
                self.put(package)  # again, now that no `gc` can be at it: only what is missing is written
                history = self.history(kind, name)
                fields = {"v": len(history.raw_lines()) + 1, "manifest": package.digest, "time": now()}
                fields |= {"actor": actor()} | ({} if statement is None else {"provenance": sha256(statement)})
                line = self.add_line(journal, kind, name, fields)
        return self._version(kind, name, line)

    def add_line(self, journal: Writer, kind: str, name: str, fields: dict[str, Any], **more: Any) -> VersionLine:
        """Number a version whose objects are there; ``more`` is noted with it. Call while `writing`.

        Raises:
            ConflictError: the lock does not work, and somebody else wrote meanwhile.
        """
        history = self.history(kind, name)
        history.last()  # damaged, it is nothing to append to
        intent = journal.begin("publish", name=f"{kind}/{name}", line=fields, **more)
        line = history.append(fields)
        journal.commit(intent)
        return line

    def resolve(self, reference: Reference | str, default_kind: str | None = None) -> Version:
        """Return the version that is meant; the highest one when neither a number nor an alias is given.

        Args:
            reference: the reference, or its text.
            default_kind: the kind of a text without one.

        Raises:
            UnknownNameError: there is no such kind, name, version or alias (the nearest one is offered), or the version
                was deleted.
            InputError: the text is not a reference.
        """
        if isinstance(reference, str):
            reference = Reference.parse(reference, default_kind)
        return self._version(reference.kind, reference.name, self.line(reference))

    def line(self, reference: Reference) -> VersionLine:
        """Return the version line that is meant, as `resolve` does; no manifest is read."""
        kind, name = reference.kind, reference.name
        history = self.history(kind, name)
        lines = history.raw_lines()
        if not lines:
            mend = f"Make one: engrain {MADE_BY[kind]} {name}." if kind in MADE_BY else ""
            raise UnknownNameError(kind, name, self.names(kind), mend)
        number = reference.version
        if reference.alias is not None:
            ref = read_ref(self.root, reference)
            if ref is None:
                known = [str(one) for one in aliases(self.root, kind, name)]
                mend = f"Write '{kind}/{name}' for the highest version or '{kind}/{name}@{len(lines)}' for that one."
                raise UnknownNameError(f"alias of '{kind}/{name}' called", str(reference.alias), known, mend)
            number = ref.target.number
        if number is None:
            number = self._highest(history, len(lines))
        if number > len(lines):
            raise UnknownNameError("version", str(reference), [f"{kind}/{name}@{n + 1}" for n in range(len(lines))])
        self.check_not_deleted(Reference(kind, name, number))
        return history.parse(lines[number - 1], number)

    def check_not_deleted(self, reference: Reference) -> None:
        """Refuse a version, given by its number, that has a tombstone.

        Raises:
            UnknownNameError: it has one; says when, who and why.
        """
        assert reference.version is not None
        folder = self.history(reference.kind, reference.name).folder
        if (stone := read_tombstone(folder, reference.version)) is not None:
            said = f"It was deleted on {stone['time'][:10]} by {stone['actor']}: {stone['reason']}"
            raise UnknownNameError("version", str(reference), (), f"{said} (See: engrain registry log.)")

    def ref(self, alias: Reference) -> Ref | None:
        """Return where an alias stands, or None when there is none."""
        self.check_format()
        return read_ref(self.root, alias)

    def aliases(self, kind: str, name: str) -> dict[str, Ref]:
        """Return the intact aliases of a name."""
        found = {}
        for alias in aliases(self.root, kind, name):
            try:
                ref = self.ref(alias)
            except IntegrityError:
                continue  # whoever resolves it hears what is wrong
            if ref is not None:
                found[str(alias.alias)] = ref
        return found

    def names(self, kind: str) -> list[str]:
        """Return the names of a kind that have a version, sorted.

        Raises:
            UnknownNameError: no such kind.
        """
        check_kind(kind)
        self.check_format()
        folder = self.root / "names" / kind
        with reading(folder):
            found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.exists() else []
        return [name for name in found if NAME.fullmatch(name) and self._has_versions(kind, name)]

    def versions(self, kind: str, name: str) -> list[Version]:
        """Return the versions of a name that were not deleted, lowest first; none when there is no such name.

        Raises:
            UnknownNameError: no such kind.
            InputError: not a name.
        """
        history = self.history(kind, name)
        lines = [line for line in history.lines() if read_tombstone(history.folder, line.number) is None]
        return [self._version(kind, name, line) for line in lines]

    def find(self, digest: str, kinds: Sequence[str] = KINDS) -> Reference | None:
        """Return the lowest version that has this manifest, of the first name in the order of the alphabet, or None.

        One that was deleted is returned only if there is no other.
        """
        needle, deleted = digest.encode(), None
        for kind in kinds:
            for name in self.names(kind):
                history = self.history(kind, name)
                for number, raw in enumerate(history.raw_lines(), 1):
                    if needle in raw:
                        found = Reference(kind, name, number)
                        if not tombstone_path(history.folder, number).exists():
                            return found
                        deleted = deleted or found
        return deleted

    def read(self, digest: str) -> bytes:
        """Return the blob or the manifest of a digest, hashed again.

        Raises:
            InputError: not a digest.
            IntegrityError: the bytes are not in the store, or not what the digest says.
        """
        self.check_format()
        manifest = self.manifest_path(digest)
        return load(manifest if manifest.exists() else self.object_path(digest), digest)

    def read_manifest(self, digest: str, kind: str) -> dict[str, Any]:
        """Return the manifest of a digest, every field checked.

        Raises:
            IntegrityError: it is missing, changed, or not a manifest of that kind.
        """
        path = self.manifest_path(digest)
        raw = load(path, digest)
        manifest = parse_object(raw, f"'{path}'")
        try:
            check_manifest(manifest, raw, kind)
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"'{path}' is not a manifest of kind '{kind}': {error}. {MEND}") from error
        return manifest

    def object_path(self, digest: str) -> Path:
        """Return where the blob of a checked digest belongs; nothing is read, it need not be there."""
        return fan_out(self.root / "objects", digest)

    def manifest_path(self, digest: str) -> Path:
        """Return where the manifest of a checked digest belongs; it need not be there."""
        return fan_out(self.root / "manifests", digest)

    def history(self, kind: str, name: str) -> History:
        """Return the history of a checked name; nothing but the format is read.

        Raises:
            InputError: not a name, or a newer format.
        """
        Reference(kind, name)
        self.check_format()
        return History(self.root / "names" / kind / name)

    def check_format(self) -> None:
        """Refuse a registry of a newer format.

        Raises:
            InputError: it is of one.
            IntegrityError: registry.json is damaged.
        """
        path = self.root / "registry.json"
        if (raw := read_now(path)) is None:
            return
        found = parse_object(raw, f"'{path}'").get("format")
        if type(found) is not int or found < 1:
            raise IntegrityError(f"'{path}' does not say which format the registry has. Restore it from a copy.")
        if found > _FORMAT:
            mend = "Upgrade engrain, or set ENGRAIN_HOME to another folder; nothing was changed."
            raise InputError(f"The registry '{self.root}' has format {found}, this engrain reads {_FORMAT}. {mend}")

    @contextmanager
    def writing(self, *, forgive: bool = False) -> Iterator[Writer]:
        """Hold the writer's lock; what another writer left half done is finished or undone first.

        Args:
            forgive: as in `Writer`; nothing is finished or undone then.

        Raises:
            InputError: the folder cannot be written.
            IntegrityError: the end of the journal is damaged.
        """
        with writing_to(self.root):
            self.make_rooms()
            # 10 ms instead of filelock's 50: the work under the lock takes a few.
            with FileLock(self.root / "locks" / "registry.lock").acquire(poll_interval=0.01):
                write_registry_file(self)
                journal = Writer(self.root / "journal", self.root / "tmp", forgive=forgive)
                if not forgive:
                    settle(self, journal)
                yield journal

    def make_rooms(self) -> None:
        """Make the folders that every writer needs."""
        for folder in ("tmp", "locks"):
            make_folder(self.root / folder)

    def put(self, package: Package, *, rehash: bool = False) -> None:
        """Store the objects of a package that are not there in full; ``rehash`` also mends those that were changed."""
        for layer, source in package.blobs:
            self._put(self.object_path(layer["digest"]), source, layer["digest"], layer["size"], rehash)
        self._put(self.manifest_path(package.digest), package.raw, package.digest, len(package.raw), rehash)

    def _has(self, package: Package) -> bool:
        """Return whether all objects of a package are there and, up to the size that is hashed, unchanged."""
        objects = [(self.object_path(layer["digest"]), layer["digest"], layer["size"]) for layer, _ in package.blobs]
        objects.append((self.manifest_path(package.digest), package.digest, len(package.raw)))
        return all(is_intact(*one) for one in objects)

    def _put(self, path: Path, source: bytes | Path, digest: str, size: int, rehash: bool) -> None:
        if is_intact(path, digest, size) if rehash else is_whole(path, size):
            # Whoever wrote it may have been killed before this, and a version line is about to rely on it.
            sync_folder(path.parent)
        else:
            make_folder(path.parent)
            write(path, source, digest, self.root / "tmp")

    def _highest(self, history: History, number: int) -> int:
        highest = number
        while highest > 1 and read_tombstone(history.folder, highest) is not None:
            highest -= 1
        # All of them deleted: the highest one's tombstone says why.
        return highest if read_tombstone(history.folder, highest) is None else number

    def _highest_is(self, kind: str, name: str, digest: str) -> VersionLine | None:
        history = self.history(kind, name)
        last = history.last()
        same = last is not None and last.digest == digest and read_tombstone(history.folder, last.number) is None
        return last if same else None

    def _has_versions(self, kind: str, name: str) -> bool:
        try:
            return self.history(kind, name).last() is not None  # None in the folder of a publish that was cut off
        except IntegrityError:
            return True  # one damaged name must not hide the others; whoever resolves it hears what is wrong

    def _version(self, kind: str, name: str, line: VersionLine) -> Version:
        manifest = self.read_manifest(line.digest, kind)
        return Version(kind, name, line.number, line.digest, line.created, line.provenance, manifest, self)


@contextmanager
def writing_to(root: Path) -> Iterator[None]:
    """Turn what the system says while a registry is written into what to do about it.

    Raises:
        InputError: the disk is full, or the caller may not write there.
    """
    try:
        yield
    except OSError as error:
        mend = "Set ENGRAIN_HOME to a folder that you may write to, on a disk with room; what was there is safe."
        raise InputError(f"The registry '{root}' cannot be written ({error.strerror or error}). {mend}") from error
