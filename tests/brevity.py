"""The name that the registry's tests publish under: its aliases, moved and read; its files, damaged."""

from pathlib import Path

from engrain.registry.alias import Move, move_alias
from engrain.registry.reference import Reference
from engrain.registry.store import Store

CANARY = Reference("vector", "brevity", alias="canary")
STABLE = Reference("vector", "brevity", alias="stable")


def moves(store: Store, *numbers: int) -> list[Move]:
    """Move the canary from version to version."""
    return [move_alias(store, CANARY, number) for number in numbers]


def at(store: Store, alias: Reference = CANARY) -> int:
    """Return where an alias stands."""
    return store.resolve(alias).number


def overwrite(path: Path, raw: bytes) -> None:
    """Damage a file, read-only or not."""
    path.chmod(0o644)
    path.write_bytes(raw)
