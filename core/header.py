"""The header of a safetensors file that a stranger wrote, looked at before anything is made of it."""

import struct
from typing import Any

from engrain.core.errors import VectorError
from engrain.core.files import parse_object

# What pickles are called. A .bin may be one and may be anything else: its bytes say.
PICKLE_ENDINGS = (".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
# A vector of 200 layers has a header of 20 kB, a task vector of a thousand matrices one of 150 kB; a header of
# megabytes is an attack or another kind of file.
MAX_HEADER = 1 << 20


def is_pickle(start: bytes) -> bool:
    """Return whether a file is a pickle, or an archive as torch puts one into, by its first 8 bytes or more."""
    # A bare pickle starts with its protocol and goes on with an opcode, where the length of a safetensors header has
    # zeros.
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] <= b"\x05" and any(start[2:8]))


def read_header(start: bytes, size: int, source: str) -> dict[str, Any]:
    """Return what the header says of each tensor; the tensors are not looked at.

    Args:
        start: the first ``8 + MAX_HEADER`` bytes of the file, or all of it where it is shorter.
        size: of the whole file, in bytes.
        source: what to call the file in messages.

    Raises:
        VectorError: a pickle, or a torn or oversized header.
        DataError: the header is not JSON.
    """
    if is_pickle(start):
        raise VectorError(
            f"'{source}' is a pickle (.pt, .pth, .pkl), which can run code when it is read; "
            f"engrain reads safetensors only. Save it with safetensors.torch.save_file where you trust it."
        )
    if size < 8:
        raise VectorError(f"'{source}' has {size} bytes, too few for a safetensors file.")
    (length,) = struct.unpack("<Q", start[:8])
    if length > min(MAX_HEADER, size - 8):
        raise VectorError(
            f"'{source}' announces a header of {length} bytes, more than the file holds or a vector needs."
        )
    header = parse_object(start[8 : 8 + length], source, None)
    header.pop("__metadata__", None)
    return header
