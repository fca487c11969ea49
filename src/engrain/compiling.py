"""The work behind ``engrain compile``: proved vectors into a task vector, saved or published, and proved again."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from platformdirs import user_cache_path
from rich.progress import Progress

from engrain.core.compile.checkpoint import forget
from engrain.core.compile.compiler import Order, Spec
from engrain.core.compile.recipe import Recipe
from engrain.core.compile.target import choose_matrices
from engrain.core.composition import Active
from engrain.core.controls import random_like
from engrain.core.errors import InputError, PluginError
from engrain.core.files import check_folder
from engrain.core.model import SteerableModel
from engrain.core.names import MANIFEST
from engrain.core.task_vector import TaskVector
from engrain.gathering import gather_corpus
from engrain.plugins.manager import Plugins
from engrain.proving import compiled_from, verify_compiled
from engrain.registry.provenance import Provenance
from engrain.registry.store import Parent, Store, Version
from engrain.registry.task_vectors import publish_task_vector, read_task_vector
from engrain.registry.vectors import read_proof, read_vector, read_verdict
from engrain.source import Source, check_proved, find_source
from engrain.subject import Subject
from engrain.verifying import JUDGE, found_verdict, write_report
from engrain.version import __version__

BACKEND = "distill"


@dataclass(frozen=True)
class Wish:
    """How something is to be compiled, as far as it is said.

    Attributes:
        backend: by name.
        spec: None for the backend's own.
        target: as ``Order`` has it.
        layers: as ``Order`` has it.
        seed: of all drawing.
        optimizer: of a backend that trains: apollo, apollo-mini or adamw.
        force: also what has no passing verdict; the task vector says so.
        control: compile random directions likewise, and show in the proof what they do.
    """

    backend: str = BACKEND
    spec: Spec | None = None
    target: str | None = None
    layers: tuple[int, ...] | None = None
    seed: int = 0
    optimizer: str = "apollo"
    force: bool = False
    control: bool = False


def compile_sources(
    model: SteerableModel,
    sources: Sequence[Source],
    plugins: Plugins,
    wish: Wish,
    *,
    name: str,
    bar: Progress,
    say: Callable[[str], None],
) -> TaskVector:
    """Return the task vector that takes the place of the vectors; an interrupted compile goes on where it was.

    Raises:
        InputError: a vector without a passing verdict, and ``wish.force`` is false; a dose that its verdict is not on;
            and whatever the backend refuses.
        FingerprintError: a vector was made on another model.
        ModelError: the model is quantised.
        UnknownNameError: no such backend, or no matrix is called like the target.
    """
    plugins.compiler(wish.backend)
    check_proved(sources, wish.force)
    model.edits.check_floating()
    actives = tuple(source.activate(model) for source in sources)
    others = [fault for pair in zip(sources, actives, strict=True) for fault in _other_dose(model, *pair)]
    if others and not wish.force:
        raise InputError(f"{others[0]}; take that out of the profile, or pass --force.")
    if wish.target is not None:
        # Before the minutes of sampling, not after them.
        choose_matrices(model, wish.target, wish.layers or range(len(model.blocks)))
    others += [f"{source.version.reference} has no passing verdict" for source in sources if not source.proved]
    for fault in others:
        say(f"note: {fault}; the task vector's manifest says that it was forced.")
    order = _order(name, actives, wish, plugins, _workspace(order_digest(sources, wish)))
    made = _compile(model, order, sources, wish, plugins, bar, say)
    return replace(made, name=name, origin=_origin(made, order, sources, wish, forced=bool(others)))


def compile_control(
    model: SteerableModel,
    sources: Sequence[Source],
    plugins: Plugins,
    wish: Wish,
    *,
    bar: Progress,
    say: Callable[[str], None],
) -> TaskVector:
    """Return random directions in place of the vectors, compiled by the same recipe from replies that they steer: what
    compiling anything at all does.

    Raises:
        InputError: whatever the backend refuses.
    """
    say("the control: random directions of the same lengths")
    actives = tuple(random_like(source.activate(model), wish.seed) for source in sources)
    order = _order("control", actives, wish, plugins, _control_workspace(sources, wish))
    return _compile(model, order, sources, wish, plugins, bar, say)


def _order(name: str, actives: tuple[Active, ...], wish: Wish, plugins: Plugins, workspace: Path) -> Order:
    return Order(
        name,
        actives,
        wish.spec or plugins.spec_of(wish.backend),
        target=wish.target,
        layers=wish.layers,
        seed=wish.seed,
        recipe=Recipe(wish.optimizer),
        workspace=workspace,
    )


def _compile(
    model: SteerableModel,
    order: Order,
    sources: Sequence[Source],
    wish: Wish,
    plugins: Plugins,
    bar: Progress,
    say: Callable[[str], None],
) -> TaskVector:
    subjects = [source.subject for source in sources]
    order = replace(order, corpus=gather_corpus(model, subjects, order.actives, seed=wish.seed, bar=bar, say=say))
    say(f"compiling {', '.join(active.vector.name for active in order.actives)} with {wish.backend}")
    tasks: dict[str, Any] = {}

    def progress(what: str, done: int) -> None:
        if what not in tasks:
            # What a backend has to do in all, it alone knows.
            tasks[what] = bar.add_task(what, total=None)
        bar.update(tasks[what], advance=done)

    made = plugins.compiler(wish.backend)(model, order, progress)
    if not isinstance(made, TaskVector):
        raise PluginError(f"The backend '{wish.backend}' returned {type(made).__name__} and no task vector.")
    return made


def _other_dose(model: SteerableModel, source: Source, active: Active) -> Iterator[str]:
    """Yield how a profile uses a vector otherwise than it was verified."""
    if source.entry is None:
        return
    vector = read_vector(source.version.store, source.version.reference)
    if vector.calibration is None:
        yield f"'{source.version.reference}' has no calibration that a verdict could be on"
        return
    verified = model.activate(vector)
    for what in ("layers", "strength", "positions", "operation"):
        own, wanted = getattr(verified, what), getattr(active, what)
        if own != wanted:
            yield f"The profile uses '{source.version.reference}' with {what} {wanted}, and its verdict is on {own}"


def _origin(made: TaskVector, order: Order, sources: Sequence[Source], wish: Wish, *, forced: bool) -> dict[str, Any]:
    """Return what the manifest says of its making: the backend's own words, and from which versions by which order."""
    origin = {**order.origin(wish.backend), **made.origin}
    vectors = [
        {
            **vector,
            "version": source.version.digest,
            "verdict": None if source.evidence is None else source.evidence.digest,
        }
        for vector, source in zip(order.origin(wish.backend)["vectors"], sources, strict=True)
    ]
    return origin | {
        "vectors": vectors,
        "seed": wish.seed,
        "forced": forced,
        "order": order_digest(sources, wish),
    }


