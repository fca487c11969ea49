"""The work behind ``engrain extract`` and ``calibrate``: behaviors, models and the registry together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from rich.progress import Progress

from engrain.core.calibrate import Dose, calibrate, most_doses
from engrain.core.contrast import PairSet
from engrain.core.errors import LayerError, VectorError
from engrain.core.extract import extract
from engrain.core.joint import Joint, calibrate_jointly, passes
from engrain.core.model import SteerableModel
from engrain.core.neutral import read_neutral
from engrain.core.progress import Count
from engrain.core.vector import Calibration, SteeringVector
from engrain.plugins.manager import Plugins
from engrain.registry.store import Parent, Store, Version
from engrain.registry.vectors import publish_pairs, publish_vector, read_vector
from engrain.subject import Subject
from engrain.version import __version__


def extract_vector(
    model: SteerableModel,
    pairs: PairSet,
    plugins: Plugins,
    *,
    name: str,
    layers: Iterable[int] | None = None,
    positions: str = "response-mean",
    method: str = "mean-difference",
    progress: Count | None = None,
) -> SteeringVector:
    """Extract a vector with an estimator of that name, and note in it how it was made.

    Raises:
        UnknownNameError: no such estimator.
    """
    vector = extract(
        model,
        pairs,
        layers=layers,
        positions=positions,
        estimator=plugins.estimator(method),
        name=name,
        progress=progress,
    )
    origin = {
        "method": method,
        "positions": positions,
        "pairs": len(pairs.ordinary),
        "dataset": pairs.digest,
        "engrain": __version__,
    }
    return replace(vector, origin=origin)


def calibrate_vector(
    model: SteerableModel,
    vector: SteeringVector,
    subject: Subject,
    layers: Iterable[int] | None = None,
    progress: Callable[[Dose], None] | None = None,
) -> tuple[SteeringVector, list[Dose]]:
    """Choose layer and strength on the subject's calibration split and the calibration part of the neutral text."""
    chosen = subject.layers(len(model.blocks)) if layers is None else layers
    neutral = read_neutral(model, split="calibration")
    vector, doses = calibrate(
        model, vector, subject.calibration, neutral, chosen, budget=subject.budget, progress=progress
    )
    tried = [dose.to_json() for dose in doses]
    return replace(vector, origin={**vector.origin, "calibration_doses": tried}), doses


def ensure_extracted(
    model: SteerableModel,
    subject: Subject,
    plugins: Plugins,
    store: Store,
    bar: Progress,
    say: Callable[[str], None],
) -> SteeringVector:
    """Return the subject's highest published vector; it is made and published when there is none.

    One that was made on another model or from other pairs is made anew.
    """
    train = subject.train
    if subject.name in store.names("vector"):
        vector = read_vector(store, f"vector/{subject.name}")
        made_here = vector.fingerprint is not None and not vector.fingerprint.differences(model.fingerprint)
        if made_here and vector.origin.get("dataset") == train.digest:
            return vector
    say(f"extracting {subject.name} from {len(train.ordinary)} pairs")
    task = bar.add_task("extract", total=len(train.ordinary))
    vector = extract_vector(
        model,
        train,
        plugins,
        name=subject.name,
        positions=subject.positions,
        method=subject.method,
        progress=lambda done: bar.update(task, advance=done),
    )
    publish(store, subject.name, vector, train)
    return vector


def ensure_calibrated(
    model: SteerableModel,
    subject: Subject,
    plugins: Plugins,
    store: Store,
    bar: Progress,
    say: Callable[[str], None],
) -> SteeringVector:
    """Return the subject's highest published vector, calibrated; what is missing is made and published."""
    vector = ensure_extracted(model, subject, plugins, store, bar, say)
    if vector.calibration is not None:
        return vector
    layers = subject.layers(len(model.blocks))
    say(f"calibrating {subject.name} at the layers {', '.join(map(str, layers))}")
    task = bar.add_task("calibrate", total=most_doses(len(layers)))
    vector, _ = calibrate_vector(model, vector, subject, layers, lambda dose: bar.update(task, advance=1))
    publish(store, subject.name, vector, subject.train)
    return vector


def calibrate_together(
    model: SteerableModel,
    subjects: Sequence[Subject],
    plugins: Plugins,
    store: Store,
    bar: Progress,
    say: Callable[[str], None],
) -> tuple[list[Version], Joint]:
    """Choose the strengths of several behaviors that are on together, and publish their vectors with these.

    Each is extracted and calibrated by itself first where the registry has no calibrated vector of it.
    """
    # One that was calibrated with others before has the strength it had beside those.
    vectors = {one.name: _alone(ensure_calibrated(model, one, plugins, store, bar, say)) for one in subjects}
    say(f"calibrating {', '.join(vectors)} together")
    task = bar.add_task("together", total=passes(len(vectors)))
    found, joint = calibrate_jointly(
        model,
        vectors,
        {one.name: one.calibration for one in subjects},
        read_neutral(model, split="calibration"),
        progress=lambda done: bar.update(task, advance=done),
    )
    published = []
    for subject in subjects:
        alone = vectors[subject.name].calibration
        assert alone is not None
        origin = {**found[subject.name].origin, "alone": alone.to_json(), "joint": joint.to_json()}
        vector = replace(found[subject.name], origin=origin)
        published.append(publish(store, subject.name, vector, subject.train))
    return published, joint


def _alone(vector: SteeringVector) -> SteeringVector:
    """Return the vector with the dose that it has by itself.

    Raises:
        VectorError: what its origin says of that is no dose.
    """
    alone = vector.origin.get("alone")
    if alone is None:
        return vector
    try:
        return vector.calibrated(Calibration.from_json(alone))
    except (AttributeError, LayerError, ValueError) as error:
        raise VectorError(
            f"The origin of vector '{vector.name}' does not say with what dose it works alone ({error}); calibrate it "
            f"again by itself: engrain calibrate {vector.name}."
        ) from error


def publish(store: Store, name: str, vector: SteeringVector, pairs: PairSet) -> Version:
    """Publish a vector with the pairs that it was made from as its parent."""
    dataset = publish_pairs(store, name, pairs)
    return publish_vector(store, name, vector, [Parent("pairs", dataset.digest)])
