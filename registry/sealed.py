"""Small records that carry their own digest: version lines, journal lines, aliases, tombstones.

A record is one line of canonical JSON (RFC 8785) with the member ``sha256``, the bare hex digest of the others.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import rfc8785

from engrain.core.errors import IntegrityError

# Members are sorted, and every record has "time", so the seal is never the last one. In text, quotes are escaped.
_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})",')


def seal(fields: Mapping[str, Any]) -> bytes:
    """Return the record of ``fields``, which have a member ``time``, without a line feed.

    Law: ``unseal(seal(fields)) == fields``.
    """
    digest = hashlib.sha256(rfc8785.dumps(dict(fields))).hexdigest()
    return rfc8785.dumps({**fields, "sha256": digest})


def unseal(raw: bytes, where: str, mend: str) -> dict[str, Any]:
    """Return the members of a record.

    Raises:
        IntegrityError: any byte of it was changed; the message opens with ``where`` and closes with ``mend``.
    """
    found = _SEAL.search(raw)
    # Over the bytes, not over what they mean: thirty times faster, and nothing is left out.
    if found and hashlib.sha256(raw[: found.start()] + raw[found.end() :]).hexdigest().encode() == found[1]:
        try:
            fields = json.loads(raw)
        except (ValueError, RecursionError):
            fields = None
        if isinstance(fields, dict):
            del fields["sha256"]
            return fields
    raise IntegrityError(f"{where} is damaged. {mend}")


def digest_of(raw: bytes) -> str:
    """Return the bare hex digest that an intact record carries."""
    found = _SEAL.search(raw)
    assert found is not None
    return found[1].decode()
