"""What a model is, so that a vector made on one is not put on another by mistake."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from platformdirs import user_cache_path
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engrain.core.chat import template_digest
from engrain.core.errors import FingerprintError, InputError
from engrain.core.files import write_atomically

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Fingerprint:
    """Digests of everything that a direction depends on; each is ``sha256:<64 hex>``.

    Attributes:
        source: what the model was loaded by; for people, never compared.
        architecture: class of the model.
        weights: digest of the weight files, or of the tensors where the model came from no file.
        schema: digest of the parameters' names and shapes.
        tokenizer: digest of the vocabulary and its rules.
        chat_template: digest of the template that conversations are rendered with.
        dtype: what the weights are loaded as.
        quantization: method of quantisation, or None.
    """

    source: str
    architecture: str
    weights: str
    schema: str
    tokenizer: str
    chat_template: str
    dtype: str
    quantization: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields; ``from_json`` of it is this fingerprint."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: a field is missing or not text.
        """
        values = {name: fields.get(name) for name in cls.__dataclass_fields__}
        for name, value in values.items():
            if not isinstance(value, str) and not (name == "quantization" and value is None):
                raise ValueError(f"the fingerprint's '{name}' is missing or not text")
        return cls(**values)  # type: ignore[arg-type]

    def differences(self, other: Self) -> list[str]:
        """Return the names of the fields that make a direction of one model meaningless on the other.

        The dtype and the quantisation are not among them: a direction survives both.
        """
        decisive = ("architecture", "weights", "schema", "tokenizer", "chat_template")
        return [name for name in decisive if getattr(self, name) != getattr(other, name)]

    def check_made_on(self, base: Self, what: str, mend: str) -> None:
        """Check that this is the model that something was made on.

        Args:
            base: what it says it was made on.
            what: it, as the message names it.
            mend: what to do instead, a sentence.

        Raises:
            FingerprintError: it was made on another; what differs is named.
        """
        differences = base.differences(self)
        if differences:
            raise FingerprintError(
                f"{what} was made on '{base.source}' ({base.architecture}), this is "
                f"'{self.source}' ({self.architecture}): {', '.join(differences)} differ. {mend}"
            )


def fingerprint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, weight_files: Iterable[Path] = ()
) -> Fingerprint:
    """Return the fingerprint of a loaded model.

    Args:
        model: the model, as loaded.
        tokenizer: its tokenizer.
        source: what it was loaded by.
        weight_files: the files its weights came from; their digests are remembered by size and time of change.
    """
    schema = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        schema.update(f"{name} {list(tensor.shape)}\n".encode())
    files = sorted(weight_files)
    weights = _digest_files(files) if files else _digest_tensors(model)
    quantization = getattr(model.config, "quantization_config", None)
    return Fingerprint(
        source=source,
        architecture=type(model).__name__,
        weights=weights,
        schema=f"sha256:{schema.hexdigest()}",
        tokenizer=_digest_tokenizer(tokenizer),
        chat_template=template_digest(tokenizer),
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=None if quantization is None else str(getattr(quantization, "quant_method", quantization)),
    )


def file_digest(path: Path) -> str:
    """Return ``sha256:<hex>`` of a file's bytes, remembered by path, size, time of change and inode."""
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
    memory = user_cache_path("engrain") / "digests" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    try:
        remembered = json.loads(memory.read_bytes())
        if remembered["key"] == key and isinstance(remembered["digest"], str):
            return str(remembered["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not remembered, or not readable: hash
    with path.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    with contextlib.suppress(InputError):  # a cache folder that cannot be written only costs the time next time
        write_atomically(memory, json.dumps({"key": key, "digest": digest}).encode(), force=True)
    return digest


def _digest_files(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name} {file_digest(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _digest_tensors(model: PreTrainedModel) -> str:
    total = hashlib.sha256()
    # Sorted by name: the order of buffers is not the same in every process for some families.
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        _hash_tensor(total, tensor)
    return f"sha256:{total.hexdigest()}"


def tensor_digest(tensor: Tensor) -> str:
    """Return ``sha256:<hex>`` of a tensor's bytes; its dtype and shape are no part of it."""
    hasher = hashlib.sha256()
    _hash_tensor(hasher, tensor)
    return f"sha256:{hasher.hexdigest()}"


def _hash_tensor(hasher: "hashlib._Hash", tensor: Tensor) -> None:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, flat.numel(), _CHUNK):
        hasher.update(flat[start : start + _CHUNK].cpu().numpy().data)


def _digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Both settings are changed by every call of the tokenizer; they are no part of what it is.
        backend.no_padding()
        backend.no_truncation()
        content = backend.to_str()
    else:
        content = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"