def order_digest(sources: Sequence[Source], wish: Wish) -> str:
    """Return sha256 of what a task vector is made from and how: what has the same one need not be made again."""
    made_from = [
        [source.version.digest, source.subject.train.digest, source.subject.scenarios, repr(source.entry)]
        for source in sources
    ]
    how = [wish.backend, wish.spec, wish.target, wish.layers, wish.seed, Recipe(wish.optimizer).to_json()]
    whole = json.dumps([made_from, how, __version__])
    return f"sha256:{hashlib.sha256(whole.encode()).hexdigest()}"


def _workspace(order: str) -> Path:
    """Return the folder where a backend keeps how far it is with what has this digest."""
    return user_cache_path("engrain") / "compile" / order.removeprefix("sha256:")


def _control_workspace(sources: Sequence[Source], wish: Wish) -> Path:
    return _workspace(f"{order_digest(sources, wish)}-control")


def publish_compiled(store: Store, task_vector: TaskVector, sources: Sequence[Source]) -> Version:
    """Publish a task vector with the vectors, their pairs and their verdicts as its parents; its checkpoint is gone."""
    parents: list[Parent] = []
    data: dict[str, str] = {}
    for source in sources:
        own = [Parent("vector", source.version.digest)]
        own += [parent for parent in source.version.parents if parent.role == "pairs"]
        if source.evidence is not None:
            own.append(Parent("verdict", source.evidence.digest))
        parents += own
        data |= {f"{parent.role} {source.subject.name}": parent.digest for parent in own}
    seed = int(task_vector.origin.get("seed", 0))
    decided = {"origin": dict(task_vector.origin), "base": task_vector.fingerprint.to_json()}
    made = Provenance("compile", decided, {"compile": seed}, data)
    version = publish_task_vector(store, task_vector.name, task_vector, parents, made)
    forget(_workspace(task_vector.origin["order"]))
    return version


