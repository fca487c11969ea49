"""Control vectors of llama.cpp and repeng: one GGUF file with a tensor ``direction.N`` per block.

``direction.N`` is added to the output of block N, counted from 0, at every token: llama.cpp adds it to the block's
residual sum just before naming that ``l_out-N`` (``build_cvec``, src/models/llama.cpp). It refuses ``direction.0``,
having no tensor for block 0 (``common_control_vector_load_one``, common/common.cpp; ``llama_adapter_cvec``,
llama-adapter.cpp). repeng keys a direction by the block at whose output it is read and added (repeng/extract.py), block
0 among them. So N is the ``i`` of ``layer.<i>``; only block 0 has no place in llama.cpp.
"""

import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from engrain.core.errors import VectorError
from engrain.core.files import write_atomically
from engrain.core.fingerprint import file_digest
from engrain.core.number import whole
from engrain.core.vector import SteeringVector

ARCHITECTURE = "controlvector"
_PREFIX = "direction."
# A direction for each of 200 blocks 16,384 wide has 13 MB; a model is no control vector.
_MAX_BYTES = 64 << 20


def write_control_vector(vector: SteeringVector, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write a vector for llama.cpp's ``--control-vector``.

    A calibrated vector is written as it is used: its direction at the chosen block, times its strength, so that a scale
    of 1 there is the calibrated dose. One without a calibration is written as it is, at every block but block 0.

    Returns:
        ``layers`` that were written and the ``strength`` that is in them.

    Raises:
        VectorError: it acts at block 0 alone, or in a way that llama.cpp cannot: on some tokens only, or not by adding.
        OutputExistsError: the file exists and ``force`` is false.
    """
    dose = vector.calibration
    if dose is not None and (dose.operation, dose.positions) != ("add", "all"):
        raise VectorError(
            f"Vector '{vector.name}' is calibrated to {dose.operation} on {dose.positions} tokens; a control vector of "
            f"llama.cpp is added on all. Calibrate it again with these, or serve it with engrain."
        )
    directions = {dose.layer: vector.at(dose.layer) * dose.strength} if dose is not None else dict(vector.directions)
    directions.pop(0, None)
    if not directions:
        raise VectorError(
            f"Vector '{vector.name}' acts at layer 0, where llama.cpp takes no control vector; choose a later layer."
        )
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "vector.gguf"
        writer = gguf.GGUFWriter(path, ARCHITECTURE)
        writer.add_name(vector.name)
        if vector.fingerprint is not None:
            # For people: neither llama.cpp nor repeng reads it.
            writer.add_string(f"{ARCHITECTURE}.model_hint", vector.fingerprint.architecture)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
        for layer, direction in directions.items():
            writer.add_tensor(f"{_PREFIX}{layer}", direction.cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_atomically(out, path.read_bytes(), force=force)
    return {"layers": list(directions), "strength": 1.0 if dose is None else dose.strength}


def read_control_vector(path: Path, name: str) -> SteeringVector:
    """Read a control vector; which model it was made on is not known, only what the file hints at.

    Raises:
        VectorError: not a whole GGUF file of a control vector.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise VectorError(f"'{path}' has {path.stat().st_size} bytes, more than a control vector; is it a model?")
        reader = _StrictReader(path)
        architecture, hint = (_text(reader, key) for key in ("general.architecture", f"{ARCHITECTURE}.model_hint"))
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except OSError as error:
        raise VectorError(f"'{path}' cannot be read ({error.strerror or error}).") from error
    # The reader has no error of its own.
    except (ValueError, KeyError, IndexError, OverflowError, TypeError, RecursionError) as error:
        raise VectorError(f"'{path}' is not a whole GGUF file ({' '.join(str(error).split())[:200]}).") from error
    if architecture != ARCHITECTURE:
        raise VectorError(f"'{path}' is a GGUF file of architecture {architecture!r}, not of a control vector.")
    directions: dict[int, Tensor] = {}
    for tensor_name, tensor in tensors.items():
        number = tensor_name.removeprefix(_PREFIX)
        plain = tensor_name.startswith(_PREFIX) and whole(number) and number == str(int(number))
        if not plain:
            raise VectorError(f"'{path}' holds the tensor {tensor_name[:60]!r}; they are named direction.N.")
        if tensor.tensor_type != gguf.GGMLQuantizationType.F32 or len(tensor.shape) != 1:
            raise VectorError(f"'{path}' holds '{tensor_name}' in another form than float32 [d_model].")
        directions[int(number)] = torch.from_numpy(np.array(tensor.data, dtype=np.float32))
    imported = {"format": "gguf", "digest": file_digest(path)} | ({} if hint is None else {"model_hint": hint})
    return SteeringVector(directions, name, origin={"imported": imported})


class _StrictReader(gguf.GGUFReader):
    """A reader that stops where the file ends; gguf's own reads nothing for as many entries as are announced."""

    def _get(self, offset: int, dtype: Any, count: Any = 1, *args: Any, **kwargs: Any) -> Any:
        if offset + int(count) * np.dtype(dtype).itemsize > len(self.data):
            raise ValueError("it ends before what it announces")
        return super()._get(offset, dtype, count, *args, **kwargs)


def _text(reader: gguf.GGUFReader, key: str) -> str | None:
    field = reader.get_field(key)
    if field is None or field.types != [gguf.GGUFValueType.STRING]:
        return None
    return str(bytes(field.parts[-1]), "utf-8")
