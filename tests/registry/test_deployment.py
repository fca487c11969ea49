"""An alias followed by a model that runs: moved by another process, switched to the bit, or left as it was."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from brevity import overwrite
from engrain.core.errors import FingerprintError, InputError, IntegrityError, UnknownNameError
from engrain.core.model import SteerableModel
from engrain.core.task_vector import DELTA, TaskVector
from engrain.core.vector import Calibration, SteeringVector
from engrain.registry.alias import move_alias
from engrain.registry.collect import collect
from engrain.registry.delete import delete
from engrain.registry.deployment import Deployment
from engrain.registry.reference import Reference
from engrain.registry.rollback import roll_back
from engrain.registry.store import Store
from engrain.registry.task_vectors import publish_task_vector
from engrain.registry.vectors import publish_vector
from tiny import byte_tokenizer, random_model

LIVE = Reference("task-vector", "brevity", alias="live")
STEERED = Reference("vector", "brevity", alias="live")
DOWN = "model.layers.{}.mlp.down_proj.weight"
BIAS = "model.layers.1.mlp.down_proj.bias"


def fresh(dtype: torch.dtype = torch.float32) -> SteerableModel:
    return SteerableModel(random_model("llama", dtype), byte_tokenizer(), "tiny llama")


def compiled(model: SteerableModel, seed: int) -> TaskVector:
    """A change of two matrices and a bias that the base lacks; each version leaves out one and takes another."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {DOWN.format(seed % 3): (32, 48), DOWN.format((seed + 1) % 3): (32, 48), BIAS: (32,)}
    tensors = {name: torch.randn(shape, generator=generator) / 10 for name, shape in shapes.items()}
    return TaskVector("brevity", tensors, model.fingerprint)


@pytest.fixture
def model() -> SteerableModel:
    return fresh()


@pytest.fixture
def store(tmp_path: Path, model: SteerableModel) -> Store:
    """Four task vectors and two calibrated vectors; each alias on the second."""
    made = Store(tmp_path / "home")
    for seed in range(1, 5):
        publish_task_vector(made, "brevity", compiled(model, seed))
    for seed in (1, 2):
        direction = torch.randn(32, generator=torch.Generator().manual_seed(seed))
        publish_vector(made, "brevity", SteeringVector({1: direction}, calibration=Calibration(1, 2.0)))
    for alias in (LIVE, STEERED):
        for number in (1, 2):
            move_alias(made, alias, number)
    return made


@torch.no_grad()
def logits(model: SteerableModel) -> Tensor:
    found: Tensor = model.hf(input_ids=torch.arange(1, 20)[None]).logits
    return found


def expected(store: Store, number: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the logits of a freshly loaded model with one version applied."""
    model = fresh(dtype)
    version = store.resolve(Reference("task-vector", "brevity", number))
    model.apply(TaskVector.read(version.path(DELTA), version.config, source=version.reference))
    return logits(model)


def in_another_process(store: Store, code: str) -> None:
    lines = [
        "import sys",
        "from pathlib import Path",
        "from engrain.registry.alias import move_alias, parse_alias",
        "from engrain.registry.rollback import roll_back",
        "from engrain.registry.store import Store",
        "store, live = Store(Path(sys.argv[1])), parse_alias('task-vector/brevity:live')",
        code,
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", "\n".join(lines), str(store.root)], env=environment, check=True)


class Told:
    """What a watching thread says, waited for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._heard = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._heard:
            self.lines.append(line)
            self._heard.notify_all()

    def wait(self, count: int) -> None:
        with self._heard:
            assert self._heard.wait_for(lambda: len(self.lines) >= count, timeout=300)


# Exactness.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_after_each_switch_the_model_is_a_fresh_one_with_that_version_and_in_the_end_the_base(
    store: Store, dtype: torch.dtype
) -> None:
    model = fresh(dtype)
    store = Store(store.root.with_name(str(dtype)))
    for seed in range(1, 5):
        publish_task_vector(store, "brevity", compiled(model, seed))
    base = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    move_alias(store, LIVE, 1)
    with Deployment(store, model, LIVE) as live:
        for number in (1, 2, 3, 1, 4, 2):
            move_alias(store, LIVE, number)
            live.update()
            assert live.version is not None
            assert live.version.number == number
            assert torch.equal(logits(model), expected(store, number, dtype))
    after = model.hf.state_dict()
    assert after.keys() == base.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in base.items())
    assert (live.version, model.edits.applied) == (None, {})


