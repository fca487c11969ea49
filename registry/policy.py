"""Which aliases are protected, and the evidence that lets a version through: a passing verdict on exactly that version.

``policy.json`` in the registry's folder, ``{"protected": ["production", "stable"]}``, replaces the default list.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from engrain.core.errors import EngrainError, IntegrityError, PolicyError, UnknownNameError
from engrain.core.names import NAME
from engrain.registry.blob import read_now
from engrain.registry.manifest import parents_of, parse_object
from engrain.registry.reference import Reference
from engrain.registry.store import Store, Version

PROTECTED = ("production", "stable")
# A behavior is verified as one of these kinds, which is the role of a verdict's parent too.
_VERIFIED = frozenset({"vector", "task-vector"})


@dataclass(frozen=True)
class Evidence:
    """The verdict that decides on a version.

    Attributes:
        reference: of the verdict.
        digest: of its manifest.
        created: when it was published.
        passed: whether every gate passed.
    """

    reference: str
    digest: str
    created: datetime
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """Return what the journal holds."""
        return {"verdict": self.reference, "manifest": self.digest, "passed": self.passed}


def protected_aliases(store: Store) -> tuple[str, ...]:
    """Return the aliases that take only what has a passing verdict.

    Raises:
        IntegrityError: policy.json is not of its form; nothing is let through by mistake.
    """
    path = store.root / "policy.json"
    if (raw := read_now(path)) is None:
        return PROTECTED
    listed = parse_object(raw, f"'{path}'").get("protected")
    if not isinstance(listed, list) or not all(isinstance(one, str) and NAME.fullmatch(one) for one in listed):
        raise IntegrityError(f'\'{path}\' is not of the form {{"protected": ["production", "stable"]}}. Write it so.')
    return tuple(listed)


def deciding_verdict(store: Store, digest: str) -> Evidence | None:
    """Return the verdict that decides on the manifest ``digest``, or None: of the newest verdict for each behavior, one
    that did not pass, or else the newest of them.

    One that is damaged is on nobody knows what, and is passed over; one whose gates are damaged did not pass.
    """
    found = [one for name in store.names("verdict") if (one := newest_verdict(store, name, digest)) is not None]
    return max(found, key=lambda one: (not one.passed, one.created), default=None)


def newest_verdict(store: Store, name: str, digest: str) -> Evidence | None:
    """Return the newest version of ``verdict/name`` that is on the manifest ``digest``, or None; as if what is damaged
    were not there.
    """
    return _look(store, name, digest)[0]


def _look(store: Store, name: str, digest: str) -> tuple[Evidence | None, str | None]:
    """Return the newest verdict of a name that is on a manifest, and what hides a newer one that may be, or None."""
    history = store.history("verdict", name)
    try:
        lines = history.raw_lines()
    except EngrainError as error:
        return None, str(error)
    hidden = None
    for number in range(len(lines), 0, -1):
        reference = Reference("verdict", name, number)
        try:
            store.check_not_deleted(reference)
            line = history.parse(lines[number - 1], number)
            if digest.encode() not in store.read(line.digest):
                continue
            version = store.resolve(reference)
            if any(one.role in _VERIFIED and one.digest == digest for one in parents_of(version.manifest)):
                return Evidence(version.reference, line.digest, line.created, _passed(version)), hidden
        except UnknownNameError:  # deleted
            continue
        except EngrainError as error:
            hidden = hidden or str(error)
    return None, hidden


def _passed(verdict: Version) -> bool:
    try:
        return verdict.config.get("passed") is True
    except EngrainError:
        return False


def check_policy(store: Store, alias: Reference, digest: str, evidence: Evidence | None) -> None:
    """Refuse a version that a protected alias does not take.

    Raises:
        PolicyError: the verdict that decides did not pass, or there is none, or one that is damaged may decide.
    """
    if alias.alias not in protected_aliases(store) or alias.kind not in _VERIFIED:
        return
    if evidence is None:
        problem = "no verdict is on it"
    elif not evidence.passed:
        problem = f"the verdict {evidence.reference} on it did not pass"
    else:
        hidden = next((one for name in store.names("verdict") if (one := _look(store, name, digest)[1])), None)
        if hidden is not None:
            raise PolicyError(
                f"'{alias}' is protected, and a verdict that may be on this version cannot be read. {hidden} Nothing "
                f"was moved. Mend it (engrain registry verify --repair), or pass --force with a --reason, which the "
                f"journal keeps."
            )
        return
    mend = f"engrain verify {alias.name}" if alias.kind == "vector" else f"engrain verify {alias.kind}/{alias.name}"
    raise PolicyError(
        f"'{alias}' is protected and does not take this version: {problem}. Nothing was moved. "
        f"Do {mend} first, or pass --force with a --reason, which the journal keeps."
    )
