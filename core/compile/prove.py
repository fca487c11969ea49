"""Proving: compiled weights held against the vector they take the place of, on texts that neither was made from."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engrain.core.change import Change
from engrain.core.compile.attention import attention_mass, turn_of
from engrain.core.compile.compiler import check_base
from engrain.core.compile.proof import Depth, Drift, Fidelity, Point, Proof, Share
from engrain.core.compile.sides import BASE, Side, each_side, of_members
from engrain.core.compile.trajectories import sample_trajectories
from engrain.core.composition import Active
from engrain.core.edit import Edit
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.progress import Progress
from engrain.core.scoring import Divergence, bootstrap_ratio, divergences, log_probabilities
from engrain.core.steps import Steps
from engrain.core.task_vector import TaskVector, layer_of
from engrain.core.verify import HeldOut

# Besides 0, the base, and 1, as compiled.
SCALES = (0.5, 1.5)
# Of a reply that the steered model makes.
REPLY_TOKENS = 64
_STEERED, _COMPILED, _ROUNDED, _CONTROL = "steered", "compiled", "rounded", "control"


@dataclass(frozen=True)
class _Work:
    model: SteerableModel
    teacher: Edit
    students: Mapping[str, Edit]
    control: Edit | None
    held_out: HeldOut
    entry: int
    depths: tuple[int, ...]
    seed: int
    progress: Progress = field(repr=False)

    def replies(self) -> list[dict[str, Any]]:
        """Return what the steered model replies to unseen prompts, as tokens."""
        found = sample_trajectories(
            self.model,
            self.held_out.prompts,
            self.teacher,
            tokens=REPLY_TOKENS,
            seed=self.seed,
            progress=partial(self.progress, "proof: replies"),
        )
        return [{"prompt": list(one.sequence.prompt), "reply": list(one.sequence.reply)} for one in found]

    def margins(self) -> dict[str, list[float]]:
        """Return the margins of the ordinary test pairs under every edit."""
        edits = {_STEERED: self.teacher, **self.students}
        if self.control is not None:
            edits[_CONTROL] = self.control
        sequences = [one for pair in self.held_out.pairs.ordinary for one in self.model.encode_pair(pair)]
        means: dict[str, Tensor] = defaultdict(lambda: torch.zeros(len(sequences), dtype=torch.float64))

        def said(reference: Side, side: Side) -> tuple[Tensor]:
            return (log_probabilities(side.logits, side.following),)

        for pack, found in each_side(self.model, sequences, edits, self.entry, said):
            for name, (scores,) in found.items():
                for member, own in of_members(pack, scores).items():
                    means[name][member] = own.mean()
            self.progress("proof: pairs", len(pack.members))
        return {name: (own[0::2] - own[1::2]).tolist() for name, own in means.items()}

    def likeness(self, replies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return on the steered model's replies KL(steered || each), summed over each, and sums of hidden states."""
        if not replies:
            raise InputError(
                f"The steered model made no fluent reply to {len(self.held_out.prompts)} unseen prompts; "
                f"there is nothing to compare. Give more prompts, or calibrate a lower strength."
            )
        sequences = [Encoded(tuple(one["prompt"]), tuple(one["reply"])) for one in replies]
        edits = {_STEERED: self.teacher, **{name: self.students[name] for name in (_COMPILED, _ROUNDED)}}
        sums = {name: [0.0] * len(sequences) for name in (BASE, _COMPILED, _ROUNDED)}
        shifts = {layer: _Shifts() for layer in self.depths}

        def compare(steered: Side, side: Side) -> tuple[Tensor, ...]:
            kl, _ = divergences(steered.logits, side.logits, side.following)
            return kl, *(side.states[layer].double() for layer in self.depths)

        # Nothing is to be done for a prompt without a fluent reply.
        self.progress("proof: hidden states", len(self.held_out.prompts) - len(sequences))
        looked = each_side(self.model, sequences, edits, self.entry, compare, layers=self.depths, reference=_STEERED)
        for pack, found in looked:
            for name, own in sums.items():
                for member, kl in of_members(pack, found[name][0]).items():
                    own[member] = float(kl.sum())
            for place, shift in enumerate(shifts.values(), 1):
                shift.add(*(found[name][place] for name in (BASE, _STEERED, _COMPILED)))
            self.progress("proof: hidden states", len(pack.members))
        return {"kl": sums, "depths": [vars(shift.depth(layer)) for layer, shift in shifts.items()]}

    def attention(self, replies: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return the share of attention on the last turn of the user, of each, on the steered model's replies."""
        turns = {self.model.render(prompt): turn_of(self.model, prompt) for prompt in self.held_out.prompts}
        sequences = [Encoded(tuple(one["prompt"]), tuple(one["reply"])) for one in replies]
        edits: dict[str, Edit] = {BASE: nullcontext, _STEERED: self.teacher, _COMPILED: self.students[_COMPILED]}
        found = {}
        for name, edit in edits.items():
            with edit():
                mass = attention_mass(self.model, sequences, [turns[one.prompt] for one in sequences], self.entry)
            if mass is not None:
                found[name] = mass
            self.progress("proof: attention", len(self.held_out.prompts))
        return found

    def drift(self, kind: str) -> dict[str, Any]:
        """Return how far each edit moves the neutral texts of one kind."""
        sequences, edits = _neutral(self.held_out.neutral)[kind], {_STEERED: self.teacher, **self.students}
        found: dict[str, list[list[Tensor]]] = {name: [] for name in edits}

        def compare(base: Side, side: Side) -> tuple[Tensor, Tensor]:
            return divergences(base.logits, side.logits, base.following)

        for pack, seen in each_side(self.model, sequences, edits, self.entry, compare):
            for name, own in found.items():
                own.append(seen[name])
            self.progress("proof: neutral text", len(pack.members))
        return {name: Divergence.of(*map(torch.cat, zip(*own, strict=True))).to_json() for name, own in found.items()}

    def totals(self) -> dict[str, int]:
        """Return how much there is to do of everything that progress is told of, as far as it is known."""
        return {
            "proof: replies": len(self.held_out.prompts),
            "proof: pairs": 2 * len(self.held_out.pairs.ordinary),
            "proof: hidden states": len(self.held_out.prompts),
            "proof: attention": 3 * len(self.held_out.prompts),
            "proof: neutral text": len(self.held_out.neutral),
        }


def prove(
    model: SteerableModel,
    actives: Sequence[Active],
    task_vector: TaskVector,
    held_out: HeldOut,
    *,
    control: TaskVector | None = None,
    seed: int = 0,
    steps: Steps | None = None,
    plan: Callable[[dict[str, int]], None] | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Hold a task vector against the vectors that it was compiled from.

    Of what was held out the ordinary pairs, the neutral texts and the prompts are used; to these the steered model
    replies, and what is fluent of that is compared on.

    Args:
        model: the base.
        actives: the vectors in use that the compiled weights take the place of.
        task_vector: the weights' change.
        held_out: what neither was made from nor chosen on.
        control: a random direction of the same length, compiled by the same recipe, or None.
        seed: of every drawing and resampling.
        steps: results of an interrupted run, and where new ones are kept.
        plan: called beforehand with how much of everything there is to do.
        progress: called with what was done (a name of the plan) and how much.

    Raises:
        InputError: something is on the model; pairs of fewer than two scenarios; no neutral text; no fluent reply of
            the steered model; or steering that changes nothing.
    """
    check_base(model)
    steps = steps or Steps()
    steered = sorted({layer for active in actives for layer in active.layers})
    last = len(model.blocks) - 1
    changed = [layer_of(name) for one in (task_vector, control) if one is not None for name in one.tensors]
    students: dict[str, Edit] = {_COMPILED: partial(model.compiled, task_vector)}
    students |= {_scaled(scale): partial(model.compiled, task_vector, scale) for scale in SCALES}
    students[_ROUNDED] = partial(model.compiled, rounded(model, task_vector))
    work = _Work(
        model,
        partial(model.steer, *actives),
        students,
        None if control is None else partial(model.compiled, control),
        held_out,
        # What lies outside of the blocks, as embeddings, is in front of all of them.
        min(0 if layer is None else layer for layer in (*changed, *steered)),
        tuple(sorted({*steered, steered[-1] + (last + 1 - steered[-1]) // 2, last})),
        seed,
        progress or (lambda what, done: None),
    )
    if plan is not None:
        plan(work.totals())
    kinds = tuple(_neutral(held_out.neutral))
    margins = steps.do("proof: pairs", work.margins)
    replies = steps.do("proof: replies", work.replies)
    likeness = steps.do("proof: hidden states", lambda: work.likeness(replies))
    attention = steps.do("proof: attention", lambda: work.attention(replies))
    drift = {kind: steps.do(f"proof: {kind}", partial(work.drift, kind)) for kind in kinds}

    def fidelity(name: str) -> Fidelity:
        return Fidelity(
            _recovered(margins, name, held_out, seed), _kl_recovered(likeness["kl"], name, seed), _drifts(drift, name)
        )

    def change(name: str) -> Change:
        return Change.between(margins[BASE], margins[name], _scenarios(held_out), seed)

    def point(scale: float, name: str) -> Point:
        found = change(name)
        return Point(scale, found.effect, found.ci95, 0.0 if name == BASE else _pooled(drift, name))

    points = [point(0.0, BASE), point(1.0, _COMPILED), *(point(scale, _scaled(scale)) for scale in SCALES)]
    return Proof(
        change(_STEERED),
        fidelity(_COMPILED),
        fidelity(_ROUNDED),
        tuple(Depth(**one) for one in likeness["depths"]),
        tuple(sorted(points, key=lambda one: one.scale)),
        None if control is None else change(_CONTROL),
        seed,
        attention,
    )


def rounded(model: SteerableModel, task_vector: TaskVector) -> TaskVector:
    """Return the task vector with which every touched tensor, W + delta, is what bfloat16 keeps of it."""
    parameters = dict(model.hf.named_parameters(remove_duplicate=False))
    tensors = {}
    for name, delta in task_vector.tensors.items():
        # A bias that the base has not.
        base = parameters[name].detach().float().to(delta.device) if name in parameters else torch.zeros_like(delta)
        tensors[name] = (base + delta).bfloat16().float() - base
    return TaskVector(task_vector.name, tensors, task_vector.fingerprint)


class _Shifts:
    """Sums over places of what the shifts of hidden states at one block are made of."""

    def __init__(self) -> None:
        self._wanted = self._missed = self._along = 0.0
        self._means: tuple[Tensor, Tensor] | None = None

    def add(self, base: Tensor, steered: Tensor, compiled: Tensor) -> None:
        """Take in the states of some places, [places, d_model] each."""
        wanted, made = steered - base, compiled - base
        self._wanted += float(wanted.square().sum())
        self._missed += float((made - wanted).square().sum())
        self._along += float((made * wanted).sum())
        sums = (wanted.sum(0), made.sum(0))
        self._means = sums if self._means is None else (self._means[0] + sums[0], self._means[1] + sums[1])

    def depth(self, layer: int) -> Depth:
        """Return what they come to."""
        if self._means is None or self._wanted == 0:
            raise InputError(f"Steering changes nothing at block {layer} on its own replies; nothing to compare.")
        cosine = float(torch.cosine_similarity(*self._means, dim=0))
        return Depth(layer, self._missed / self._wanted, self._along / self._wanted, cosine)


def _neutral(texts: Sequence[Encoded]) -> dict[str, list[Encoded]]:
    """Return the texts by kind, those without one left out."""
    if not texts:
        raise InputError("There is no neutral text to measure a drift on; give some.")
    kinds = {"raw": [one for one in texts if not one.prompt], "chat": [one for one in texts if one.prompt]}
    return {kind: own for kind, own in kinds.items() if own}


def _scaled(scale: float) -> str:
    return f"scale {scale:g}"


def _scenarios(held_out: HeldOut) -> list[str]:
    return [pair.scenario for pair in held_out.pairs.ordinary]


def _recovered(margins: Mapping[str, list[float]], name: str, held_out: HeldOut, seed: int) -> Share:
    base, steered, compiled = (np.array(margins[one]) for one in (BASE, _STEERED, name))
    value, ci95 = bootstrap_ratio(compiled - base, steered - base, _scenarios(held_out), seed=seed)
    return Share(value, ci95, len(base))


def _kl_recovered(sums: Mapping[str, list[float]], name: str, seed: int) -> Share:
    whole, missing = (np.array(sums[one]) for one in (BASE, name))
    if len(whole) < 2:
        return Share(float(1 - missing.sum() / whole.sum()), None, len(whole))
    # One reply to each prompt.
    value, (low, high) = bootstrap_ratio(missing, whole, [str(place) for place in range(len(whole))], seed=seed)
    return Share(1 - value, (1 - high, 1 - low), len(whole))


def _drifts(found: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Drift]:
    made = {}
    for kind, own in found.items():
        made[kind] = Drift(Divergence(**own[name]), Divergence(**own[_STEERED]))
        if made[kind].steered.kl_mean <= 0:
            raise InputError(f"Steering changes nothing on the {kind} neutral texts; there is nothing to compare.")
    return made


def _pooled(found: Mapping[str, Mapping[str, Any]], name: str) -> float:
    """Return the mean KL over the positions of all kinds of text."""
    every = [Divergence(**own[name]) for own in found.values()]
    return sum(one.kl_mean * one.positions for one in every) / sum(one.positions for one in every)
