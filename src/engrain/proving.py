"""The work behind verifying compiled weights: a published task vector, its subject and the registry together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rich.progress import Progress

from engrain.core.compile.proof import Proof
from engrain.core.compile.prove import prove
from engrain.core.composition import Active
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector
from engrain.core.vector import SteeringVector
from engrain.core.verdict import Verdict
from engrain.core.verify import verify
from engrain.plugins.manager import Plugins
from engrain.registry.policy import newest_verdict
from engrain.registry.store import Parent, Store, Version
from engrain.registry.task_vectors import read_task_vector
from engrain.registry.vectors import publish_pairs, publish_verdict, read_proof, read_vector
from engrain.report import available
from engrain.subject import Subject
from engrain.verifying import JUDGE, Bars, common_steps, held_out, steps, training, verdict_html


def verify_compiled(
    model: SteerableModel,
    subject: Subject,
    published: Version,
    plugins: Plugins,
    store: Store,
    *,
    control: TaskVector | None = None,
    judge: str = JUDGE,
    seed: int,
    bar: Progress,
    say: Callable[[str], None],
) -> tuple[Verdict, Proof, Version]:
    """Return the verdict on a published task vector and its proof, published as one version with their report; an
    interrupted run goes on where it was.

    The task vector is read from the registry, so that what is verified is what is stored; so are the vectors that it
    was compiled from.

    Args:
        model: the base.
        subject: whose pairs the verdict is on.
        published: the task vector.
        plugins: for scorers, judge and estimator.
        store: where it is published.
        control: a random direction of the same length, compiled by the same recipe, for the proof; or None.
        judge: of the free replies, ``NAME`` or ``NAME:ARGUMENT``.
        seed: of every drawing and resampling.
        bar: where progress is shown.
        say: tells the person something.

    Raises:
        InputError: there are no unseen pairs to test on, or too few; or no unseen scenarios; or the vectors that it was
            compiled from are not known.
        FingerprintError: it was compiled for another base.
        JudgeError: the judge does not answer.
    """
    task_vector = read_task_vector(store, published.reference)
    model.check_task_vector(task_vector)
    teachers = compiled_from(store, published, task_vector)
    # Of several that were compiled together, the one whose pairs these are.
    active, source = next((one for one in teachers if one[0].vector.name == subject.name), teachers[0])
    held = held_out(model, subject, plugins, judge)
    beside = "" if control is None else f"{control.name} {control.norm()!r}"
    done = steps(published.digest, held.pairs.digest, str(seed), judge, *subject.scorers, beside)
    common = common_steps(source, subject, held, seed)
    if known := (*common.finished, *done.finished):
        say(f"going on after: {', '.join(known)}")
    bars = Bars(bar, say, f"verifying {published.reference}, the vector removed")
    verdict = verify(
        model,
        active,
        held,
        training(active.vector, subject, plugins),
        compiled=partial(model.compiled, task_vector),
        budget=subject.budget,
        seed=seed,
        steps=done,
        common=common,
        plan=bars.plan,
        progress=bars.progress,
    )
    bars = Bars(bar, say, f"comparing {published.reference} with the vector")
    proof = prove(
        model,
        [one for one, _ in teachers],
        task_vector,
        held,
        control=control,
        seed=seed,
        steps=done,
        plan=bars.plan,
        progress=bars.progress,
    )
    tested = publish_pairs(store, f"{subject.name}-test", held.pairs)
    # Not the role "vector": a verdict on weights is no evidence for or against the vector.
    parents = [Parent("task-vector", published.digest), Parent("test", tested.digest)]
    parents += [Parent("teacher", digest) for digest in sorted({digest for _, digest in teachers})]
    report = None
    if available():
        from engrain.report.compiled import Compiled

        origin = f"task vector {published.digest[:19]}"
        others = other_backends(store, published, subject.name)
        compiled = Compiled(proof, {**task_vector.origin, "backends": others})
        report = verdict_html(subject, active.vector, verdict, origin, compiled)
    version = publish_verdict(store, subject.name, verdict, parents, report, proof)
    done.forget()
    return verdict, proof, version


def other_backends(store: Store, published: Version, behavior: str) -> list[dict[str, Any]]:
    """Return what other backends made of the same vectors, by the newest proof of each: backend, recovered, drift.

    Args:
        store: where they are.
        published: the task vector that they are held against.
        behavior: whose verdicts count.
    """
    own = {parent.digest for parent in published.parents if parent.role == "vector"}
    found: dict[str, dict[str, Any]] = {}
    for version in reversed(store.versions("task-vector", published.name)):
        backend = str(version.config["origin"].get("backend"))
        same = own == {parent.digest for parent in version.parents if parent.role == "vector"}
        if not same or backend in found or backend == published.config["origin"].get("backend"):
            continue
        verdict = newest_verdict(store, behavior, version.digest)
        if verdict is not None:
            proof = Proof.from_json(read_proof(store.resolve(verdict.reference)))
            shares = {"recovered": proof.compiled.recovered.value, "drift": proof.compiled.drift_ratio}
            found[backend] = {"backend": backend, **shares}
    return list(found.values())


def compiled_from(store: Store, published: Version, task_vector: TaskVector) -> list[tuple[Active, str]]:
    """Return the vectors in use that a published task vector takes the place of, each with its digest.

    Those of a combination are those of its parts, each as strong as its part's scale makes it; one that several parts
    have is there once, as strong as they make it together.

    Raises:
        InputError: it does not say, or they are not in the registry.
    """
    try:
        if "parts" in task_vector.origin:
            found = _of_parts(store, task_vector.origin["parts"])
        else:
            found = _of_parents(store, published, task_vector.origin["vectors"])
    except (KeyError, TypeError) as error:
        raise _unknown(published) from error
    if not found:
        raise _unknown(published)
    return found


def _of_parts(store: Store, parts: Sequence[Mapping[str, Any]]) -> list[tuple[Active, str]]:
    summed: dict[tuple[Any, ...], tuple[Active, str]] = {}
    for part in parts:
        reference = store.find(part["digest"], ["task-vector"])
        if reference is None:
            raise KeyError(part["digest"])
        own = store.resolve(reference)
        for active, digest in compiled_from(store, own, read_task_vector(store, own.reference)):
            use = (digest, active.layers, active.positions, active.operation, active.preserve_norm)
            before = summed[use][0].strength if use in summed else 0.0
            summed[use] = (replace(active, strength=before + part["scale"] * active.strength), digest)
    return list(summed.values())


def _of_parents(store: Store, published: Version, vectors: Sequence[Mapping[str, Any]]) -> list[tuple[Active, str]]:
    known: dict[str, tuple[SteeringVector, str]] = {}
    for parent in published.parents:
        reference = store.find(parent.digest, ["vector"]) if parent.role == "vector" else None
        if reference is not None:
            vector = read_vector(store, str(reference))
            known[vector.name] = (vector, parent.digest)
    return [_used(known, one) for one in vectors]


def _used(known: Mapping[str, tuple[SteeringVector, str]], one: Mapping[str, Any]) -> tuple[Active, str]:
    """Return a vector as a task vector's origin says that it was in use."""
    vector, digest = known[one["name"]]
    how = (one["strength"], one["positions"], one["operation"], one.get("preserve_norm", False))
    return Active(vector, tuple(one["layers"]), *how), digest


def _unknown(published: Version) -> InputError:
    return InputError(
        f"'{published.reference}' was compiled from vectors that are not in this registry, or does not say from which, "
        f"so that there is nothing to hold it against. Compile it again, or pull these vectors."
    )
