"""How stored things are referred to: by people with ``KIND/NAME@VERSION``, by each other with digests.

The second half is the manifest, which is nothing but references: digests of a config, of files and of parents.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import rfc8785

from engrain.core.errors import InputError, IntegrityError, UnknownNameError

KINDS = ("vector", "task-vector", "verdict", "dataset", "profile")

NAME = re.compile(r"[a-z][a-z0-9_-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,14}")  # 15 digits: every such number is exact in JSON (below 2**53)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
TITLE_KEY = "org.opencontainers.image.title"
PARENTS_KEY = "vnd.engrain.parents"
TITLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
MEND = "Restore it from a copy."
_CHUNK = 1 << 20
_GRAMMAR = "Write KIND/NAME, KIND/NAME@VERSION or KIND/NAME:ALIAS, for example vector/brevity@3."


def check_kind(kind: str) -> None:
    """Refuse a kind that is not one of `KINDS`.

    Raises:
        UnknownNameError: no such kind; the nearest one is offered.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)


def check_digest(digest: str) -> None:
    """Refuse what is not written as a digest, whatever its type, before it becomes part of a path.

    Raises:
        InputError: not ``sha256:`` and 64 hex digits in lower case.
    """
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InputError(f"Digest {digest!r} is not 'sha256:' and 64 hex digits; take one from Version.digest.")


def fan_out(folder: Path, digest: str) -> Path:
    """Return ``folder/sha256/ab/cdef...``; raises InputError when it is not a digest."""
    check_digest(digest)
    return folder / "sha256" / digest[7:9] / digest[9:]


@dataclass(frozen=True)
class Reference:
    """One version of a name, or the highest version when neither a number nor an alias is given.

    Law: ``Reference.parse(str(r)) == r`` for every reference that can be made.

    Attributes:
        kind: one of `KINDS`.
        name: matches ``[a-z][a-z0-9_-]{0,127}``.
        version: counted from 1, at most 15 digits.
        alias: matches as a name does; never together with a version.

    Raises:
        UnknownNameError: the kind is not one of `KINDS`.
        InputError: another field breaks its rule.
    """

    kind: str
    name: str
    version: int | None = None
    alias: str | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind)
        problem = None
        if not NAME.fullmatch(self.name):
            problem = f"the name {self.name!r} does not match {NAME.pattern}"
        elif self.alias is not None and not NAME.fullmatch(self.alias):
            problem = f"the alias {self.alias!r} does not match {NAME.pattern}"
        elif self.version is not None and not _VERSION.fullmatch(str(self.version)):
            problem = f"the version {self.version} is not a whole number from 1 to 999999999999999"
        elif self.version is not None and self.alias is not None:
            problem = "it has both a version and an alias"
        if problem is not None:
            raise InputError(f"Reference {str(self)!r}: {problem}. {_GRAMMAR}")

    @classmethod
    def parse(cls, text: str, default_kind: str | None = None) -> "Reference":
        """Read a reference as people write it.

        Args:
            text: the reference; the part ``KIND/`` may be left out when there is a default kind.
            default_kind: the kind of a bare ``NAME``, ``NAME@VERSION`` or ``NAME:ALIAS``.

        Raises:
            UnknownNameError: the kind is not one of `KINDS`; the nearest one is offered.
            InputError: anything else about the text is wrong.
        """
        # Line breaks and control characters end here, so that no later message spreads over several lines.
        if not text.isprintable():
            raise InputError(f"Reference {text!r}: it has characters that cannot be printed. {_GRAMMAR}")
        if "/" in text:
            kind, _, rest = text.partition("/")
        elif default_kind is not None:
            kind, rest = default_kind, text
        else:
            raise InputError(f"Reference {text!r}: the kind is missing. {_GRAMMAR}")
        name, at, number = rest.partition("@")
        if at:
            if not _VERSION.fullmatch(number):
                problem = f"the version {number!r} is not a whole number from 1, without leading zeros"
                raise InputError(f"Reference {text!r}: {problem}. {_GRAMMAR}")
            return cls(kind, name, version=int(number))
        name, colon, alias = rest.partition(":")
        return cls(kind, name, alias=alias if colon else None)

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.kind}/{self.name}@{self.version}"
        return f"{self.kind}/{self.name}" + (f":{self.alias}" if self.alias is not None else "")


