"""What is on a model: vectors, task vectors on the weights, both; and that nothing is left of it."""

from pathlib import Path

import pytest
import torch

from engrain.core.compile.bias import compile_bias
from engrain.core.compile.compiler import Order
from engrain.core.errors import FingerprintError, InputError, StrengthError
from engrain.core.generate import Sampling, generate
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector
from engrain.core.vector import Calibration, SteeringVector
from engrain.loading import load
from engrain.plugins.manager import build_manager
from engrain.registry.store import Store
from engrain.registry.task_vectors import publish_task_vector, read_edits
from engrain.registry.vectors import publish_vector
from engrain.steering import InUse, open_steering
from tiny import byte_tokenizer, random_model

SHORT = Sampling(max_new_tokens=12)


def direction(seed: int) -> torch.Tensor:
    return 20 * torch.randn(32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model(folder: Path) -> SteerableModel:
    """A model with two vectors in the registry, and the first of them as a task vector."""
    found = load(str(folder))
    for name, layer in (("one", 1), ("two", 2)):
        vector = SteeringVector({layer: direction(layer)}, name, found.fingerprint).calibrated(Calibration(layer, 1.0))
        publish_vector(Store(), name, vector)
        order = Order(name, (found.activate(vector),), "faithful")
        publish_task_vector(Store(), name, compile_bias(found, order, lambda what, done: None))
    return found


def replies(folder: Path, profile: str, tmp_path: Path, *overrides: str) -> list[str]:
    """What the model says under a profile; and it must be the base to the bit after it."""
    file = tmp_path / "p.yaml"
    file.write_text(profile)
    model, in_use = open_steering(build_manager(), str(folder), file, overrides)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    with in_use.on(model):
        found = generate(model, ["hi", "what now?"], SHORT)
    after = model.hf.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    return found


BIAS = "behaviors: {one: {task_vector: task-vector/one}}"


def test_a_vector_and_its_bias_in_a_profile_make_the_same_tokens(
    folder: Path, model: SteerableModel, tmp_path: Path
) -> None:
    steered = replies(folder, "behaviors: {one: {vector: vector/one}}", tmp_path)
    assert replies(folder, BIAS, tmp_path) == steered
    assert steered != generate(model, ["hi", "what now?"], SHORT)


def test_scale_0_and_switched_off_are_the_base(folder: Path, model: SteerableModel, tmp_path: Path) -> None:
    base = generate(model, ["hi", "what now?"], SHORT)
    assert replies(folder, BIAS, tmp_path, "behaviors.one.scale=0") == base
    assert replies(folder, BIAS, tmp_path, "behaviors.one.enabled=false") == base


def test_a_vector_beside_a_task_vector_is_as_two_vectors(folder: Path, model: SteerableModel, tmp_path: Path) -> None:
    mixed = "behaviors: {one: {task_vector: task-vector/one@1}, two: {vector: vector/two}}"
    both = "behaviors: {one: {vector: vector/one}, two: {vector: vector/two}}"
    assert replies(folder, mixed, tmp_path) == replies(folder, both, tmp_path)


def test_half_a_task_vector_is_half_a_strength(folder: Path, model: SteerableModel, tmp_path: Path) -> None:
    half = replies(folder, BIAS, tmp_path, "behaviors.one.scale=0.5")
    assert half == replies(folder, "behaviors: {one: {vector: vector/one, strength: 0.5}}", tmp_path)


def test_the_base_is_beside_the_edited_reply_with_weights_on_or_not(folder: Path, model: SteerableModel) -> None:
    (base,) = generate(model, ["hi"], SHORT)
    (steered,) = _under(model, InUse({"one": model.activate(_vector(1))}))
    edits = read_edits(model, Store(), "one")
    assert InUse({"one": model.activate(_vector(1))}).side_by_side(model, "hi", SHORT) == (base, steered)
    assert InUse({}, edits).side_by_side(model, "hi", SHORT) == (base, steered)
    with model.edited(edits):
        # As in a chat, where the weights stay on between replies.
        assert InUse({}, edits).side_by_side(model, "hi", SHORT) == (base, steered)
        assert model.edits.applied == edits


def _vector(layer: int) -> SteeringVector:
    return SteeringVector({layer: direction(layer)}).calibrated(Calibration(layer, 1.0))


def _under(model: SteerableModel, in_use: InUse) -> list[str]:
    with in_use.on(model):
        return generate(model, ["hi"], SHORT)


def test_exactly_the_named_task_vectors_are_on_inside_and_those_before_again_after(model: SteerableModel) -> None:
    one, two = (read_edits(model, Store(), name) for name in ("one", "two"))
    with model.edited(one):
        with model.edited(two):
            assert model.edits.applied == two
        assert model.edits.applied == one
    assert model.edits.applied == {}


def test_a_task_vector_of_another_base_is_refused_and_nothing_changes(model: SteerableModel, tmp_path: Path) -> None:
    other = SteerableModel(random_model("qwen2"), byte_tokenizer(), "tiny qwen2")
    TaskVector("far", {"model.norm.weight": torch.ones(32)}, other.fingerprint).save(tmp_path / "far")
    with pytest.raises(FingerprintError, match=r"'far' was made on 'tiny qwen2'.*Compile it again on this model"):
        read_edits(model, Store(), str(tmp_path / "far"))
    assert model.edits.applied == {}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("one=0.5,one", InputError, "'one' is named twice"),
        ("one=much", StrengthError, "The scale of 'one' is 'much'"),
        ("one=nan", StrengthError, "The scale of 'one' is 'nan'"),
        ("one,,two", InputError, r"not REF\[=SCALE\]"),
        ("vector/one", InputError, "is a vector, a task vector is needed"),
    ],
)
def test_a_bad_set_of_task_vectors_is_refused(
    model: SteerableModel, text: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        read_edits(model, Store(), text)