def test_a_vector_is_followed_too_and_leaves_no_hook(store: Store, model: SteerableModel) -> None:
    plain = logits(model)
    with Deployment(store, model, STEERED) as live:
        second = logits(model)
        roll_back(store, STEERED)
        assert live.update() is not None
        first = logits(model)
        (handle,) = model.steering.handles
        assert handle.active.strength == 2.0
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain)
    assert torch.equal(logits(model), plain)
    assert not model.steering.handles


def test_another_task_vector_on_the_model_stays_on(store: Store, model: SteerableModel) -> None:
    other = TaskVector("other", {"lm_head.weight": torch.ones(320, 32)}, model.fingerprint)
    model.apply(other)
    alone = logits(model)
    with Deployment(store, model, LIVE):
        assert list(model.edits.applied) == ["other", str(LIVE)]
    assert torch.equal(logits(model), alone)
    model.revert()


def test_weights_that_something_else_changed_are_noticed(store: Store, model: SteerableModel) -> None:
    live = Deployment(store, model, LIVE)
    live.update()
    with torch.no_grad():
        model.edits.base(BIAS.replace("bias", "weight"))
        base = model.edits.base(DOWN.format(2))
        assert base is not None
        base[0, 0] += 1
    roll_back(store, LIVE)
    with pytest.raises(IntegrityError, match=r"layers\.2\.mlp.* is not the base's tensor any more"):
        live.update()
    assert live.version is not None
    assert live.version.number == 2
    with pytest.raises(IntegrityError, match="something else changed the weights"):
        live.close()


# Another process.


def test_a_roll_back_in_another_process_takes_effect_here(store: Store, model: SteerableModel) -> None:
    told = Told()
    with Deployment(store, model, LIVE) as live, live.watching(0.01, told):
        assert torch.equal(logits(model), expected(store, 2))
        in_another_process(store, "roll_back(store, live, reason='replies got too long')")
        told.wait(1)
        with live.generation() as version:
            assert version is not None
            assert version.number == 1
            assert torch.equal(logits(model), expected(store, 1))
        in_another_process(store, "move_alias(store, live, 4)")
        told.wait(2)
    assert [line.partition(" is on")[0] for line in told.lines] == [
        "task-vector/brevity:live: @2 -> @1",
        "task-vector/brevity:live: @1 -> @4",
    ]
    assert torch.equal(logits(model), logits(fresh()))


def test_a_generation_ends_on_the_version_that_it_began_on(store: Store, model: SteerableModel) -> None:
    told = Told()
    with Deployment(store, model, LIVE) as live, live.watching(0.01, told):
        with live.generation() as version, live.generation():
            before = logits(model)
            roll_back(store, LIVE)
            # The thread has seen it once it waits for this generation.
            while not live._switching:
                threading.Event().wait(0.01)
            assert torch.equal(logits(model), before)
            assert version == live.version
        told.wait(1)
        assert live.version is not None
        assert live.version.number == 1


def test_a_switch_inside_of_a_generation_is_refused_and_does_not_wait_for_itself(
    store: Store, model: SteerableModel
) -> None:
    with Deployment(store, model, LIVE) as live:
        roll_back(store, LIVE)
        with live.generation(), pytest.raises(InputError, match=r"inside of generation\(\)"):
            live.update()
        assert live.update() is not None


def test_what_runs_is_not_collected(store: Store, model: SteerableModel) -> None:
    with Deployment(store, model, LIVE) as live:
        for number in (3, 4):
            move_alias(store, LIVE, number)
            live.update()
        move_alias(store, LIVE, 1)
        for number in (2, 3, 4):
            delete(store, Reference("task-vector", "brevity", number), "old")
        kept = dict(collect(store, grace=0).kept)
        assert "task-vector/brevity@4" in kept
    assert list((store.root / "leases").iterdir()) == []


# What is refused.


def damage(store: Store, model: SteerableModel) -> None:
    path = store.resolve("task-vector/brevity@3").path(DELTA)
    overwrite(path, path.read_bytes()[:-1] + b"\1")


def foreign(store: Store, model: SteerableModel) -> None:
    other = SteerableModel(random_model("llama", hidden_size=16), byte_tokenizer(), "tiny other")
    publish_task_vector(
        store, "brevity", TaskVector("brevity", {DOWN.format(0): torch.ones(16, 48)}, other.fingerprint)
    )


def misshapen(store: Store, model: SteerableModel) -> None:
    tensors = {DOWN.format(0): torch.ones(4, 4), DOWN.format(1): torch.ones(32, 48)}
    publish_task_vector(store, "brevity", TaskVector("brevity", tensors, model.fingerprint))


