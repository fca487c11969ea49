"""Published vectors as something to compile: each with its behavior, its verdict, and unseen pairs for the weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engrain.core.composition import Active
from engrain.core.contrast import PairSet
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.plugins.manager import Plugins
from engrain.registry.policy import Evidence, deciding_verdict
from engrain.registry.reference import Reference, locate
from engrain.registry.store import Store, Version
from engrain.registry.vectors import activate_entry, read_pairs, read_vector
from engrain.subject import Subject, find_subject

if TYPE_CHECKING:
    from engrain.core.profile import Entry, Profile


@dataclass(frozen=True)
class Source:
    """A published vector that is to be compiled.

    Attributes:
        subject: its behavior, with unseen pairs to prove the weights on.
        version: of the vector.
        evidence: the verdict that decides on exactly this version, or None.
        entry: how a profile wants it used, or None for its calibration.
    """

    subject: Subject
    version: Version
    evidence: Evidence | None
    entry: "Entry | None" = None

    @property
    def proved(self) -> bool:
        """Whether the verdict that decides on it passed."""
        return self.evidence is not None and self.evidence.passed

    def activate(self, model: SteerableModel) -> Active:
        """Return the vector in use.

        Raises:
            FingerprintError: it was made on another model.
            LayerError: it has no calibration, and the profile gives no layer.
        """
        vector = read_vector(self.version.store, self.version.reference)
        return model.activate(vector) if self.entry is None else activate_entry(model, vector, self.entry)


def find_source(
    plugins: Plugins, store: Store, where: str, *, entry: "Entry | None" = None, pairs: PairSet | None = None
) -> Source:
    """Return the vector of a reference (a name alone means the kind ``vector``) as something to compile.

    Args:
        plugins: where behaviors are found.
        store: where vectors and verdicts are.
        where: the reference.
        entry: of a profile.
        pairs: unseen pairs to prove the weights on, instead of the behavior's own or those of the vector's verdict.

    Raises:
        UnknownNameError: nothing in the registry is called so.
        InputError: it is no vector, or there are no unseen pairs.
    """
    reference = Reference.parse(where, "vector")
    if reference.kind != "vector":
        raise InputError(f"'{where}' is a {reference.kind}, and a vector is compiled.")
    if reference.name in plugins.behaviors() and reference.name not in store.names("vector"):
        raise InputError(
            f"There is no vector '{reference.name}' yet; 'engrain verify {reference.name}' makes one and says whether "
            f"it has proved itself, 'engrain run {reference.name}' does all of it."
        )
    version = store.resolve(reference)
    evidence = deciding_verdict(store, version.digest)
    name = version.name
    if name in plugins.behaviors():
        subject = find_subject(plugins, store, name)
    else:
        subject = replace(Subject.of_record(store, version.reference), name=name)
    pairs = pairs if pairs is not None else _tested(store, evidence) if subject.test is None else None
    return Source(subject if pairs is None else subject.tested_on(pairs), version, evidence, entry)


def find_sources(plugins: Plugins, store: Store, profile: "Profile") -> list[Source]:
    """Return what a profile has switched on as something to compile together.

    Raises:
        InputError: nothing is on; or an entry is a file or a task vector; and whatever ``find_source`` refuses.
    """
    found = []
    for name, entry in profile.enabled.items():
        if entry.vector is None:
            raise InputError(
                f"behaviors.{name} is compiled already, as '{entry.task_vector}'; switch it off (enabled: false)."
            )
        if isinstance(locate(entry.vector, "vector"), Path):
            raise InputError(
                f"behaviors.{name} names the file '{entry.vector}', and verdicts are on versions in the registry; "
                f"publish it: engrain import {entry.vector} --name {name}."
            )
        found.append(find_source(plugins, store, entry.vector, entry=entry))
    if not found:
        raise InputError("The profile has nothing switched on, so there is nothing to compile; enable a behavior.")
    return found


def _tested(store: Store, evidence: Evidence | None) -> PairSet | None:
    """Return the unseen pairs that a verdict is on."""
    if evidence is None:
        return None
    return read_pairs(store, store.resolve(evidence.reference), role="test")


def check_proved(sources: Sequence[Source], force: bool) -> None:
    """Check that every vector has a passing verdict, and unseen pairs to prove the weights on.

    Raises:
        InputError: one has not, and ``force`` is false; or there are no unseen pairs or no unseen scenarios.
    """
    for source in sources:
        name, reference = source.subject.name, source.version.reference
        if not source.proved and not force:
            said = "no verdict is on it" if source.evidence is None else f"{source.evidence.reference} did not pass"
            raise InputError(
                f"'{reference}' has not proved itself: {said}. Do first: engrain verify {name}; "
                f"or compile it all the same with --force, which its manifest keeps."
            )
        if source.subject.test is None:
            raise InputError(
                f"'{name}' was made from every pair that is recorded with it, and compiled weights are verified on "
                f"unseen ones: engrain compile {name} --pairs FILE.jsonl."
            )
        source.subject.check_prompts()