@dataclass(frozen=True)
class Proved:
    """What published weights do for one behavior.

    Attributes:
        verdict: on the weights, with nothing steered, its reference and the path of its page among it; plain JSON.
        proof: what they are beside the steered model; plain JSON.
    """

    verdict: Mapping[str, Any]
    proof: Mapping[str, Any]

    @classmethod
    def of(cls, version: Version) -> Self:
        """Return what a published verdict on weights says; its page is written into the cache.

        Raises:
            UnknownNameError: it is on a vector.
        """
        report = write_report(version)
        found = {"reference": version.reference, "report": None if report is None else str(report)}
        return cls({**read_verdict(version), **found}, read_proof(version))

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return self.verdict["passed"] is True

    def to_json(self) -> dict[str, Any]:
        """Return the verdict, the share of the vector's effect that is recovered, the larger drift ratio, the proof."""
        compiled = self.proof["compiled"]
        numbers = {"recovered": compiled["recovered"]["value"], "drift_ratio": compiled["drift_ratio"]}
        return {"verdict": dict(self.verdict), **numbers, "proof": dict(self.proof)}


@dataclass(frozen=True)
class Compiled:
    """A published task vector, and what its weights do for each behavior.

    Attributes:
        version: of the task vector.
        proved: by behavior.
    """

    version: Version
    proved: Mapping[str, Proved]

    @classmethod
    def of(cls, version: Version, subjects: Sequence[Subject], verify: Callable[[Subject], Version]) -> Self:
        """Return what each behavior's verdict, which ``verify`` makes and publishes, says of a task vector."""
        return cls(version, {subject.name: Proved.of(verify(subject)) for subject in subjects})

    @property
    def passed(self) -> bool:
        """Whether the weights pass for every behavior."""
        return all(one.passed for one in self.proved.values())

    def to_json(self) -> dict[str, Any]:
        """Return all of it."""
        origin = self.version.config["origin"]
        return {
            "task_vector": self.version.reference,
            **{key: origin[key] for key in ("backend", "spec", "forced", "seed", "parts") if key in origin},
            "passed": self.passed,
            "behaviors": {name: one.to_json() for name, one in self.proved.items()},
        }


def compile_and_prove(
    model: SteerableModel,
    sources: Sequence[Source],
    plugins: Plugins,
    store: Store,
    wish: Wish,
    *,
    name: str,
    out: Path | None = None,
    judge: str = JUDGE,
    bar: Progress,
    say: Callable[[str], None],
) -> Compiled:
    """Compile vectors, publish the task vector, and verify the weights with the vectors off; what an interrupted run
    published is not made again.

    Args:
        model: the base.
        sources: what is compiled, together.
        plugins: where backends, scorers and judges are found.
        store: where the task vector and the verdicts go.
        wish: how.
        name: of the task vector.
        out: a folder for the task vector besides, or None.
        judge: of free replies, ``NAME`` or ``NAME:ARGUMENT``.
        bar: shows progress.
        say: tells a person what is done.

    Raises:
        InputError: as ``compile_sources``; or ``out`` exists and ``wish.force`` is false.
    """
    if out is not None:
        check_folder(out, MANIFEST, force=wish.force)
    subjects = [source.subject for source in sources]
    found = partial(found_verdict, store, seed=wish.seed, judge=judge)
    version = compiled_to(store, name, order_digest(sources, wish))
    going_on = version is not None and not all(found(version, subject) for subject in subjects)
    if version is None or not going_on:
        task_vector = compile_sources(model, sources, plugins, wish, name=name, bar=bar, say=say)
        version = publish_compiled(store, task_vector, sources)
    else:
        say(f"{version.reference} is compiled, going on with its verification")
    control = compile_control(model, sources, plugins, wish, bar=bar, say=say) if wish.control else None
    verify = partial(verify_compiled, model, control=control, judge=judge, seed=wish.seed, bar=bar, say=say)

    def verdict_on(subject: Subject) -> Version:
        earlier = found(version, subject) if going_on else None
        return earlier or verify(subject, version, plugins, store)[-1]

    compiled = Compiled.of(version, subjects, verdict_on)
    # Published nowhere: until it is in a proof, its checkpoint is all there is of it.
    forget(_control_workspace(sources, wish))
    if out is not None:
        read_task_vector(store, version.reference).save(out, force=wish.force)
    return compiled


def compiled_to(store: Store, name: str, order: str) -> Version | None:
    """Return the newest version of a task vector that was compiled to an order and not by force, or None."""
    for version in reversed(store.versions("task-vector", name)):
        origin = version.config["origin"]
        if origin.get("order") == order and not origin.get("forced"):
            return version
    return None


def subjects_of(plugins: Plugins, store: Store, version: Version) -> list[Subject]:
    """Return the behaviors whose vectors a published task vector takes the place of, with their unseen pairs.

    Raises:
        InputError: it does not say which, or they are not in the registry.
    """
    found: dict[str, Subject] = {}
    for _, digest in compiled_from(store, version, read_task_vector(store, version.reference)):
        subject = find_source(plugins, store, str(store.find(digest, ["vector"]))).subject
        found.setdefault(subject.name, subject)
    return list(found.values())
