"""What stands beside the versions: aliases, which move, and tombstones, which stay. Each is a small sealed file.

::

    refs/<kind>/<name>/<alias>                  {"alias", "manifest", "seq", "sha256", "time", "v"}
    names/<kind>/<name>/tombstones/<number>     {"actor", "name", "reason", "seq", "sha256", "time", "v"}

Both are written from one event of the journal, whose ``seq`` they have, and can be written again from it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engrain.core.errors import InputError, IntegrityError
from engrain.core.names import NAME
from engrain.registry.blob import read_now, reading
from engrain.registry.reference import Reference, check_digest
from engrain.registry.sealed import seal, unseal

_MEND = "The versions are safe. Write it again from the journal: engrain registry verify --repair."


@dataclass(frozen=True)
class Target:
    """What an alias points at: the number of a version, and the digest of its manifest."""

    number: int
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Return the members ``v`` and ``manifest``."""
        return {"v": self.number, "manifest": self.digest}

    @classmethod
    def from_json(cls, fields: Any) -> "Target":
        """Read these members.

        Raises:
            KeyError, TypeError, InputError: they are not there.
        """
        check_digest(fields["manifest"])
        if type(fields["v"]) is not int or fields["v"] < 1:
            raise TypeError("not a version number")
        return cls(fields["v"], fields["manifest"])


@dataclass(frozen=True)
class Ref:
    """An alias as it stands.

    Attributes:
        target: what it points at.
        seq: of the event that put it there.
    """

    target: Target
    seq: int


def ref_path(root: Path, alias: Reference) -> Path:
    """Return where an alias lies."""
    assert alias.alias is not None
    return root / "refs" / alias.kind / alias.name / alias.alias


def ref_record(alias: str, target: Target, seq: int, time: str) -> bytes:
    """Return what the file of an alias holds."""
    return seal({"alias": alias, "seq": seq, "time": time, **target.to_json()})


def read_ref(root: Path, alias: Reference) -> Ref | None:
    """Return what an alias points at, or None when there is no such alias.

    Raises:
        InputError: the file may not be read.
        IntegrityError: it is empty, changed, or that of another alias.
    """
    path = ref_path(root, alias)
    if path.parent.is_symlink():
        raise IntegrityError(f"'{path.parent}' is a symbolic link, which a name never is. Put the folder there.")
    fields = _read(path)
    if fields is None:
        return None
    try:
        if fields["alias"] != str(alias) or type(fields["seq"]) is not int:
            raise KeyError("alias")
        return Ref(Target.from_json(fields), fields["seq"])
    except (InputError, KeyError, TypeError) as error:
        raise IntegrityError(f"'{path}' is not the alias '{alias}'. {_MEND}") from error


def aliases(root: Path, kind: str, name: str) -> list[Reference]:
    """Return the aliases that a name has, sorted, whether they are intact or not.

    Raises:
        InputError: the folder may not be read.
    """
    folder = root / "refs" / kind / name
    with reading(folder):
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    return [Reference(kind, name, alias=one) for one in found if NAME.fullmatch(one)]


def tombstone_path(folder: Path, number: int) -> Path:
    """Return where the tombstone of a version lies, in the folder of its name."""
    return folder / "tombstones" / str(number)


def tombstone_record(name: str, number: int, reason: str, seq: int, time: str, actor: str) -> bytes:
    """Return what the file of a tombstone holds."""
    return seal({"actor": actor, "name": name, "reason": reason, "seq": seq, "time": time, "v": number})


def read_tombstone(folder: Path, number: int) -> dict[str, Any] | None:
    """Return what the tombstone of a version says, or None when it has none.

    Raises:
        InputError: the file may not be read.
        IntegrityError: it is empty, changed, or that of another version.
    """
    path = tombstone_path(folder, number)
    fields = _read(path)
    if fields is None:
        return None
    try:
        check_stone(fields)
        if (fields["name"], fields["v"]) != (f"{folder.parent.name}/{folder.name}", number):
            raise ValueError("that of another version")
    except (AttributeError, InputError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"'{path}' is not the tombstone of version {number}. {_MEND}") from error
    return fields


def check_stone(fields: Any) -> None:
    """Check the members of a tombstone.

    Raises:
        AttributeError, InputError, KeyError, TypeError, ValueError: one is missing, or not what it should be.
    """
    Reference.parse(fields["name"])
    texts = (fields[key] for key in ("actor", "reason", "time"))
    if not all(isinstance(text, str) for text in texts) or not all(type(fields[key]) is int for key in ("seq", "v")):
        raise ValueError("not a tombstone")


def _read(path: Path) -> dict[str, Any] | None:
    raw = read_now(path)
    return None if raw is None else unseal(raw, f"'{path}'", _MEND)
