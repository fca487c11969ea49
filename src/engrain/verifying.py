"""The work behind ``engrain verify``: a published vector, its subject and the registry together."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path
from rich.progress import Progress, TaskID

from engrain.core.capability import read_questions
from engrain.core.errors import InputError
from engrain.core.extract import GradientEstimator
from engrain.core.files import write_atomically
from engrain.core.judge import Judge
from engrain.core.model import SteerableModel
from engrain.core.neutral import read_neutral
from engrain.core.replies import REPLY_TOKENS
from engrain.core.steps import Steps
from engrain.core.training import Training
from engrain.core.vector import SteeringVector
from engrain.core.verdict import Verdict
from engrain.core.verify import HeldOut, verify
from engrain.extracting import ensure_calibrated
from engrain.plugins.manager import Plugins
from engrain.registry.manifest import titled
from engrain.registry.policy import newest_verdict
from engrain.registry.store import Parent, Store, Version
from engrain.registry.vectors import REPORT, publish_pairs, publish_verdict, read_pairs, read_verdict
from engrain.report import available
from engrain.subject import Subject
from engrain.version import __version__

if TYPE_CHECKING:
    from engrain.report.compiled import Compiled

# Needs nothing but the model.
JUDGE = "contrastive"
# Free replies are made to so many prompts at most.
_PROMPTS = 24


def verify_subject(
    model: SteerableModel,
    subject: Subject,
    plugins: Plugins,
    store: Store,
    *,
    judge: str = JUDGE,
    seed: int,
    bar: Progress,
    say: Callable[[str], None],
) -> tuple[Verdict, Version]:
    """Return the verdict on the subject's calibrated vector, published with its report where the packages for that
    are installed; an interrupted run goes on where it was.

    Args:
        judge: of the free replies, ``NAME`` or ``NAME:ARGUMENT``.

    Raises:
        InputError: there are no unseen pairs to test on, or too few; or no unseen scenarios.
        JudgeError: the judge does not answer.
    """
    held = held_out(model, subject, plugins, judge)
    vector = ensure_calibrated(model, subject, plugins, store, bar, say)
    active = model.activate(vector)
    published = store.resolve(f"vector/{subject.name}")
    done = steps(published.digest, held.pairs.digest, str(seed), judge, *subject.scorers)
    common = common_steps(published.digest, subject, held, seed)
    if known := (*common.finished, *done.finished):
        say(f"going on after: {', '.join(known)}")
    bars = Bars(bar, say, f"verifying {published.reference}", f"replies have {REPLY_TOKENS} tokens at most")
    verdict = verify(
        model,
        active,
        held,
        training(vector, subject, plugins),
        budget=subject.budget,
        seed=seed,
        steps=done,
        common=common,
        plan=bars.plan,
        progress=bars.progress,
    )
    tested = publish_pairs(store, f"{subject.name}-test", held.pairs)
    parents = [Parent("vector", published.digest), Parent("test", tested.digest)]
    report = verdict_html(subject, vector, verdict, f"vector {published.digest[:19]}") if available() else None
    version = publish_verdict(store, subject.name, verdict, parents, report)
    done.forget()
    return verdict, version


def found_verdict(store: Store, on: Version, subject: Subject, seed: int, judge: str | None = None) -> Version | None:
    """Return the newest verdict on a version if it is on the same pairs, of the same seed and judge; else None.

    Args:
        store: where it is looked for.
        on: a vector or a task vector.
        subject: whose pairs it is to be on.
        seed: of its drawing.
        judge: of its free replies, ``NAME`` or ``NAME:ARGUMENT``; None for any.
    """
    evidence = newest_verdict(store, subject.name, on.digest)
    if evidence is None or subject.test is None:
        return None
    version = store.resolve(evidence.reference)
    judged = read_verdict(version).get("judged") or {}
    same_judge = judge is None or judged.get("judge", judge) == judge
    same_pairs = read_pairs(store, version, "test").digest == subject.test.digest
    return version if same_judge and same_pairs and version.config.get("seed") == seed else None


def held_out(model: SteerableModel, subject: Subject, plugins: Plugins, judge: str) -> HeldOut:
    """Return what a verdict on the subject is measured on.

    Args:
        model: the base.
        subject: the subject.
        plugins: for its scorers and the judge.
        judge: of the free replies, ``NAME`` or ``NAME:ARGUMENT``.

    Raises:
        InputError: there are no unseen pairs or no unseen scenarios, or the judge does not fit the subject.
        UnknownNameError: no such judge or scorer.
    """
    if subject.test is None:
        raise InputError(
            f"'{subject.name}' was made from every pair that is recorded with it, and a verdict needs unseen ones: "
            f"engrain verify {subject.name} --pairs FILE.jsonl."
        )
    subject.check_prompts()
    return HeldOut(
        subject.test,
        read_neutral(model, split="test"),
        subject.prompts[:_PROMPTS],
        read_questions(),
        None if subject.brief is None else subject.brief.instruction,
        {name: plugins.scorer(name) for name in subject.scorers},
        make_judge(plugins, model, subject, judge),
    )


class Bars:
    """Progress of one piece of work, a bar for each thing that it counts.

    Args:
        bar: where they are shown.
        say: tells the person what is to be done.
        what: the work.
        note: besides how much of everything there is, or empty.
    """

    def __init__(self, bar: Progress, say: Callable[[str], None], what: str, note: str = "") -> None:
        self._bar = bar
        self._say = say
        self._what = what
        self._note = note
        self._tasks: dict[str, TaskID] = {}

    def plan(self, totals: dict[str, int]) -> None:
        """Take in how much of everything there is to do."""
        self._tasks = {what: self._bar.add_task(what, total=total) for what, total in totals.items()}
        said = ", ".join(f"{what} {total}" for what, total in totals.items())
        self._say(f"{self._what} ({said}{'; ' if self._note else ''}{self._note})")

    def progress(self, what: str, done: int) -> None:
        """Take in that some of it is done."""
        self._bar.update(self._tasks[what], advance=done)


def write_report(version: Version, out: Path | None = None, *, force: bool = False) -> Path | None:
    """Write the HTML report of a published verdict to ``out``, or else into the cache, and return where it is.

    Returns None for a verdict that was published without one: in the registry it would have no ending, and no
    browser opens it.

    Raises:
        OutputExistsError: ``out`` exists and ``force`` is false.
    """
    if REPORT not in titled(version.manifest):
        return None
    page = version.path(REPORT).read_bytes()
    digest = version.digest.removeprefix("sha256:")
    path = out or user_cache_path("engrain") / "reports" / f"{version.name}-{digest[:12]}.html"
    write_atomically(path, page, force=force or out is None)
    return path


def verdict_html(
    subject: Subject, vector: SteeringVector, verdict: Verdict, origin: str, compiled: "Compiled | None" = None
) -> bytes:
    """Return a verdict's page.

    Args:
        subject: whose verdict it is.
        vector: the vector that it is on, or that the weights were compiled from.
        verdict: the verdict.
        origin: what it is on, a phrase.
        compiled: the proof, when it is on weights.
    """
    from engrain.report.verdict import verdict_page

    footer = [origin, f"layer {verdict.layer}", f"seed {verdict.seed}"]
    if vector.fingerprint is not None:
        # Of a folder its name only: the report may be passed on.
        made_on = vector.fingerprint
        footer.insert(0, f"model {Path(made_on.source).name} ({made_on.architecture}, {made_on.weights[:19]})")
    page = verdict_page(
        subject.name,
        verdict.to_json(),
        about="" if subject.brief is None else subject.brief.description,
        origin=vector.origin,
        budget=subject.budget,
        footer=footer,
        compiled=compiled,
    )
    return page.to_html()


def training(vector: SteeringVector, subject: Subject, plugins: Plugins) -> Training:
    """Return what the vector was made from, by its own record."""
    positions = str(vector.origin.get("positions", subject.positions))
    estimator = plugins.estimator(str(vector.origin.get("method", subject.method)))
    return Training(subject.train, positions, isinstance(estimator(vector.width), GradientEstimator))


def make_judge(plugins: Plugins, model: SteerableModel, subject: Subject, name: str) -> Judge | None:
    """Return the judge ``NAME`` or ``NAME:ARGUMENT`` of the subject, or None where it has no words to judge by.

    Raises:
        UnknownNameError: no such judge.
        InputError: a judge was asked for by name, and the subject is no behavior with instructions.
    """
    name, _, argument = name.partition(":")
    make = plugins.judge(name)
    if subject.brief is None:
        if name != JUDGE:
            raise InputError(
                f"The judge '{name}' needs a behavior in words, and '{subject.name}' is pairs only; "
                f"write a behavior: engrain new {subject.name}."
            )
        return None
    return make(model, subject.brief, argument)


def common_steps(vector: str, subject: Subject, held: HeldOut, seed: int) -> Steps:
    """Return the steps that verdicts on a vector and on weights compiled from it share; they stay in the cache.

    Args:
        vector: its digest.
        subject: whose pairs it was made from.
        held: what the verdicts are measured on.
        seed: of the controls.
    """
    return steps("common", vector, subject.train.digest, held.pairs.digest, str(seed), held.instruction or "")


def steps(*work: str) -> Steps:
    """Return the steps of this work, kept in the cache until they are forgotten."""
    return Steps.of(" ".join([*work, __version__]), user_cache_path("engrain") / "verify")
