"""Published weights, verified as they are stored and published with their proof."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress

from engrain import verifying
from engrain.core import replies
from engrain.core.budget import Budget
from engrain.core.compile import prove, trajectories
from engrain.core.compile.bias import compile_bias
from engrain.core.compile.compiler import Order
from engrain.core.compile.proof import Proof
from engrain.core.composition import activate
from engrain.core.contrast import ContrastPair, Message, PairSet
from engrain.core.errors import EngrainError, InputError
from engrain.core.extract import extract
from engrain.core.model import SteerableModel
from engrain.core.scoring import margins
from engrain.core.task_vector import TaskVector
from engrain.core.vector import Calibration, SteeringVector
from engrain.plugins.manager import build_manager
from engrain.proving import compiled_from, verify_compiled
from engrain.registry.combine import combine
from engrain.registry.delete import delete
from engrain.registry.manifest import titled
from engrain.registry.policy import deciding_verdict
from engrain.registry.reference import Reference
from engrain.registry.store import Parent, Store, Version
from engrain.registry.task_vectors import publish_task_vector, read_task_vector
from engrain.registry.vectors import PROOF, REPORT, publish_vector
from engrain.subject import Subject
from tiny import byte_tokenizer, random_model


def quicken(put: Callable[[Any, str, Any], None]) -> None:
    """Let replies be short, no question be asked, and a random model's own replies be likely enough."""
    put(trajectories, "_SURPRISE", float("inf"))
    put(prove, "REPLY_TOKENS", 8)
    put(replies, "REPLY_TOKENS", 8)
    put(verifying, "read_questions", list)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch.setattr)


def pairs(first: int, count: int) -> PairSet:
    return PairSet(
        tuple(
            ContrastPair(
                (Message("user", f"Say {i}."),), f"aaa {i} aa", f"zzz {i} zz", scenario=f"s{i}", boundary=i % 8 == 7
            )
            for i in range(first, first + count)
        )
    )


TRAIN = pairs(0, 16)
SUBJECT = Subject(
    "yes",
    TRAIN,
    TRAIN,
    pairs(100, 18),
    ("Tell me a story.", "What now?"),
    # A random model is moved far by any direction.
    budget=Budget(kl_mean=50, kl_p95=50, perplexity=1e9),
)


def fresh() -> SteerableModel:
    return SteerableModel(random_model("llama"), byte_tokenizer(), "tiny llama")


@pytest.fixture(scope="module")
def model() -> SteerableModel:
    return fresh()


def vector_of(model: SteerableModel) -> SteeringVector:
    found = extract(model, TRAIN, layers=[1], name="yes")
    with model.steer(activate(found, 1, 3.0)):
        steered = margins(model, TRAIN.pairs)
    # On random weights the direction has an effect of either sign; the train pairs say of which.
    works = 1.0 if steered.mean() > margins(model, TRAIN.pairs).mean() else -1.0
    return SteeringVector({1: found.at(1) * works}, "yes", model.fingerprint).calibrated(Calibration(1, 3.0))


def publish(model: SteerableModel, store: Store, vector: SteeringVector, scale: float = 1.0) -> tuple[Version, Version]:
    source = publish_vector(store, "yes", vector)
    order = Order("yes", (model.activate(vector),), "faithful")
    made = compile_bias(model, order, lambda what, done: None) * scale
    return source, publish_task_vector(store, "yes", made, [Parent("vector", source.digest)])


def verified(
    model: SteerableModel, store: Store, published: Version, say: Callable[[str], None] = lambda text: None, **how: Any
) -> Any:
    with Progress(disable=True) as bar:
        return verify_compiled(model, SUBJECT, published, build_manager(), store, seed=0, bar=bar, say=say, **how)


def test_weights_are_verified_as_they_are_stored_and_published_with_their_proof(model: SteerableModel) -> None:
    store, vector = Store(), vector_of(model)
    source, published = publish(model, store, vector)
    verdict, proof, version = verified(model, store, published)
    assert model.edits.applied == {}
    assert [gate.name for gate in verdict.gates] == ["effect", "controls", "side_effects", "boundary"]
    assert version.kind == "verdict"
    assert set(version.config) == {"schema", "passed", "layer", "strength", "gates", "seed"}
    assert version.config["gates"][3]["name"] == "boundary"
    assert {one.role for one in version.parents} == {"task-vector", "teacher", "test"}
    assert Proof.from_json(json.loads(version.path(PROOF).read_bytes())) == proof
    assert proof.compiled.recovered.value == pytest.approx(1, abs=1e-3)
    assert proof.control is None
    assert REPORT in titled(version.manifest)
    assert b"with the vector removed" in version.path(REPORT).read_bytes()
    evidence = deciding_verdict(store, published.digest)
    assert evidence is not None
    assert evidence.passed == verdict.passed
    # Weights say nothing for or against the vector.
    assert deciding_verdict(store, source.digest) is None


