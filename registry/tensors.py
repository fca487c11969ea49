"""What is checked of a tensor file before anything is mapped: it is safetensors, and its header is sane."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from engrain.core.errors import InputError
from engrain.core.header import PICKLE_ENDINGS, is_pickle
from engrain.registry.blob import content

SAFETENSORS_TYPE = "application/vnd.safetensors"
_MAX_HEADER = 100_000_000  # bytes: the limit of the safetensors library itself
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32}
_BITS |= {"U64": 64, "I64": 64, "F64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "C64": 64}


def refuse_pickle(title: str, source: bytes | Path, where: str) -> None:
    """Refuse a file that is a pickle, or an archive with one, by its name or its first bytes; it is never unpickled.

    Raises:
        InputError: it is one, or cannot be read.
    """
    if title.endswith(PICKLE_ENDINGS) or is_pickle(next(content(source), b"")):
        raise InputError(
            f"{where} is a pickle, or an archive as torch puts one into, which runs code when it is read. Convert it "
            f"to safetensors."
        )


def check_tensors(source: bytes | Path, where: str) -> None:
    """Check the header of a safetensors file: its length, its dtypes and shapes, and offsets that fill the file.

    Raises:
        InputError: it is not a whole safetensors file, or cannot be read.
    """
    raw, total = bytearray(), 0
    wanted = 8
    for piece in content(source):
        total += len(piece)
        if len(raw) < wanted:
            raw += piece
        if len(raw) >= 8:
            wanted = 8 + int.from_bytes(raw[:8], "little")
            if wanted > 8 + _MAX_HEADER:
                raise InputError(f"{where} announces a header of {wanted - 8} bytes; it is not safetensors.")
    if not 8 < wanted <= total:
        raise InputError(f"{where} is not a whole safetensors file; write it with safetensors.")
    try:
        header = json.loads(raw[8:wanted])
        spans = sorted(_span(entry) for name, entry in header.items() if name != "__metadata__")
        bounds = [(0, 0), *spans, (total - wanted, total - wanted)]
        good = all(before[1] == after[0] for before, after in pairwise(bounds))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise InputError(f"{where} has a header that is not one of safetensors; write it with safetensors.")


def _span(entry: Any) -> tuple[int, int]:
    start, end = entry["data_offsets"]
    bits = _BITS[entry["dtype"]]
    for size in entry["shape"]:
        if type(size) is not int or size < 0:
            raise ValueError("not a shape")
        bits *= size
    if type(start) is not int or type(end) is not int or (end - start) * 8 != bits:
        raise ValueError("not the size of the shape")
    return start, end
