"""All that a registry knows about one version."""

import json
from typing import Any

from engrain.core.errors import EngrainError
from engrain.registry.manifest import titled
from engrain.registry.policy import deciding_verdict
from engrain.registry.reference import Reference
from engrain.registry.store import Store
from engrain.registry.version import Version


def describe_version(store: Store, version: Version) -> dict[str, Any]:
    """Return what `engrain registry show --json` prints."""
    line = store.line(Reference(version.kind, version.name, version.number))
    verdict = deciding_verdict(store, version.digest)
    number = version.number
    placed = store.aliases(version.kind, version.name).items()
    parents = []
    for parent in version.parents:
        found = store.find(parent.digest)
        parents.append({"role": parent.role, "digest": parent.digest, "reference": found and str(found)})
    files = [
        {"title": title, "size": layer["size"], "mediaType": layer["mediaType"], "digest": layer["digest"]}
        for title, layer in titled(version.manifest).items()
    ]
    return {
        "reference": version.reference,
        "digest": version.digest,
        "created": version.created.isoformat(),
        "actor": str(line.fields.get("actor", "")),
        "aliases": [f"{version.kind}/{version.name}:{alias}" for alias, ref in placed if ref.target.number == number],
        "verdict": None if verdict is None else verdict.to_json(),
        "parents": parents,
        "files": files,
        "size": sum(version.blobs.values()),
        "config": version.config,
        "provenance": version.provenance,
        "statement": _statement(store, version),
    }


def _statement(store: Store, version: Version) -> Any:
    if version.provenance is None:
        return None
    try:
        return json.loads(store.read(version.provenance))
    except (EngrainError, ValueError):
        return None  # damaged; `verify` says so, and the version itself is fine