def test_an_interrupted_verification_goes_on_and_is_the_same_version(
    model: SteerableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, vector = Store(), vector_of(model)
    _, published = publish(model, store, vector, scale=0.7)
    direction = SteeringVector({1: torch.ones(32)}, "random").calibrated(Calibration(1, 1.0))
    control = compile_bias(model, Order("random", (model.activate(direction),), "faithful"), lambda what, done: None)
    said: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr("engrain.core.compile.prove.sample_trajectories", interrupted)
        with pytest.raises(KeyboardInterrupt):
            verified(model, store, published, control=control)
    _, proof, version = verified(model, store, published, said.append, control=control)
    assert said[0].startswith("going on after: base, controls, prompt, edited, neutral")
    assert proof.control is not None
    assert proof.scales[2].effect < proof.steered.effect
    assert verified(model, store, published, control=control)[2] == version


def test_another_process_that_reads_what_is_stored_publishes_the_same_version(model: SteerableModel) -> None:
    store, vector = Store(), vector_of(model)
    _, published = publish(model, store, vector, scale=0.9)
    code = (
        f"import test_proving as t; t.quicken(setattr); model = t.fresh(); store = t.Store(); "
        f"print(t.verified(model, store, store.resolve('{published.reference}'))[2].digest)"
    )
    tests = Path(__file__).parents[1]
    search = os.pathsep.join(map(str, (tests, tests / "engrain", tests.parent / "src")))
    # Of a registry and a cache of its own, so that nothing is known to it but what is stored.
    shutil.copytree(store.root, copied := store.root.with_name("copy"))
    environment = os.environ | {"PYTHONPATH": search, "ENGRAIN_HOME": str(copied), "XDG_CACHE_HOME": str(copied)}
    other = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert other.stdout.strip() == verified(model, store, published)[2].digest


def test_a_combination_is_verified_against_the_vectors_of_its_parts(model: SteerableModel) -> None:
    store, vector = Store(), vector_of(model)
    source, one = publish(model, store, vector)
    _, other = publish(model, store, vector, scale=0.5)
    made = combine(store, [(one.reference, 0.25), (other.reference, 1.5)], "sum").version
    ((active, digest),) = compiled_from(store, made, read_task_vector(store, made.reference))
    assert (digest, active.layers) == (source.digest, (1,))
    assert active.strength == pytest.approx(1.75 * 3.0)
    # Of one part, halved by its scale, the weights are those of the vector at that strength.
    half = combine(store, [(one.reference, 0.5)], "half").version
    _, proof, version = verified(model, store, half)
    assert proof.compiled.recovered.value == pytest.approx(1, abs=1e-3)
    assert {parent.digest for parent in version.parents if parent.role == "teacher"} == {source.digest}
    delete(store, Reference.parse(source.reference), "gone")
    with pytest.raises(EngrainError):
        verified(model, store, half)


def interrupted(*given: object, **named: object) -> None:
    raise KeyboardInterrupt


def test_weights_without_their_vector_are_refused_with_the_mend(model: SteerableModel) -> None:
    store, vector = Store(), vector_of(model)
    source, _ = publish(model, store, vector)
    made = TaskVector("yes", {"model.layers.1.mlp.down_proj.bias": torch.ones(32)}, model.fingerprint)
    named = TaskVector("yes", made.tensors, made.fingerprint, {"vectors": [{"name": "no"}]})
    for one, parents in ((made, [Parent("vector", source.digest)]), (named, [Parent("vector", source.digest)])):
        published = publish_task_vector(store, "yes", one, parents)
        with pytest.raises(InputError, match="Compile it again"):
            verified(model, store, published)


def test_a_subject_without_unseen_pairs_is_refused(model: SteerableModel) -> None:
    store, vector = Store(), vector_of(model)
    _, published = publish(model, store, vector)
    seen = Subject("yes", TRAIN, TRAIN, None, ())
    with Progress(disable=True) as bar, pytest.raises(InputError, match="needs unseen ones"):
        verify_compiled(model, seen, published, build_manager(), store, seed=0, bar=bar, say=lambda text: None)
