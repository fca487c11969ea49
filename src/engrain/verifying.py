"""The work behind ``engrain verify``: a published vector, its subject and the registry together."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path
from rich.progress import Progress

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
from engrain.registry.store import Parent, Store, Version
from engrain.registry.vectors import REPORT, publish_pairs, publish_verdict
from engrain.report import available
from engrain.subject import Subject
from engrain.version import __version__

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
        InputError: there are no unseen pairs to test on, or too few.
        JudgeError: the judge does not answer.
    """
    if subject.test is None:
        raise InputError(
            f"'{subject.name}' was made from every pair that is recorded with it, and a verdict needs unseen ones: "
            f"engrain verify {subject.name} --pairs FILE.jsonl."
        )
    vector = ensure_calibrated(model, subject, plugins, store, bar, say)
    active = model.activate(vector)
    held_out = HeldOut(
        subject.test,
        read_neutral(model, split="test"),
        subject.prompts[:_PROMPTS],
        read_questions(),
        None if subject.brief is None else subject.brief.instruction,
        {name: plugins.scorer(name) for name in subject.scorers},
        make_judge(plugins, model, subject, judge),
    )
    published = store.resolve(f"vector/{subject.name}")
    steps = _steps(published.digest, subject.test.digest, str(seed), judge, *subject.scorers)
    if steps.finished:
        say(f"going on after: {', '.join(steps.finished)}")
    tasks = {}

    def plan(totals: dict[str, int]) -> None:
        for what, total in totals.items():
            tasks[what] = bar.add_task(what, total=total)
        said = ", ".join(f"{what} {total}" for what, total in totals.items())
        say(f"verifying {published.reference} ({said}; replies have {REPLY_TOKENS} tokens at most)")

    verdict = verify(
        model,
        active,
        held_out,
        _training(vector, subject, plugins),
        budget=subject.budget,
        seed=seed,
        steps=steps,
        plan=plan,
        progress=lambda what, done: bar.update(tasks[what], advance=done),
    )
    tested = publish_pairs(store, f"{subject.name}-test", subject.test)
    parents = [Parent("vector", published.digest), Parent("test", tested.digest)]
    report = _page(subject, vector, verdict, published) if available() else None
    version = publish_verdict(store, subject.name, verdict, parents, report)
    steps.forget()
    return verdict, version


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


def _page(subject: Subject, vector: SteeringVector, verdict: Verdict, published: Version) -> bytes:
    from engrain.report.verdict import verdict_page

    footer = [f"vector {published.digest[:19]}", f"layer {verdict.layer}", f"seed {verdict.seed}"]
    if vector.fingerprint is not None:
        # Of a folder its name only: the report may be passed on.
        made_on = vector.fingerprint
        footer.insert(0, f"model {Path(made_on.source).name} ({made_on.architecture}, {made_on.weights[:19]})")
    about = "" if subject.brief is None else subject.brief.description
    page = verdict_page(
        subject.name, verdict.to_json(), about=about, origin=vector.origin, budget=subject.budget, footer=footer
    )
    return page.to_html()


def _training(vector: SteeringVector, subject: Subject, plugins: Plugins) -> Training:
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


def _steps(*work: str) -> Steps:
    key = " ".join([*work, __version__])
    folder = user_cache_path("engrain") / "verify"
    return Steps(folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json", key)
