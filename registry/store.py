"""The store: what was published stays as it was, under a number that never means anything else.

::

    registry.json                               {"created", "format": 1, "id"}, written once, by the first publish
    objects/sha256/ab/cdef...                   blobs, read-only, the path is the sha256 of the bytes
    manifests/sha256/ab/cdef...                 OCI image manifests in canonical JSON (RFC 8785); the digest identifies
    names/<kind>/<name>/versions.jsonl          one line per version, only ever appended to
    tmp/                                        files being written; what lies here after a crash is rubbish
    locks/registry.lock                         held by a writer while it numbers a version

A line of ``versions.jsonl`` is ``{"actor", "manifest", "sha256", "time", "v"}`` in canonical JSON: ``v`` counts from 1
without a gap, ``time`` is UTC with microseconds, ``sha256`` (bare hex) is that of the line's other members in canonical
JSON. Bytes after the last line feed are a write that was cut off: readers pass over them, the next writer removes them.

A manifest has neither time, user, machine, name nor number: the same content has the same digest everywhere. Its config
blob is the caller's config, no more. Parents stand in its annotation ``vnd.engrain.parents`` (absent when there are
none): canonical JSON of ``[{"digest", "role"}, ...]``, sorted by role, then digest, none twice. Content without files
has the one layer that OCI prescribes for that, the empty descriptor.

Readers take no lock: all they read is immutable, replaced whole, or ends at its last line feed. Needs POSIX.
"""

import errno
import getpass
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import platformdirs
import rfc8785
from filelock import FileLock

from engrain.core.errors import InputError, IntegrityError, UnknownNameError
from engrain.registry.blob import (
    MEND,
    chunks,
    fan_out,
    is_whole,
    load,
    make_folder,
    measure,
    read_now,
    reading,
    sha256,
    sync_folder,
    write,
)
from engrain.registry.manifest import (
    EMPTY_TYPE,
    MEDIA_TYPE,
    PARENTS_KEY,
    TITLE,
    TITLE_KEY,
    Parent,
    VersionLine,
    canonical,
    check_manifest,
    describe,
    frame,
    parents_of,
    parse_object,
    titled,
)
from engrain.registry.reference import NAME, Reference, check_kind

__all__ = ["Parent", "Store", "Version", "default_root"]

_FORMAT = 1
_REHASH_LIMIT = 256 << 20  # bytes; sha256 runs at 1 GB/s or more, so asking for a path costs at most 0.3 s


@dataclass(frozen=True)
class Version:
    """One published version. Made by a `Store`, whose files it reads when asked.

    Attributes:
        kind: kind of the name.
        name: the name.
        number: counted from 1.
        digest: ``sha256:<64 hex>`` of the manifest's canonical bytes.
        created: when it was published, in UTC.
        manifest: the parsed manifest, every field checked.
    """

    kind: str
    name: str
    number: int
    digest: str
    created: datetime
    manifest: dict[str, Any] = field(compare=False, repr=False)
    store: "Store" = field(compare=False, repr=False)

    @property
    def reference(self) -> str:
        """``KIND/NAME@NUMBER``."""
        return str(Reference(self.kind, self.name, self.number))

    @property
    def parents(self) -> tuple[Parent, ...]:
        """What it was made from, sorted by role, then digest."""
        return parents_of(self.manifest)

    @property
    def config(self) -> dict[str, Any]:
        """The config that it was published with; whole floats have become integers, as canonical JSON has it.

        Raises:
            IntegrityError: the stored bytes are missing, changed or not a JSON object.
        """
        raw = self.store.read(self.manifest["config"]["digest"])
        return parse_object(raw, f"The config of '{self.reference}'")

    def path(self, title: str) -> Path:
        """Return where the file ``title`` lies, read-only, under the name of its digest.

        The size is checked always, the bytes when there are fewer than 256 MiB of them.

        Raises:
            UnknownNameError: the version has no such file.
            IntegrityError: the stored bytes are missing or changed.
        """
        layers = titled(self.manifest)
        if title not in layers:
            raise UnknownNameError(f"file in '{self.reference}' called", title, layers)
        path, size = self.store.object_path(layers[title]["digest"]), layers[title]["size"]
        with reading(path):
            if not is_whole(path, size):
                raise IntegrityError(f"'{path}' is not a file of {size} bytes, as its manifest says. {MEND}")
            if size < _REHASH_LIMIT and measure(chunks(path))[0] != layers[title]["digest"]:
                raise IntegrityError(f"'{path}' does not hold the bytes that its name says. {MEND}")
        return path


def default_root() -> Path:
    """Return the folder of the registry: ``$ENGRAIN_HOME``, else ``engrain`` in the user's data folder."""
    home = os.environ.get("ENGRAIN_HOME")
    return Path(home).expanduser().absolute() if home else platformdirs.user_data_path("engrain")


