"""One published version, and its files."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engrain.core.errors import IntegrityError, UnknownNameError
from engrain.registry.blob import MEND, REHASH_LIMIT, chunks, is_whole, measure, reading
from engrain.registry.manifest import Parent, parents_of, parse_object, titled
from engrain.registry.reference import Reference

if TYPE_CHECKING:
    from engrain.registry.store import Store


@dataclass(frozen=True)
class Version:
    """One published version. Made by a `Store`, whose files it reads when asked.

    Attributes:
        kind: kind of the name.
        name: the name.
        number: counted from 1.
        digest: ``sha256:<64 hex>`` of the manifest's canonical bytes.
        created: when it was published, in UTC.
        provenance: digest of the statement on how it was made, or None.
        manifest: the parsed manifest, every field checked.
    """

    kind: str
    name: str
    number: int
    digest: str
    created: datetime
    provenance: str | None
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

    @property
    def blobs(self) -> dict[str, int]:
        """Size in bytes of every blob, by digest."""
        return {layer["digest"]: layer["size"] for layer in (self.manifest["config"], *self.manifest["layers"])}

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
            if size < REHASH_LIMIT and measure(chunks(path))[0] != layers[title]["digest"]:
                raise IntegrityError(f"'{path}' does not hold the bytes that its name says. {MEND}")
        return path
