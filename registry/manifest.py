"""What a version is made of, as canonical JSON in the shape of an OCI image manifest; and the line that numbers it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import rfc8785

from engrain.core.errors import InputError, IntegrityError
from engrain.core.names import NAME
from engrain.registry.blob import MEND, content, measure
from engrain.registry.reference import check_digest
from engrain.registry.sealed import unseal

_REBUILD = "Rebuild it from the journal: engrain registry verify --repair."
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
TITLE_KEY = "org.opencontainers.image.title"
PARENTS_KEY = "vnd.engrain.parents"
TITLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
LINE_MEMBERS = ("actor", "manifest", "provenance", "time", "v")  # of a version line, besides its seal
MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


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


@dataclass(frozen=True)
class VersionLine:
    """One line of a name's versions.jsonl.

    Attributes:
        number: of the version.
        digest: of its manifest.
        created: when it was published, in UTC.
        provenance: digest of the statement on how it was made, or None.
        fields: all that the line says.
    """

    number: int
    digest: str
    created: datetime
    provenance: str | None
    fields: dict[str, Any]

    @classmethod
    def parse(cls, raw: bytes, path: Path, number: int) -> "VersionLine":
        """Read the line, which has to be the one of that number.

        Raises:
            IntegrityError: it is not, or it was changed; names the file and the line.
        """
        where = f"'{path}', line {number}"
        try:
            return cls.from_fields(unseal(raw, where, _REBUILD), number)
        except ValueError as error:
            raise IntegrityError(f"{where} is damaged, or not version {number}. {_REBUILD}") from error

    @classmethod
    def from_fields(cls, fields: dict[str, Any], number: int) -> "VersionLine":
        """Read what a line says.

        Raises:
            ValueError: it is not the line of that version.
        """
        try:
            check_digest(fields["manifest"])
            provenance = fields.get("provenance")
            if provenance is not None:
                check_digest(provenance)
            created = datetime.fromisoformat(fields["time"])
            good = type(fields["v"]) is int and fields["v"] == number >= 1 and created.tzinfo is not None
            str.encode(fields.get("actor", ""))  # text that can be written again
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise ValueError("not a version line") from error
        if not good:
            raise ValueError("not the line of that number")
        return cls(number, fields["manifest"], created, provenance, fields)
