"""Vectors, their pairs and verdicts in the registry: published with what they were made from, read by reference."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engrain.core.composition import Active
from engrain.core.contrast import PairSet
from engrain.core.errors import InputError, StrengthError
from engrain.core.files import parse_object
from engrain.core.model import SteerableModel
from engrain.core.number import finite
from engrain.core.vector import SteeringVector
from engrain.core.verdict import Verdict
from engrain.registry.provenance import Provenance
from engrain.registry.reference import locate
from engrain.registry.store import Parent, Store, Version

if TYPE_CHECKING:
    from engrain.core.compile.proof import Proof
    from engrain.core.profile import Entry, Profile

_FILE = "vector.safetensors"
_PAIRS = "pairs.jsonl"
REPORT, VERDICT, PROOF = "report.html", "verdict.json", "proof.json"


def publish_pairs(store: Store, name: str, pairs: PairSet) -> Version:
    """Publish contrast pairs as a dataset."""
    config = {"schema": "engrain.pairs/1", "pairs": len(pairs), "digest": pairs.digest}
    return store.publish("dataset", name, config=config, files={_PAIRS: pairs.to_json_lines()})


def read_pairs(store: Store, version: Version, role: str = "pairs") -> PairSet:
    """Return the contrast pairs that a vector was made from, or (``test``) that a verdict is on.

    Raises:
        InputError: the version does not say.
        IntegrityError: the stored pairs are missing or changed.
    """
    digests = [parent.digest for parent in version.parents if parent.role == role]
    if not digests:
        raise InputError(
            f"'{version.reference}' does not record the pairs that it was made from; extract it again: "
            f"engrain extract --pairs FILE --name {version.name}."
        )
    found = store.find(digests[0], ["dataset"])
    if found is None:
        raise InputError(
            f"The pairs of '{version.reference}' ({digests[0]}) are not in the registry; extract it again."
        )
    dataset = store.resolve(found)
    return replace(PairSet.read(dataset.path(_PAIRS)), source=dataset.reference)


def publish_verdict(
    store: Store,
    name: str,
    verdict: Verdict,
    parents: Sequence[Parent],
    report: bytes | None = None,
    proof: "Proof | None" = None,
) -> Version:
    """Publish a verdict: its gates as the version's config, everything that was measured as a file.

    Args:
        store: where.
        name: of the behavior.
        verdict: the verdict.
        parents: the vector or task vector and the pairs that it is on.
        report: the verdict as an HTML page, or None.
        proof: of compiled weights, or None for a vector.
    """
    whole = verdict.to_json()
    config = {key: whole[key] for key in ("schema", "passed", "layer", "strength", "gates", "seed")}
    files = {VERDICT: json.dumps(whole, ensure_ascii=False, allow_nan=False).encode()}
    types = {VERDICT: "application/json"}
    if proof is not None:
        files[PROOF], types[PROOF] = json.dumps(proof.to_json(), allow_nan=False).encode(), "application/json"
    if report is not None:
        files[REPORT], types[REPORT] = report, "text/html"
    judged = whole.get("judged") or {}
    decided = {"layer": verdict.layer, "strength": verdict.strength, "judge": judged.get("judge")}
    made = Provenance("verify", decided, {"verify": verdict.seed}, {one.role: one.digest for one in parents})
    return store.publish(
        "verdict", name, config=config, files=files, parents=parents, media_types=types, provenance=made
    )


def read_proof(version: Version) -> dict[str, Any]:
    """Return the proof of a published verdict on weights, the JSON of ``Proof``.

    Raises:
        EngrainError: it has none, or it is damaged.
    """
    return parse_object(version.path(PROOF).read_bytes(), version.reference, None)


def read_verdict(version: Version) -> dict[str, Any]:
    """Return everything that a published verdict says, as ``Verdict.to_json`` had it.

    Raises:
        IntegrityError: the stored bytes are missing or changed.
    """
    return parse_object(version.path(VERDICT).read_bytes(), version.reference, None)


def publish_vector(store: Store, name: str, vector: SteeringVector, parents: Sequence[Parent] = ()) -> Version:
    """Publish a vector; its manifest is the version's config.

    Args:
        store: where.
        name: under which name.
        vector: the vector.
        parents: what it was made from, as ``Parent("pairs", digest)``.
    """
    files = {_FILE: vector.to_safetensors()}
    types = {_FILE: "application/vnd.safetensors"}
    config = vector.manifest()
    decided = {key: config.get(key) for key in ("origin", "calibration", "model")}
    act = "extract" if vector.calibration is None else "calibrate"
    made = Provenance(act, decided, data={one.role: one.digest for one in parents})
    return store.publish(
        "vector", name, config=config, files=files, parents=parents, media_types=types, provenance=made
    )


def read_vector(store: Store, where: str) -> SteeringVector:
    """Return the vector of a reference (a name alone means the kind ``vector``) or of a file.

    Raises:
        VectorError: the file is not a vector.
        UnknownNameError: nothing in the registry is called so.
    """
    place = locate(where, "vector")
    if isinstance(place, Path):
        return SteeringVector.load(place)
    version = store.resolve(place)
    if version.kind != "vector":
        raise InputError(f"'{where}' is a {version.kind}, a vector is needed.")
    return SteeringVector.from_bytes(version.path(_FILE).read_bytes(), version.config, source=version.reference)


def parse_steering(text: str, factor: str = "strength") -> list[tuple[str, float | None]]:
    """Read a set of what is to be active, ``REF=STRENGTH`` comma-separated and split at the last ``=``.

    Args:
        text: the set.
        factor: what the number is called: the strength of a vector, the scale of a task vector.

    Returns:
        References or files, each with its strength, or None where none is given.

    Raises:
        InputError: an empty item.
        StrengthError: a strength that is not a finite number.
    """
    return [parse_item(item.strip(), factor) for item in text.split(",")]


def parse_item(text: str, factor: str) -> tuple[str, float | None]:
    """Read one of them, ``REF`` or ``REF=STRENGTH``; arguments and errors as ``parse_steering``."""
    where, equals, number = text.rpartition("=")
    if not equals:
        where, number = number, ""
    if not where or (equals and not number):
        raise InputError(f"'{text}' is not REF[={factor.upper()}], as listening=1.2; several are comma-separated.")
    if not equals:
        return where, None
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not finite(value):
        raise StrengthError(f"The {factor} of '{where}' is {number!r}; it must be a finite number.")
    return where, value


def activate_steering(model: SteerableModel, store: Store, text: str) -> dict[str, Active]:
    """Return the active vectors that ``text`` names, by what they were called in it."""
    return {
        where: model.activate(read_vector(store, where), strength=strength) for where, strength in parse_steering(text)
    }


def activate_profile(
    model: SteerableModel, store: Store, profile: "Profile", *, disabled: bool = False
) -> dict[str, Active]:
    """Return the active vectors of a profile, by behavior; its task vectors are ``read_profile_edits``.

    Args:
        model: what they are to act on.
        store: where references are resolved.
        profile: the inference configuration.
        disabled: include the entries that are off.

    Raises:
        LayerError, StrengthError: no calibration, and no layer or strength in the entry.
    """
    entries = profile.behaviors if disabled else profile.enabled
    return {
        name: activate_entry(model, read_vector(store, entry.vector), entry)
        for name, entry in entries.items()
        if entry.vector is not None
    }


def activate_entry(model: SteerableModel, vector: SteeringVector, entry: "Entry") -> Active:
    """Return the vector of a profile's entry in use; what the entry does not say comes from its calibration."""
    return model.activate(vector, entry.layer, entry.strength, entry.positions, entry.operation)