@dataclass(frozen=True)
class Parent:
    """What a version was made from.

    Attributes:
        role: what the parent was for (``pairs``, ``vector``); matches ``[a-z][a-z0-9_-]{0,127}``.
        digest: of the parent's manifest, ``sha256:<64 hex>``; it need not be in the same store.

    Raises:
        InputError: a field breaks its rule.
    """

    role: str
    digest: str

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or not NAME.fullmatch(self.role):
            raise InputError(f"Parent role {self.role!r} does not match {NAME.pattern}; write for example 'pairs'.")
        check_digest(self.digest)


def sha256(raw: bytes) -> str:
    """Return the digest of ``raw``, ``sha256:<64 hex>``."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def canonical(value: Any, what: str) -> bytes:
    """Return ``value`` as canonical JSON (RFC 8785).

    Raises:
        InputError: it is not JSON data; ``what`` says whose it is.
    """
    try:
        return rfc8785.dumps(value)
    except (ValueError, RecursionError) as error:
        mend = "Use finite numbers, text, lists and dicts with text keys; whole numbers below 2**53."
        raise InputError(f"'{what}' holds something that JSON cannot ({error}). {mend}") from error


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """Return the stored JSON object in ``raw``.

    Raises:
        IntegrityError: it is none; ``where`` opens the message.
    """
    try:
        value = json.loads(raw, parse_int=_number)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{where} is not JSON. {MEND}") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{where} is not a JSON object. {MEND}")
    return value


def _number(digits: str) -> int | float:
    # Canonical JSON writes 1e20 as an integer; read as one, it could not be written again.
    value = float(digits)
    return int(digits) if abs(value) < 2**53 else value


def open_regular(path: Path) -> BinaryIO:
    """Open a file for unbuffered reading, unless it is a link, a folder, or anything that could block.

    Raises:
        OSError: it is, or it cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, not the file itself", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(handle, "rb", buffering=0)


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a regular file, 1 MiB at a time.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path) as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def content(source: bytes | Path) -> Iterator[bytes]:
    """Yield what a caller wants stored, in pieces.

    Raises:
        InputError: it is a path that cannot be read.
    """
    if isinstance(source, bytes):
        yield source
        return
    try:
        yield from chunks(source)
    except OSError as error:
        raise InputError(f"'{source}' cannot be read ({error.strerror}). Give a regular file of yours.") from error


def measure(pieces: Iterable[bytes]) -> tuple[str, int]:
    """Return the digest and the number of all the bytes."""
    hasher, size = hashlib.sha256(), 0
    for piece in pieces:
        hasher.update(piece)
        size += len(piece)
    return "sha256:" + hasher.hexdigest(), size


def describe(source: bytes | Path, media_type: str) -> dict[str, Any]:
    """Return the OCI descriptor of content: media type, digest and size in bytes.

    Raises:
        InputError: it is a path that cannot be read.
    """
    digest, size = measure(content(source))
    return {"mediaType": media_type, "digest": digest, "size": size}