class Store:
    """Versions in a folder. Making a `Store` reads and creates nothing; a folder that is not there is an empty store.

    Law: what `publish` returns is what `resolve` of its reference returns, in every process, until the disk fails.

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
    ) -> Version:
        """Store a version under the next number; content equal to the highest version's is that version.

        Args:
            kind: one of `KINDS`.
            name: matches ``[a-z][a-z0-9_-]{0,127}``.
            config: JSON data; no time, user or machine, or the same content gets another digest.
            files: title to bytes or to a regular file; titles are file names of letters, digits and ``._-``.
            parents: what it was made from; their order means nothing.
            media_types: title to media type; ``application/octet-stream`` for titles that are not in it.

        Raises:
            UnknownNameError: no such kind, or a media type for a file that is not there.
            InputError: an argument breaks its rule, a file cannot be read or changes while it is read.
        """
        what = str(Reference(kind, name))
        media_types = media_types or {}
        for title in media_types.keys() - files.keys():
            raise UnknownNameError(f"file of '{what}' to give a media type called", title, files)
        raw_config = canonical(dict(config), what)
        config_layer = describe(raw_config, f"application/vnd.engrain.{kind}.config.v1+json")
        blobs: list[tuple[dict[str, Any], bytes | Path]] = [(config_layer, raw_config)]
        for title in sorted(files):
            media_type = media_types.get(title, "application/octet-stream")
            if not TITLE.fullmatch(title):
                raise InputError(f"'{what}' has a file titled {title!r}; a title is a name: {TITLE.pattern}.")
            if not MEDIA_TYPE.fullmatch(media_type):
                raise InputError(f"'{what}', file '{title}': {media_type!r} is not a media type like 'text/plain'.")
            layer = describe(files[title], media_type) | {"annotations": {TITLE_KEY: title}}
            blobs.append((layer, files[title]))
        if not files:
            blobs.append((describe(b"{}", EMPTY_TYPE), b"{}"))
        manifest = frame(kind) | {"config": config_layer, "layers": [layer for layer, _ in blobs[1:]]}
        if parents:
            edges = sorted({(parent.role, parent.digest) for parent in parents})
            listed = canonical([{"role": role, "digest": digest} for role, digest in edges], what)
            manifest["annotations"] = {PARENTS_KEY: listed.decode()}
        raw = canonical(manifest, what)
        digest = sha256(raw)
        history = self._history(kind, name)
        if history and history[-1].digest == digest:
            return self._version(kind, name, history[-1])
        with _writing(self.root):
            self._found()
            for layer, source in blobs:
                self._put(self.object_path(layer["digest"]), source, layer["digest"], layer["size"])
            self._put(self._manifest_path(digest), raw, digest, len(raw))
            with self._lock():
                line = self._append(kind, name, digest)
        return self._version(kind, name, line)

    def resolve(self, reference: Reference | str, default_kind: str | None = None) -> Version:
        """Return the version that is meant; the highest one when neither a number nor an alias is given.

        Args:
            reference: the reference, or its text.
            default_kind: the kind of a text without one.

        Raises:
            UnknownNameError: there is no such kind, name, version or alias; the nearest one is offered.
            InputError: the text is not a reference.
        """
        if isinstance(reference, str):
            reference = Reference.parse(reference, default_kind)
        kind, name = reference.kind, reference.name
        history = self._history(kind, name)
        if not history:
            raise UnknownNameError(kind, name, self.names(kind))
        if reference.alias is not None:
            mend = f"Write '{kind}/{name}' for the highest version or '{kind}/{name}@{len(history)}' for exactly that."
            raise UnknownNameError(f"alias of '{kind}/{name}' called", reference.alias, (), mend)
        number = reference.version or len(history)
        if number > len(history):
            known = [f"{kind}/{name}@{line.number}" for line in history]
            raise UnknownNameError("version", str(reference), known)
        return self._version(kind, name, history[number - 1])

    def names(self, kind: str) -> list[str]:
        """Return the names of a kind that have a version, sorted.

        Raises:
            UnknownNameError: no such kind.
        """
        check_kind(kind)
        self._check_format()
        folder = self.root / "names" / kind
        with reading(folder):
            found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.exists() else []
        return [name for name in found if NAME.fullmatch(name) and self._has_versions(kind, name)]

    def versions(self, kind: str, name: str) -> list[Version]:
        """Return the versions of a name, lowest first; none when there is no such name.

        Raises:
            UnknownNameError: no such kind.
            InputError: not a name.
        """
        return [self._version(kind, name, line) for line in self._history(kind, name)]

    def read(self, digest: str) -> bytes:
        """Return the blob or the manifest of a digest, hashed again.

        Raises:
            InputError: not a digest.
            IntegrityError: the bytes are not in the store, or not what the digest says.
        """
        self._check_format()
        manifest = self._manifest_path(digest)
        return load(manifest if manifest.exists() else self.object_path(digest), digest)

    def object_path(self, digest: str) -> Path:
        """Return where the blob of a checked digest belongs; nothing is read, it need not be there."""
        return fan_out(self.root / "objects", digest)

    def _manifest_path(self, digest: str) -> Path:
        return fan_out(self.root / "manifests", digest)

    def _history_path(self, kind: str, name: str) -> Path:
        return self.root / "names" / kind / name / "versions.jsonl"

    def _check_format(self) -> None:
        path = self.root / "registry.json"
        if (raw := read_now(path)) is None:
            return
        found = parse_object(raw, f"'{path}'").get("format")
        if type(found) is not int or found < 1:
            raise IntegrityError(f"'{path}' does not say which format the registry has. Restore it from a copy.")
        if found > _FORMAT:
            mend = "Upgrade engrain, or set ENGRAIN_HOME to another folder."
            raise InputError(f"The registry '{self.root}' has format {found}, this engrain reads {_FORMAT}. {mend}")

    def _lines(self, kind: str, name: str) -> list[bytes]:
        """Return the whole lines of a name's history, without their line feeds."""
        path = self._history_path(kind, name)
        if path.parent.is_symlink():
            raise IntegrityError(f"'{path.parent}' is a symbolic link, which a name never is. Put the folder there.")
        return (read_now(path) or b"").split(b"\n")[:-1]

    def _has_versions(self, kind: str, name: str) -> bool:
        try:
            return bool(self._lines(kind, name))  # none in the folder of a first publish that was cut off
        except IntegrityError:
            return True  # one damaged name must not hide the others; whoever resolves it hears what is wrong

    def _history(self, kind: str, name: str) -> list[VersionLine]:
        Reference(kind, name)
        self._check_format()
        path = self._history_path(kind, name)
        return [VersionLine.parse(raw, path, number) for number, raw in enumerate(self._lines(kind, name), 1)]

    def _version(self, kind: str, name: str, line: VersionLine) -> Version:
        path = self._manifest_path(line.digest)
        raw = load(path, line.digest)
        manifest = parse_object(raw, f"'{path}'")
        try:
            check_manifest(manifest, raw, kind)
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"'{path}' is not a manifest of kind '{kind}': {error}. {MEND}") from error
        return Version(kind, name, line.number, line.digest, line.created, manifest, self)

    def _lock(self) -> AbstractContextManager[object]:
        # 10 ms instead of filelock's 50: the work under the lock takes about 1 ms.
        return FileLock(self.root / "locks" / "registry.lock").acquire(poll_interval=0.01)

    def _found(self) -> None:
        """Make the folders and registry.json of a store that has none."""
        for folder in ("tmp", "locks"):
            make_folder(self.root / folder)
        path = self.root / "registry.json"
        if not path.exists():
            with self._lock():
                if not path.exists():
                    about: dict[str, Any] = {"format": _FORMAT, "id": uuid.uuid4().hex, "created": _now()}
                    raw = rfc8785.dumps(about) + b"\n"
                    write(path, raw, sha256(raw), self.root / "tmp")

    def _put(self, path: Path, source: bytes | Path, digest: str, size: int) -> None:
        """Store content under its digest, unless a file of that digest and size is there."""
        if is_whole(path, size):
            # Whoever wrote it may have been killed before this, and a version line is about to rely on it.
            sync_folder(path.parent)
        else:
            make_folder(path.parent)
            write(path, source, digest, self.root / "tmp")

    def _append(self, kind: str, name: str, digest: str) -> VersionLine:
        """Give a manifest the next number, unless the highest has it already. Call under the lock."""
        history = self._history(kind, name)
        if history and history[-1].digest == digest:
            return history[-1]
        path = self._history_path(kind, name)
        make_folder(path.parent)
        line: dict[str, Any] = {"v": len(history) + 1, "manifest": digest, "time": _now(), "actor": _actor()}
        raw = rfc8785.dumps(line | {"sha256": sha256(rfc8785.dumps(line))[7:]})
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        try:
            whole = sum(len(kept) + 1 for kept in self._lines(kind, name))
            if os.fstat(handle).st_size != whole:
                os.ftruncate(handle, whole)
            if os.write(handle, raw + b"\n") <= len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(handle)
        finally:
            os.close(handle)
        sync_folder(path.parent)
        return VersionLine.parse(raw, path, len(history) + 1)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        mend = "Set ENGRAIN_HOME to a folder that you may write to, on a disk with room."
        raise InputError(f"The registry '{root}' cannot be written ({error.strerror or error}). {mend}") from error


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _actor() -> str:
    try:
        return getpass.getuser().encode(errors="replace").decode()
    except (OSError, KeyError):  # a container's user without an line in passwd
        return f"uid {os.getuid()}"
