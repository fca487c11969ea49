"""How stored things are referred to by people: ``KIND/NAME@VERSION``."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from engrain.core.errors import InputError, UnknownNameError
from engrain.core.header import PICKLE_ENDINGS
from engrain.core.names import MANIFEST, NAME

KINDS = ("vector", "task-vector", "verdict", "dataset", "profile")
# The command whose work is published as the kind, where there is one.
MADE_BY = {"vector": "extract", "task-vector": "compile", "verdict": "verify", "dataset": "extract"}
_VERSION = re.compile(r"[1-9][0-9]{0,14}")  # 15 digits: every such number is exact in JSON (below 2**53)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_FILE_ENDINGS = (".safetensors", ".bin", *PICKLE_ENDINGS)
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


def written_as_path(text: str) -> bool:
    """Return whether a text is a path however it is looked at: by its start, its several folders, or its ending."""
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or text.endswith(_FILE_ENDINGS)


def locate(text: str, default_kind: str) -> Path | Reference:
    """Return what a person names, a path with its ``~`` expanded or a reference; everybody decides by this.

    A text with a kind, as ``vector/brevity``, is a reference, whatever the working folder holds; any other that is not
    written as a path is one all the same where there is such a file or such a folder of a task vector.

    Law: ``locate(str(r), kind) == r`` for every reference.

    Args:
        text: as it was written.
        default_kind: of a reference without a kind.

    Raises:
        InputError: as ``Reference.parse``.
    """
    path = os.path.expanduser(text)
    if written_as_path(text):
        return Path(path)
    if text.partition("/")[0] not in KINDS and (os.path.isfile(path) or os.path.isfile(os.path.join(path, MANIFEST))):
        return Path(path)
    return Reference.parse(text, default_kind)