def frame(kind: str) -> dict[str, Any]:
    """Return the members that all manifests of a kind share."""
    artifact_type = f"application/vnd.engrain.{kind}.v1+json"
    return {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": artifact_type}


def titled(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the layers that are files, by title."""
    return {layer["annotations"][TITLE_KEY]: layer for layer in manifest["layers"] if "annotations" in layer}


def parents_of(manifest: Mapping[str, Any]) -> tuple[Parent, ...]:
    """Return what stands in the annotation of the parents."""
    edges = json.loads(manifest.get("annotations", {}).get(PARENTS_KEY, "[]"))
    return tuple(Parent(edge["role"], edge["digest"]) for edge in edges)


def check_manifest(manifest: Mapping[str, Any], raw: bytes, kind: str) -> None:
    """Refuse a manifest in which anything that is ever read is not of the form that publishing writes.

    Raises:
        ValueError: what is wrong, as the end of a sentence.
    """
    # Of a key given twice another program may read the other one; canonical bytes have one meaning.
    if rfc8785.dumps(dict(manifest)) != raw:
        raise ValueError("it is not canonical JSON")
    for key, value in frame(kind).items():
        if manifest.get(key) != value:
            raise ValueError(f"{key} is not {value!r}")
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not layers:
        raise ValueError("layers is not a list of descriptors")
    for layer in (manifest.get("config"), *layers):
        if not _is_descriptor(layer):
            raise ValueError("a descriptor lacks a media type, a digest or a size")
    try:
        titles = titled(manifest)
        untitled = sum(layer["mediaType"] == EMPTY_TYPE and "annotations" not in layer for layer in layers)
        good = all(TITLE.fullmatch(title) for title in titles) and len(titles) + untitled == len(layers)
    except (KeyError, TypeError):
        good = False
    if not good:
        raise ValueError("a file lacks a title of its own")
    try:
        parents_of(manifest)
    except (InputError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError("its parents are not a list of roles and digests") from error


def _is_descriptor(layer: Any) -> bool:
    try:
        check_digest(layer["digest"])
        return type(layer["size"]) is int and layer["size"] >= 0 and bool(MEDIA_TYPE.fullmatch(layer["mediaType"]))
    except (InputError, KeyError, TypeError):
        return False


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says about a file of the store into what to do about it.

    Raises:
        InputError: the caller may not read it.
        IntegrityError: it is missing or broken.
    """
    try:
        yield
    except (PermissionError, NotADirectoryError) as error:
        mend = "Set ENGRAIN_HOME to a folder of yours."
        raise InputError(f"'{path}' cannot be read ({error.strerror}). {mend}") from error
    except OSError as error:
        raise IntegrityError(f"'{path}' cannot be read ({error.strerror}). {MEND}") from error


def is_whole(path: Path, size: int) -> bool:
    """Return whether a regular file of that size is there; its bytes are not read."""
    return not path.is_symlink() and path.is_file() and path.stat().st_size == size


def load(path: Path, digest: str) -> bytes:
    """Return the bytes of a stored file, hashed again.

    Raises:
        InputError: the caller may not read it.
        IntegrityError: it is missing, or not what the digest says.
    """
    with reading(path):
        raw = b"".join(chunks(path))
    if sha256(raw) != digest:
        raise IntegrityError(f"'{path}' does not hold the bytes that its name says. {MEND}")
    return raw


def read_now(path: Path) -> bytes | None:
    """Return a small file that may be appended to meanwhile, or None when there is none.

    Raises:
        InputError: the caller may not read it.
        IntegrityError: it is not a regular file.
    """
    with reading(path):
        try:
            with open_regular(path) as stream:
                # One read: between two, a writer may replace a cut-off line, and the halves would not fit.
                return stream.read(os.fstat(stream.fileno()).st_size)
        except FileNotFoundError:
            return None


@dataclass(frozen=True)
class VersionLine:
    """One line of a name's versions.jsonl: the number, the manifest's digest, and when that was, in UTC."""

    number: int
    digest: str
    created: datetime

    @classmethod
    def parse(cls, raw: bytes, path: Path, number: int) -> "VersionLine":
        """Read the line, which has to be the one of that number.

        Raises:
            IntegrityError: it is not, or it was changed; names the file and the line.
        """
        where = f"'{path}', line {number}"
        fields = parse_object(raw, where)
        seal = fields.pop("sha256", None)
        try:
            check_digest(fields["manifest"])
            created = datetime.fromisoformat(fields["time"])
            good = type(fields["v"]) is int and fields["v"] == number and created.tzinfo is not None
            good = good and sha256(rfc8785.dumps(fields)) == f"sha256:{seal}"
        except (InputError, KeyError, TypeError, ValueError, RecursionError):
            good = False
        if not good:
            raise IntegrityError(f"{where} is damaged, or not version {number}. Restore the file from a copy.")
        return cls(number, fields["manifest"], created)
