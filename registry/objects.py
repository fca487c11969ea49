"""Object stores as remotes (S3, Google Cloud Storage, Azure and what speaks like them), through obstore."""

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engrain.core.errors import InputError
from engrain.registry.remote import KEY, check_key

if TYPE_CHECKING:
    from obstore.store import ObjectStore


class ObjectRemote:
    """A bucket and a prefix. Credentials come from where the store's own tools take them (``AWS_...`` and so on).

    Args:
        url: as ``s3://bucket/prefix``.

    Raises:
        InputError: obstore is not installed, or does not know such a URL.
    """

    def __init__(self, url: str, store: "ObjectStore | None" = None) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            mend = "pip install 'engrain[objects]'"
            raise InputError(f"'{url}' is in an object store, which needs the package obstore: {mend}.") from error
        self._obstore = obstore
        self._url = url
        with self._reaching():
            self._store = from_url(url) if store is None else store

    @property
    def where(self) -> str:
        """Its URL."""
        return self._url

    def check(self) -> None:
        """Try the conditions that keep two writers apart, on a key of their own.

        Raises:
            InputError: the store does not honor them.
        """
        key = f"check/{uuid.uuid4().hex}"
        with self._reaching():
            try:
                kept = self.put(key, b"1") and not self.put(key, b"2")
                kept = kept and self.swap(key, b"2", b"1") and not self._overwrite(key, b"3", '"0"')
                kept = kept and b"".join(self.get(key) or ()) == b"2"
            finally:
                self._obstore.delete(self._store, key)
        if not kept:
            raise InputError(
                f"'{self._url}' does not honor conditional writes, so that two writers could overwrite each other; "
                f"nothing was pushed. Use a store that does, as S3, R2, GCS, Azure or MinIO, or a folder."
            )

    def get(self, key: str) -> Iterable[bytes] | None:
        """See `Remote`."""
        with self._reaching():
            try:
                found = self._obstore.get(self._store, check_key(key))
            except FileNotFoundError:
                return None
        return self._pieces(found)

    def put(self, key: str, source: bytes | Path) -> bool:
        """See `Remote`."""
        with self._reaching():
            try:
                # Not in parts: a condition on an upload in parts is not honored everywhere. 5 GB is the limit then.
                self._obstore.put(self._store, check_key(key), source, mode="create", use_multipart=False)
            except (self._obstore.exceptions.AlreadyExistsError, self._obstore.exceptions.PreconditionError):
                return False
        return True

    def swap(self, key: str, raw: bytes, expect: bytes | None) -> bool:
        """See `Remote`."""
        if expect is None:
            return self.put(key, raw)
        with self._reaching():
            try:
                found = self._obstore.get(self._store, check_key(key))
            except FileNotFoundError:
                return False
            e_tag = found.meta["e_tag"]
            if bytes(found.bytes()) != expect or e_tag is None:
                return False
            return self._overwrite(key, raw, e_tag)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """See `Remote`."""
        with self._reaching():
            for batch in self._obstore.list(self._store, prefix.rstrip("/")):
                for found in batch:
                    if KEY.fullmatch(found["path"]):
                        yield found["path"], found["size"]

    def _overwrite(self, key: str, raw: bytes, e_tag: str) -> bool:
        errors = self._obstore.exceptions
        try:
            self._obstore.put(self._store, key, raw, mode={"e_tag": e_tag}, use_multipart=False)
        except (errors.PreconditionError, errors.AlreadyExistsError, FileNotFoundError):
            return False
        return True

    def _pieces(self, found: Any) -> Iterator[bytes]:
        with self._reaching():
            for piece in found.stream():
                yield bytes(piece)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            said = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            raise InputError(f"The remote '{self._url}' cannot be used: {said}") from error
