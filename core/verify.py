"""Verification: do a vector, or the weights compiled from it, do what they should on unseen talk, and nothing else?"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engrain.core.advice import advise, advise_compiling
from engrain.core.budget import Budget
from engrain.core.capability import Question, answered
from engrain.core.composition import Active
from engrain.core.contrast import ContrastPair, Message, PairSet
from engrain.core.controls import RANDOM, random_controls, shuffled_control
from engrain.core.edit import Edit
from engrain.core.errors import InputError
from engrain.core.evaluate import change_under
from engrain.core.fluency import Degeneration
from engrain.core.judge import Judge
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.progress import Count, Progress
from engrain.core.replies import Replies
from engrain.core.scorer import Scorer
from engrain.core.scoring import Divergence, NeutralScorer, bootstrap_interval, margins, margins_under
from engrain.core.steps import Steps
from engrain.core.training import Training
from engrain.core.verdict import Gate, Verdict

# A percentile interval from fewer scenarios than this is too narrow to be trusted.
MIN_SCENARIOS = 12
# Controls are twenty times the work of the vector itself; on more pairs than this they would be all of a verdict's.
CONTROL_PAIRS = 60


@dataclass(frozen=True)
class HeldOut:
    """What nothing was fitted on.

    Attributes:
        pairs: test pairs, boundary pairs among them.
        neutral: texts that should be left alone.
        prompts: users' messages that free replies are made to.
        questions: with exact answers.
        instruction: a system prompt that asks for the behavior, or None.
        scorers: what is measured on the pairs besides the margin, by name.
        judge: who scores the free replies, or None.
    """

    pairs: PairSet
    neutral: Sequence[Encoded]
    prompts: Sequence[str]
    questions: Sequence[Question]
    instruction: str | None = None
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    judge: Judge | None = None


@dataclass(frozen=True)
class _Work:
    model: SteerableModel
    active: Active
    edit: Edit
    training: Training
    held_out: HeldOut
    controls: int
    seed: int
    progress: Progress = field(repr=False)

    def margins(self) -> list[float]:
        found: list[float] = margins(self.model, self.held_out.pairs.pairs, self._count("pairs")).tolist()
        return found

    def edited(self) -> list[float]:
        with self.edit():
            return self.margins()

    def control_margins(self) -> dict[str, list[float]]:
        """Return the margins under each control direction of the pairs that these are compared on."""
        directions = random_controls(self.active, self.controls, self.seed)
        shuffled = shuffled_control(
            self.model,
            self.active,
            self.training.pairs.pairs,
            positions=self.training.positions,
            gradients=self.training.gradients,
            seed=self.seed,
        )
        edits = [*directions, shuffled]
        ordinary = self.held_out.pairs.ordinary
        pairs = [ordinary[place] for place in _compared(ordinary)]
        found = margins_under(self.model, pairs, edits, self._count("controls"))
        return {edit.vector.name: own.tolist() for edit, own in zip(edits, found, strict=True)}

    def prompted(self) -> list[float] | None:
        """Return the margins of the ordinary pairs behind a system prompt that asks for the behavior."""
        if self.held_out.instruction is None:
            return None
        pairs = [_instructed(pair, self.held_out.instruction) for pair in self.held_out.pairs.ordinary]
        found: list[float] = margins(self.model, pairs, self._count("pairs")).tolist()
        return found

    def neutral(self) -> dict[str, Any]:
        scorer = NeutralScorer(self.model, self.held_out.neutral)
        return scorer.divergence(self.edit, self._count("neutral text")).to_json()

    def scores(self) -> dict[str, dict[str, Any]]:
        """Return the change of every other score on the ordinary pairs."""
        pairs = self.held_out.pairs.ordinary
        return {
            name: change_under(
                self.model, pairs, scorer, self.edit, seed=self.seed, progress=self._count("scores")
            ).to_json()
            for name, scorer in self.held_out.scorers.items()
        }

    def replies(self) -> list[dict[str, str]]:
        """Return free replies of base and edited model, side by side."""
        return Replies.sample(self.model, self.held_out.prompts, self.edit, self._count("replies")).to_json()

    def judged(self, replies: Replies, degeneration: Degeneration) -> dict[str, Any] | None:
        """Return what the judge says of the free replies."""
        judge = self.held_out.judge
        if judge is None or not replies.prompts:
            return None
        count = self._count("judged replies")
        return replies.judged(judge, degeneration.incoherent, seed=self.seed, progress=count).to_json()

    def capability(self) -> list[list[bool]]:
        """Return which questions the base and the edited model answer right."""
        base: list[bool] = answered(self.model, self.held_out.questions).tolist()
        with self.edit():
            edited: list[bool] = answered(self.model, self.held_out.questions).tolist()
        self.progress("questions", 2 * len(self.held_out.questions))
        return [base, edited]

    def _count(self, what: str) -> Count:
        return lambda done: self.progress(what, done)

    def totals(self) -> dict[str, int]:
        """Return how much there is to do of everything that progress is told of."""
        ordinary = len(self.held_out.pairs.ordinary)
        prompted = ordinary if self.held_out.instruction is not None else 0
        return {
            "pairs": 2 * len(self.held_out.pairs) + prompted,
            "controls": (self.controls + 1) * len(_compared(self.held_out.pairs.ordinary)),
            "neutral text": len(self.held_out.neutral),
            "replies": 2 * len(self.held_out.prompts),
            "judged replies": 2 * len(self.held_out.prompts) if self.held_out.judge is not None else 0,
            "scores": 2 * ordinary * len(self.held_out.scorers),
            "questions": 2 * len(self.held_out.questions),
        }


def verify(
    model: SteerableModel,
    active: Active,
    held_out: HeldOut,
    training: Training,
    *,
    compiled: Edit | None = None,
    budget: Budget | None = None,
    controls: int = RANDOM,
    seed: int = 0,
    steps: Steps | None = None,
    common: Steps | None = None,
    plan: Callable[[dict[str, int]], None] | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Return the verdict on a vector in use, or on the weights that were compiled from it.

    The gates are: the effect on the margin is above 0; it is above that of the best of all control directions of the
    same length (random ones, and one from pairs with shuffled labels), where both are compared on ``CONTROL_PAIRS``
    pairs or a scenario more; side effects are within the budget and free replies no more degenerate than the base's
    own. Intervals are paired bootstraps over scenarios. The boundary effect of a vector is reported only: a constant
    one cannot know the boundary. That of compiled weights must not be surely below 0.

    Args:
        model: the model, unsteered.
        active: the vector in use, at one block.
        held_out: what it is measured on.
        training: what it was made from.
        compiled: makes a context in which compiled weights are on the model. The verdict is on these; the vector says
            no more than what the controls are like, which are steered as ever.
        budget: of side effects; the defaults of ``Budget``.
        controls: how many random directions.
        seed: of every drawing and resampling.
        steps: results of an interrupted run, and where new ones are kept.
        common: the same for what says nothing of the edit: base, controls, prompt. The verdict on the vector and that
            on the weights compiled from it have these in common.
        plan: called beforehand with how much of everything there is to do.
        progress: called with what was done (a name of the plan) and how much.

    Raises:
        InputError: too few scenarios for an interval.
    """
    ordinary = held_out.pairs.ordinary
    scenarios = {pair.scenario for pair in ordinary}
    if len(scenarios) < MIN_SCENARIOS:
        raise InputError(
            f"{held_out.pairs.source}: {len(scenarios)} scenarios with ordinary pairs are too few for an interval; "
            f"{MIN_SCENARIOS} are needed, so add pairs of {MIN_SCENARIOS - len(scenarios)} more."
        )
    steps = steps or Steps()
    common = common or steps
    edit = compiled or partial(model.steer, active)
    work = _Work(model, active, edit, training, held_out, controls, seed, progress or (lambda what, done: None))
    if plan is not None:
        plan(work.totals())
    base = _Margins(held_out.pairs, common.do("base", work.margins))
    edited = _Margins(held_out.pairs, steps.do("edited", work.edited))
    rivals = common.do("controls", work.control_margins)
    prompted = common.do("prompt", work.prompted)
    neutral = steps.do("neutral", work.neutral)
    scores = steps.do("scores", work.scores)
    replies = Replies.from_json(steps.do("replies", work.replies))
    degeneration = replies.degeneration(model)
    judged = steps.do("judged", lambda: work.judged(replies, degeneration))
    known = steps.do("capability", work.capability)

    effect = edited.ordinary - base.ordinary
    compared = _compared(ordinary)
    beside = [ordinary[place] for place in compared]
    effects = {name: np.array(found) - base.ordinary[compared] for name, found in rivals.items()}
    best = max(effects, key=lambda name: float(effects[name].mean()))
    boundary = _boundary(base, edited, held_out.pairs.boundary, seed)
    gates = [
        _above_zero("effect", effect, ordinary, seed, "the interval of the effect reaches 0"),
        _above_zero(
            "controls", effect[compared] - effects[best], beside, seed, f"not surely above the control '{best}'"
        ),
        _side_effects(neutral, degeneration, budget or Budget()),
    ]
    if compiled is not None and boundary is not None:
        gates.append(_boundary_gate(boundary))
    measured = {
        "effect": _summary(effect, ordinary, seed),
        "boundary": boundary,
        "anti_steered": _anti_steered(effect, ordinary),
        "controls": {name: float(own.mean()) for name, own in effects.items()},
        "best_control": best,
        "control_pairs": len(compared),
        "prompt": None if prompted is None else _summary(np.array(prompted) - base.ordinary, ordinary, seed),
        "neutral": neutral,
        "scores": scores,
        "judged": judged,
        "degeneration": degeneration.to_json(),
        "capability": {"questions": len(held_out.questions), "base": _share(known[0]), "edited": _share(known[1])},
        "replies": replies.to_json(),
    }
    failed = [gate.name for gate in gates if not gate.passed]
    if compiled is not None:
        advice = advise_compiling(failed)
    else:
        advice = advise(model, active, training, failed) if failed else ()
    return Verdict(active.layers[0], active.strength, tuple(gates), measured, advice, seed)


