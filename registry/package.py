"""What is about to be published: its blobs, described and measured, and the manifest that names them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engrain.core.errors import InputError, UnknownNameError
from engrain.registry.blob import sha256
from engrain.registry.manifest import (
    EMPTY_TYPE,
    MEDIA_TYPE,
    PARENTS_KEY,
    TITLE,
    TITLE_KEY,
    Parent,
    canonical,
    describe,
    frame,
)
from engrain.registry.reference import Reference
from engrain.registry.tensors import SAFETENSORS_TYPE, check_tensors, refuse_pickle

_STATEMENT_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class Package:
    """Content and its manifest.

    Attributes:
        digest: of the manifest.
        raw: the manifest's canonical bytes.
        blobs: descriptors, each with where its bytes are.
    """

    digest: str
    raw: bytes
    blobs: tuple[tuple[dict[str, Any], bytes | Path], ...]

    def with_statement(self, statement: bytes) -> "Package":
        """Return it with a statement that is stored beside it; its digest is the same."""
        return replace(self, blobs=(*self.blobs, (describe(statement, _STATEMENT_TYPE), statement)))


def pack(
    kind: str,
    name: str,
    config: Mapping[str, Any],
    files: Mapping[str, bytes | Path],
    parents: Sequence[Parent],
    media_types: Mapping[str, str],
) -> Package:
    """Measure what is to be published; see `Store.publish` for the arguments.

    Raises:
        UnknownNameError: no such kind, or a media type for a file that is not there.
        InputError: an argument breaks its rule, a file is a pickle or cannot be read.
    """
    what = str(Reference(kind, name))
    for title in media_types.keys() - files.keys():
        raise UnknownNameError(f"file of '{what}' to give a media type called", title, files)
    raw_config = canonical(dict(config), what)
    config_layer = describe(raw_config, f"application/vnd.engrain.{kind}.config.v1+json")
    blobs: list[tuple[dict[str, Any], bytes | Path]] = []
    for title in sorted(files):
        media_type = media_types.get(title, "application/octet-stream")
        if not TITLE.fullmatch(title):
            raise InputError(f"'{what}' has a file titled {title!r}; a title is a name: {TITLE.pattern}.")
        if not MEDIA_TYPE.fullmatch(media_type):
            raise InputError(f"'{what}', file '{title}': {media_type!r} is not a media type like 'text/plain'.")
        where = f"'{what}', file '{title}'"
        refuse_pickle(title, files[title], where)
        if media_type == SAFETENSORS_TYPE:
            check_tensors(files[title], where)
        blobs.append((describe(files[title], media_type) | {"annotations": {TITLE_KEY: title}}, files[title]))
    if not files:
        blobs.append((describe(b"{}", EMPTY_TYPE), b"{}"))
    manifest = frame(kind) | {"config": config_layer, "layers": [layer for layer, _ in blobs]}
    if parents:
        edges = sorted({(parent.role, parent.digest) for parent in parents})
        listed = canonical([{"role": role, "digest": digest} for role, digest in edges], what)
        manifest["annotations"] = {PARENTS_KEY: listed.decode()}
    raw = canonical(manifest, what)
    blobs.insert(0, (config_layer, raw_config))
    return Package(sha256(raw), raw, tuple(blobs))
