"""The work behind ``engrain run``: the whole chain for a behavior; what an earlier run published is not made again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from engrain.compiling import Proved, Wish, compile_sources, compiled_to, order_digest, publish_compiled
from engrain.core.model import SteerableModel
from engrain.core.vector import Calibration
from engrain.extracting import ensure_calibrated
from engrain.plugins.manager import Plugins
from engrain.proving import verify_compiled
from engrain.registry.store import Store, Version
from engrain.registry.vectors import read_verdict
from engrain.source import Source, find_source
from engrain.subject import Subject
from engrain.verifying import found_verdict, verify_subject, write_report


@dataclass(frozen=True)
class Run:
    """What became of a behavior.

    Attributes:
        vector: reference of the calibrated vector.
        calibration: its dose.
        verdict: on the vector; its JSON.
        task_vector: reference, or None where the verdict did not pass.
        compiled: what the weights do, or None likewise.
        report: the page on the last verdict, or None where there is none.
    """

    vector: str
    calibration: Calibration
    verdict: Mapping[str, Any]
    task_vector: str | None
    compiled: Proved | None
    report: Path | None

    @property
    def passed(self) -> bool:
        """Whether the vector passed, and the weights did."""
        return self.compiled is not None and self.compiled.passed

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``engrain run --json`` prints."""
        return {
            "calibration": {"layer": self.calibration.layer, "strength": self.calibration.strength},
            "verdict": dict(self.verdict),
            "compiled": None if self.compiled is None else self.compiled.to_json(),
            "artifacts": {
                "vector": self.vector,
                "task_vector": self.task_vector,
                "report": None if self.report is None else str(self.report),
            },
        }


def run_subject(
    model: SteerableModel,
    subject: Subject,
    plugins: Plugins,
    store: Store,
    wish: Wish,
    *,
    bar: Progress,
    say: Callable[[str], None],
) -> Run:
    """Extract, calibrate, verify, compile, and verify the weights; it ends at a verdict that did not pass.

    Every step is published as it is finished, and interrupted steps go on where they were.

    Args:
        model: the base.
        subject: a behavior.
        plugins: where backends, estimators, scorers and judges are found.
        store: where all of it goes.
        wish: how it is compiled.
        bar: shows progress.
        say: tells a person what is done.

    Raises:
        InputError: whatever a step refuses.
    """
    vector = ensure_calibrated(model, subject, plugins, store, bar, say)
    assert vector.calibration is not None
    published = store.resolve(f"vector/{subject.name}")
    verdict = _verdict(model, subject, published, plugins, store, wish.seed, bar, say)
    report = write_report(verdict)
    said = read_verdict(verdict)
    said |= {"reference": verdict.reference, "report": None if report is None else str(report)}
    if not said["passed"]:
        return Run(published.reference, vector.calibration, said, None, None, report)
    source = find_source(plugins, store, published.reference)
    made = _task_vector(model, source, plugins, store, wish, bar, say)
    proved = _proved(model, source, made, plugins, store, wish.seed, bar, say)
    page = proved.verdict["report"]
    return Run(published.reference, vector.calibration, said, made.reference, proved, Path(page) if page else report)


def _verdict(
    model: SteerableModel,
    subject: Subject,
    published: Version,
    plugins: Plugins,
    store: Store,
    seed: int,
    bar: Progress,
    say: Callable[[str], None],
) -> Version:
    """Return the verdict on a vector: the newest if it is on the same pairs and of the same seed, else a new one."""
    found = found_verdict(store, published, subject, seed)
    if found is not None:
        say(f"{found.reference} is on {published.reference}")
        return found
    return verify_subject(model, subject, plugins, store, seed=seed, bar=bar, say=say)[1]


def _task_vector(
    model: SteerableModel,
    source: Source,
    plugins: Plugins,
    store: Store,
    wish: Wish,
    bar: Progress,
    say: Callable[[str], None],
) -> Version:
    """Return the task vector that was compiled to the same order, or a new one."""
    found = compiled_to(store, source.subject.name, order_digest([source], wish))
    if found is not None:
        say(f"{found.reference} is compiled from {source.version.reference}")
        return found
    made = compile_sources(model, [source], plugins, wish, name=source.subject.name, bar=bar, say=say)
    return publish_compiled(store, made, [source])


def _proved(
    model: SteerableModel,
    source: Source,
    made: Version,
    plugins: Plugins,
    store: Store,
    seed: int,
    bar: Progress,
    say: Callable[[str], None],
) -> Proved:
    """Return what the weights do: by the newest verdict if it is on the same pairs and of the same seed, else anew."""
    found = found_verdict(store, made, source.subject, seed)
    if found is not None:
        say(f"{found.reference} is on {made.reference}")
        return Proved.of(found)
    return Proved.of(verify_compiled(model, source.subject, made, plugins, store, seed=seed, bar=bar, say=say)[-1])
