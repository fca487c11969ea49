"""One line of the journal: an intent, what became of it, or a note; checked for everything that is ever read of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engrain.core.errors import InputError, IntegrityError
from engrain.registry.manifest import VersionLine
from engrain.registry.mark import Target, check_stone
from engrain.registry.reference import Reference
from engrain.registry.sealed import digest_of, unseal

NOTES = frozenset({"adopt", "quarantine", "repair", "serve"})
ENDS = frozenset({"commit", "abort"})
REPAIR = "Everything else is safe. Set it right with: engrain registry verify --repair."


@dataclass(frozen=True)
class Event:
    """One line of the journal.

    Attributes:
        seq: its number.
        act: what was done.
        seal: its own digest, bare hex.
        fields: all that the line says.
    """

    seq: int
    act: str
    seal: str
    fields: Mapping[str, Any] = field(repr=False)

    @property
    def time(self) -> str:
        """When, by the clock of the machine, in UTC."""
        return str(self.fields["time"])

    @property
    def ends(self) -> bool:
        """Whether nothing is open after it."""
        return self.act in NOTES | ENDS

    @classmethod
    def parse(cls, raw: bytes, where: str) -> "Event":
        """Read a line; names and digests in it are safe to make a path of.

        Raises:
            IntegrityError: it is damaged, or lacks what an event of its act says.
        """
        fields = unseal(raw, where, REPAIR)
        try:
            texts = (fields["act"], fields["prev"], fields["time"], fields["actor"])
            _require(_is_number(fields["seq"]) and all(isinstance(text, str) for text in texts))
            # An act that a later engrain may have: it is passed over, not an error.
            _CHECKS.get(fields["act"], _check_nothing)(fields)
        except (AttributeError, InputError, KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"{where} is not a line of a journal. {REPAIR}") from error
        return cls(fields["seq"], fields["act"], digest_of(raw), fields)


def _require(good: bool) -> None:
    if not good:
        raise ValueError("not what an event of this act says")


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 1


def _check_name(text: str) -> None:
    reference = Reference.parse(text)
    _require(reference.version is None and reference.alias is None)


def _check_alias(text: str) -> None:
    _require(Reference.parse(text).alias is not None)


def _check_line(line: dict[str, Any]) -> None:
    VersionLine.from_fields(line, line["v"])


def _check_publish(said: dict[str, Any]) -> None:
    _check_name(said["name"])
    _check_line(said["line"])


def _check_move(said: dict[str, Any]) -> None:
    _check_alias(said["alias"])
    Target.from_json(said["to"])
    if said["from"] is not None:
        Target.from_json(said["from"])
        _require(_is_number(said["from"]["seq"]))
    _require(isinstance(said["reason"], str) and (said["act"] == "alias" or _is_number(said["steps"])))
    evidence = said["evidence"]
    _require(evidence is None or (isinstance(evidence["verdict"], str) and type(evidence["passed"]) is bool))


def _check_delete(said: dict[str, Any]) -> None:
    _check_name(said["name"])
    _require(_is_number(said["v"]) and isinstance(said["reason"], str))


def _check_gc(said: dict[str, Any]) -> None:
    _require(type(said["files"]) is int and type(said["size"]) is int)


def _check_end(said: dict[str, Any]) -> None:
    _require(_is_number(said["of"]))


def _check_adopt(said: dict[str, Any]) -> None:
    for name, lines in said.get("names", {}).items():
        _check_name(name)
        for line in lines:
            _check_line(line)
    for alias, placed in said.get("aliases", {}).items():
        _check_alias(alias)
        Target.from_json(placed)
        _require(_is_number(placed["seq"]) and isinstance(placed["time"], str))
    for stone in said.get("tombstones", []):
        check_stone(stone)


def _check_listed(said: dict[str, Any]) -> None:
    listed = said["files" if said["act"] == "quarantine" else "faults"]
    _require(isinstance(listed, list) and all(isinstance(one, str) for one in listed))


def _check_serve(said: dict[str, Any]) -> None:
    _check_alias(said["alias"])
    _require(_is_number(said["to"]) and (said["from"] is None or _is_number(said["from"])))
    _require(said["problem"] is None or isinstance(said["problem"], str))


def _check_nothing(said: dict[str, Any]) -> None:
    pass


_CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "publish": _check_publish,
    "alias": _check_move,
    "rollback": _check_move,
    "delete": _check_delete,
    "gc": _check_gc,
    "commit": _check_end,
    "abort": _check_end,
    "adopt": _check_adopt,
    "quarantine": _check_listed,
    "repair": _check_listed,
    "serve": _check_serve,
}
