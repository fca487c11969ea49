"""The work behind ``engrain evaluate``: what vectors and task vectors do to a model, on pairs and on neutral text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress

from engrain.core.composition import Active
from engrain.core.contrast import PairSet
from engrain.core.errors import LayerError, StrengthError
from engrain.core.evaluate import evaluate
from engrain.core.model import SteerableModel
from engrain.core.neutral import read_neutral
from engrain.core.scorer import Scorer
from engrain.core.vector import SteeringVector
from engrain.extracting import ensure_calibrated
from engrain.plugins.manager import Plugins
from engrain.registry.store import Store
from engrain.registry.task_vectors import read_edits
from engrain.registry.vectors import read_vector
from engrain.steering import InUse
from engrain.subject import Subject
from engrain.verifying import make_judge


@dataclass(frozen=True)
class Steered:
    """A vector that is to be on the model.

    Attributes:
        where: its reference or its file.
        layer: the block, counted from 0, or None for that of its calibration.
        strength: factor on the direction, or None for that of its calibration.
    """

    where: str
    layer: int | None = None
    strength: float | None = None


def evaluate_edits(
    model: SteerableModel,
    on: Subject | PairSet,
    plugins: Plugins,
    store: Store,
    *,
    steered: Sequence[Steered] = (),
    edited: Sequence[str] = (),
    neutral: Path | None = None,
    scorers: Mapping[str, Scorer] | None = None,
    judge: str | None = None,
    seed: int = 0,
    bar: Progress,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return what the vectors and the task vectors do together: the object that ``engrain evaluate --json`` prints.

    Args:
        model: the base.
        on: the behavior whose unseen pairs are used, or other pairs, every one of them.
        plugins: where the judge and the estimator are found.
        store: where vectors and task vectors are.
        steered: vectors to put on. Without any, and without task vectors, it is the behavior's own, which is made,
            calibrated and published where there is none yet.
        edited: task vectors to apply to the weights, ``REFERENCE_OR_FOLDER[=SCALE]``.
        neutral: a file of neutral text, or None for the test split of what is shipped.
        scorers: other scores, by name.
        judge: of free replies to the behavior's unseen scenarios, ``NAME`` or ``NAME:ARGUMENT``, or None for none.
        seed: of the bootstrap.
        bar: where progress is shown.
        say: tells the person something.

    Raises:
        DataError: there is no ordinary pair.
        LayerError, StrengthError: a vector without a calibration, and no dose given.
        FingerprintError: something was made on another model.
        InputError: no scenario is unseen, or the judge does not fit.
        UnknownNameError: no such vector, task vector or judge.
    """
    pairs = on if isinstance(on, PairSet) else on.test
    assert pairs is not None, "a behavior's pairs are split"
    scorers = scorers or {}
    edits = read_edits(model, store, ",".join(edited)) if edited else {}
    if steered or edited:
        used = [(one, read_vector(store, one.where)) for one in steered]
    else:
        assert isinstance(on, Subject), "pairs alone have no vector of their own"
        used = [(Steered(f"vector/{on.name}"), ensure_calibrated(model, on, plugins, store, bar, say))]
    actives = [_activate(model, one, vector, say) for one, vector in used]
    # By number: one vector may be put on at two blocks.
    in_use = InUse(dict(zip(map(str, range(len(actives))), actives, strict=True)), edits)
    texts = read_neutral(model, neutral) if neutral is not None else read_neutral(model, split="test")
    judging, prompts = None, tuple[str, ...]()
    if judge is not None and isinstance(on, Subject):
        on.check_prompts()
        judging, prompts = make_judge(plugins, model, on, judge), on.prompts
    tasks = {
        "pairs": bar.add_task("pairs", total=2 * len(pairs)),
        "neutral": bar.add_task("neutral text", total=len(texts)),
        "scores": bar.add_task("scores", total=2 * len(pairs.ordinary) * len(scorers), visible=bool(scorers)),
        "replies": bar.add_task("replies", total=2 * len(prompts), visible=bool(prompts)),
        "judged replies": bar.add_task("judged replies", total=2 * len(prompts), visible=bool(prompts)),
    }
    found = evaluate(
        model,
        pairs,
        texts,
        partial(in_use.on, model),
        scorers=scorers,
        prompts=prompts,
        judge=judging,
        seed=seed,
        progress=lambda what, done: bar.update(tasks[what], advance=done),
    )
    steering = [{"vector": one.where, **active.to_json()} for (one, _), active in zip(used, actives, strict=True)]
    task_vectors = [{"task_vector": where, "scale": edit.scale} for where, edit in edits.items()]
    return found.to_json() | {"steering": steering, "task_vectors": task_vectors}


def _activate(model: SteerableModel, one: Steered, vector: SteeringVector, say: Callable[[str], None]) -> Active:
    if vector.fingerprint is None:
        say(f"note: '{one.where}' has no manifest, so it is not known whether it was made on this model.")
    if vector.calibration is None and one.layer is None:
        raise LayerError(f"'{one.where}' has no calibration; give --layer and --strength for each --steer.")
    if vector.calibration is None and one.strength is None:
        raise StrengthError(f"'{one.where}' has no calibration; give --strength for each --steer.")
    return model.activate(vector, one.layer, one.strength)