REFUSED: dict[str, tuple[Callable[[Store, SteerableModel], None], int, type[Exception]]] = {
    "damaged": (damage, 3, IntegrityError),
    "made for another model": (foreign, 5, FingerprintError),
    "of another shape": (misshapen, 5, InputError),
}


@pytest.mark.parametrize(("prepare", "number", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_loaded_leaves_on_what_was_on_and_says_so(
    store: Store,
    model: SteerableModel,
    prepare: Callable[[Store, SteerableModel], None],
    number: int,
    error: type[Exception],
) -> None:
    prepare(store, model)
    told = Told()
    with Deployment(store, model, LIVE) as live:
        before = logits(model)
        move_alias(store, LIVE, number)
        with pytest.raises(error):
            live.update()
        assert live.problem is not None
        assert live.problem.startswith("'task-vector/brevity:live' was not followed, task-vector/brevity@2 stays on: ")
        assert torch.equal(logits(model), before)
        with live.watching(0.01, told):
            told.wait(1)
            roll_back(store, LIVE)
            while live.problem is not None:
                threading.Event().wait(0.01)
        assert told.lines == [line for line in told.lines if "@2 stays on" in line][:1]
        assert torch.equal(logits(model), before)


def test_an_alias_that_is_damaged_is_told_once_and_leaves_on_what_was_on(store: Store, model: SteerableModel) -> None:
    told = Told()
    path = store.root / "refs" / "task-vector" / "brevity" / "live"
    whole = path.read_bytes()
    with Deployment(store, model, LIVE) as live, live.watching(0.01, told):
        overwrite(path, b"")
        told.wait(1)
        overwrite(path, whole)
        while live.problem is not None:
            threading.Event().wait(0.01)
    assert len(told.lines) == 1
    assert "live' is damaged" in told.lines[0]


def test_a_version_that_fails_its_health_check_is_never_generated_with(store: Store, model: SteerableModel) -> None:
    seen: list[Tensor] = []

    def health(checked: SteerableModel) -> None:
        seen.append(logits(checked))
        if len(seen) > 1:
            raise RuntimeError("the replies are empty")

    with Deployment(store, model, LIVE, health=health) as live:
        move_alias(store, LIVE, 3)
        with pytest.raises(RuntimeError, match="replies are empty"):
            live.update()
        assert torch.equal(seen[1], expected(store, 3))
        assert torch.equal(logits(model), expected(store, 2))
        assert live.version is not None
        assert live.version.number == 2
        # As part of the move, the alias goes back too.
        roll_back(store, LIVE)
        with pytest.raises(RuntimeError, match="replies are empty"):
            move_alias(store, LIVE, 4, live=live)
        assert store.resolve(LIVE).number == 2
        assert torch.equal(logits(model), expected(store, 2))


def test_a_roll_back_with_the_deployment_in_it_is_done_when_it_returns(store: Store, model: SteerableModel) -> None:
    with Deployment(store, model, LIVE) as live:
        roll_back(store, LIVE, live=live)
        assert torch.equal(logits(model), expected(store, 1))
        assert live.update() is None


def test_two_numbers_of_the_same_content_are_followed_as_two(store: Store, model: SteerableModel) -> None:
    publish_task_vector(store, "brevity", compiled(model, 2))
    with Deployment(store, model, LIVE) as live:
        move_alias(store, LIVE, 5)
        assert live.update() is not None
        assert live.update() is None
        assert live.version is not None
        assert live.version.number == 5


@pytest.mark.parametrize("text", ["task-vector/brevity", "task-vector/brevity@1", "dataset/brevity:live"])
def test_only_an_alias_of_a_vector_or_a_task_vector_is_followed(store: Store, model: SteerableModel, text: str) -> None:
    with pytest.raises(InputError, match="cannot be followed; name an alias"):
        Deployment(store, model, Reference.parse(text))


def test_an_alias_that_is_not_there_is_named_with_what_is(store: Store, model: SteerableModel) -> None:
    deployment = Deployment(store, model, Reference("task-vector", "brevity", alias="lve"))
    with pytest.raises(UnknownNameError, match="Did you mean 'task-vector/brevity:live'"):
        deployment.update()


def test_a_registry_that_may_only_be_read_is_followed_without_a_lease(
    store: Store, model: SteerableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("engrain.registry.lease.make_folder", refuse)
    with Deployment(store, model, LIVE) as live:
        assert live.version is not None
    assert not (store.root / "leases").exists()
