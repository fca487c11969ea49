"""Replies of the teacher that are fit to learn from."""

import pytest
import torch

from engrain.core.compile import trajectories
from engrain.core.compile.trajectories import sample_trajectories
from engrain.core.composition import activate
from engrain.core.vector import SteeringVector
from tiny import tiny

PROMPTS = [f"Prompt number {number}." for number in range(30)]


@pytest.fixture(autouse=True)
def anything_is_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model finds everything unlikely, its own replies too."""
    monkeypatch.setattr(trajectories, "_SURPRISE", float("inf"))


def test_every_kept_reply_answers_its_own_prompt_and_is_not_repetitive() -> None:
    model, done = tiny(), list[int]()
    teacher = model.activate(SteeringVector({1: torch.ones(32)}, "v"), 1, 1.0)
    found = sample_trajectories(model, PROMPTS, lambda: model.steer(teacher), tokens=12, progress=done.append)
    assert sum(done) == 30
    assert len(found) > 10
    assert [one.number for one in found] == sorted({one.number for one in found})
    for one in found:
        assert one.sequence.prompt == model.render(PROMPTS[one.number])
        assert one.sequence.reply


def test_the_teacher_is_steered_and_the_draw_is_the_seeds() -> None:
    model = tiny()
    vector = SteeringVector({2: 40 * torch.randn(32, generator=torch.Generator().manual_seed(0))}, "v")

    def sample(strength: float, seed: int = 0) -> list[trajectories.Trajectory]:
        return sample_trajectories(
            model, PROMPTS[:6], lambda: model.steer(activate(vector, 2, strength)), tokens=8, seed=seed
        )

    assert sample(0.0) == sample(0.0)
    assert sample(0.0) != sample(0.0, seed=1)
    assert sample(0.0) != sample(1.0)


def test_what_the_base_finds_unlikely_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectories, "_SURPRISE", 0.0)
    model = tiny()
    assert sample_trajectories(model, PROMPTS[:4], model.steer, tokens=8) == []


def test_what_repeats_itself_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["la la la la la la", "", "A word."]
    monkeypatch.setattr(trajectories, "generate_all", lambda model, prompts, sampling, progress: said)
    model = tiny()
    assert [one.number for one in sample_trajectories(model, PROMPTS[:3], model.steer)] == [2]