class _Margins:
    """Margins of a set of pairs, told apart."""

    def __init__(self, pairs: PairSet, found: Sequence[float]) -> None:
        every = np.asarray(found, dtype=np.float64)
        boundary = np.array([pair.boundary for pair in pairs])
        self.ordinary: NDArray[np.float64] = every[~boundary]
        self.boundary: NDArray[np.float64] = every[boundary]


def _compared(pairs: Sequence[ContrastPair]) -> list[int]:
    """Return the places of the pairs that controls are measured on: whole scenarios, in the order of their hashes."""
    chosen: set[str] = set()
    count = 0
    for scenario in sorted({pair.scenario for pair in pairs}, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if count < CONTROL_PAIRS:
            chosen.add(scenario)
            count += sum(pair.scenario == scenario for pair in pairs)
    return [place for place, pair in enumerate(pairs) if pair.scenario in chosen]


def _scenarios(pairs: Sequence[ContrastPair]) -> list[str]:
    return [pair.scenario for pair in pairs]


def _summary(values: NDArray[np.float64], pairs: Sequence[ContrastPair], seed: int) -> dict[str, Any]:
    interval = bootstrap_interval(values, _scenarios(pairs), seed=seed) if len(set(_scenarios(pairs))) > 1 else None
    return {"value": float(values.mean()), "ci95": interval and list(interval), "n": len(values)}


def _above_zero(name: str, values: NDArray[np.float64], pairs: Sequence[ContrastPair], seed: int, fault: str) -> Gate:
    low, high = bootstrap_interval(values, _scenarios(pairs), seed=seed)
    return Gate(name, low > 0, float(values.mean()), 0.0, (low, high), () if low > 0 else (fault,))


def _side_effects(neutral: dict[str, Any], degeneration: Degeneration, budget: Budget) -> Gate:
    faults = budget.faults(Divergence(**neutral))
    faults += [f"replies degenerate: {fault}" for fault in degeneration.faults()]
    return Gate("side_effects", not faults, neutral["kl_mean"], budget.kl_mean, None, tuple(faults))


def _boundary(base: _Margins, edited: _Margins, pairs: PairSet, seed: int) -> dict[str, Any] | None:
    if not pairs.pairs:
        return None
    found = _summary(edited.boundary - base.boundary, pairs, seed)
    # Surely below 0: the behavior is pushed where it is wrong.
    return {**found, "overcorrection": found["ci95"] is not None and found["ci95"][1] < 0}


def _boundary_gate(found: dict[str, Any]) -> Gate:
    faults = ("boundary pairs surely moved the wrong way",) if found["overcorrection"] else ()
    return Gate("boundary", not faults, found["value"], 0.0, found["ci95"] and tuple(found["ci95"]), faults)


def _anti_steered(effect: NDArray[np.float64], pairs: Sequence[ContrastPair]) -> float:
    """Return the share of scenarios that moved the wrong way."""
    names, of = np.unique(np.array(_scenarios(pairs)), return_inverse=True)
    sums = np.bincount(of, weights=effect, minlength=len(names))
    return float((sums < 0).mean())


def _share(right: Sequence[bool]) -> float | None:
    return float(np.mean(right)) if right else None


def _instructed(pair: ContrastPair, instruction: str) -> ContrastPair:
    """Return the pair with a system prompt that says ``instruction``, in front of its own if it has one."""

    def put(messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if messages[0].role == "system":
            return (Message("system", f"{instruction}\n\n{messages[0].content}"), *messages[1:])
        return (Message("system", instruction), *messages)

    negative = pair.negative_messages
    return ContrastPair(
        put(pair.messages),
        pair.positive,
        pair.negative,
        None if negative is None else put(negative),
        scenario=pair.scenario,
    )
