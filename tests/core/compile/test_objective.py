"""The loss in chunks against its formula, written out."""

from functools import partial

import pytest
import torch
from torch import Tensor

from compile_order import CORPUS, active, fresh, texts
from engrain.core.compile import objective
from engrain.core.compile.delta import TrainableDelta
from engrain.core.compile.objective import Objective
from engrain.core.compile.passes import Course
from engrain.core.compile.target import choose_matrices
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel

# Few enough that all of them are one pack.
TEXTS = texts(20, 6, 0)


def student(model: SteerableModel, size: float) -> TrainableDelta:
    delta = TrainableDelta(model, choose_matrices(model, "writers", [1]))
    with torch.no_grad():
        for parameter in delta.parameters.values():
            parameter.copy_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return delta


def run(model: SteerableModel, tokens: Tensor, kept: slice) -> tuple[Tensor, list[Tensor]]:
    """Return the log-probabilities and the compared states at the kept places of one sequence."""
    states: list[Tensor] = []
    hooks = [
        model.blocks[at].register_forward_hook(lambda module, inputs, output: states.append(output[0])) for at in (1, 2)
    ]
    logits = model.hf(input_ids=tokens, use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    return logits[kept].log_softmax(-1), [state[kept] for state in states]


def literal(model: SteerableModel, delta: TrainableDelta, hidden: float) -> Tensor:
    """The formula, sequence by sequence, on whole logits."""
    found: dict[str, list[Tensor]] = {name: [] for name in ("kl", "whole", "n1", "n2", "d1", "d2")}
    for one in TEXTS:
        tokens = torch.tensor([one.prompt + one.reply])
        kept = slice(len(one.prompt) - 1, len(tokens[0]) - 1)

        with torch.no_grad():
            base, base_states = run(model, tokens, kept)
            with model.steer(active()):
                wanted, wanted_states = run(model, tokens, kept)
        with delta.active():
            own, own_states = run(model, tokens, kept)
        found["kl"].append((wanted.exp() * (wanted - own)).sum(-1))
        found["whole"].append((wanted.exp() * (wanted - base)).sum(-1))
        for place, at in enumerate((1, 2)):
            found[f"n{at}"].append((own_states[place] - wanted_states[place]).square().sum(-1))
            found[f"d{at}"].append((base_states[place] - wanted_states[place]).square().sum(-1))
    mean = {name: torch.cat(values).mean() for name, values in found.items()}
    apart = [mean[f"n{at}"] / mean[f"d{at}"] for at in (1, 2)]
    return mean["kl"] / mean["whole"] + hidden * (apart[0] + apart[1]) / 2


@pytest.mark.parametrize("chunk", [1, 7, 128])
def test_loss_and_gradient_are_those_of_the_formula(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "CHUNK", chunk)
    model = fresh()
    model.hf.requires_grad_(False)
    course = Course(model, TEXTS, 1, [1], partial(model.steer, active()))
    taught, delta = Objective(model, course, hidden=0.7), student(model, 0.05)
    (recorded,) = course
    with delta.active():
        loss = taught.descend(recorded, 0.25)
    found = [parameter.grad for parameter in delta.parameters.values()]
    wanted = literal(model, delta, 0.7)
    gradients = torch.autograd.grad(0.25 * wanted, list(delta.parameters.values()))
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-4)
    for own, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-7)


def test_the_base_has_the_loss_one_and_the_teacher_none() -> None:
    model = fresh()
    model.hf.requires_grad_(False)
    teacher = partial(model.steer, active())
    course = Course(model, TEXTS, 1, [1], teacher)
    taught, delta = Objective(model, course, hidden=0.5), student(model, 0.0)
    (recorded,) = course
    with delta.active():
        assert taught.descend(recorded, 1.0) == pytest.approx(1.5, rel=1e-4)
    with delta.active(), teacher():
        assert taught.descend(recorded, 1.0) == pytest.approx(0.0, abs=1e-4)


def test_on_retained_texts_the_vector_itself_has_the_loss_one() -> None:
    model = fresh()
    model.hf.requires_grad_(False)
    teacher = partial(model.steer, active())
    course = Course(model, TEXTS, 1, [1])
    taught, delta = Objective(model, course, teacher, hidden=0.0), student(model, 0.0)
    (recorded,) = course
    with delta.active():
        assert taught.descend(recorded, 1.0) == pytest.approx(0.0, abs=1e-4)
    with delta.active(), teacher():
        assert taught.descend(recorded, 1.0) == pytest.approx(1.0, rel=1e-4)


def test_nothing_can_be_learned_where_steering_changes_nothing() -> None:
    model = fresh()
    with pytest.raises(InputError, match="changes nothing on the texts to compile from"):
        Objective(model, Course(model, CORPUS.scope, 1, [1]))
