"""The closed form against its normal equations, and what it does to texts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engrain.core.compile import rank1, regression
from engrain.core.compile.compiler import Order
from engrain.core.compile.corpus import Corpus
from engrain.core.compile.measure import Measure
from engrain.core.compile.rank1 import compile_rank1
from engrain.core.compile.target import mlp_writer
from engrain.core.composition import Active, activate
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.task_vector import TaskVector
from engrain.core.vector import SteeringVector
from tiny import byte_tokenizer, random_model

DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(3))


def texts(low: int, count: int, seed: int) -> tuple[Encoded, ...]:
    """Texts of letters from ``low`` on, so that scope and retain do not look alike."""
    drawn = torch.randint(low, low + 24, (count, 10), generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(Encoded(tuple(row[:4]), tuple(row[4:])) for row in drawn)


CORPUS = Corpus(texts(20, 8, 0), texts(120, 8, 1), texts(20, 4, 2), texts(120, 4, 3))


def fresh(family: str = "llama") -> SteerableModel:
    return SteerableModel(random_model(family), byte_tokenizer(), f"tiny {family}")


def active(layer: int = 1) -> Active:
    return activate(SteeringVector({layer: DIRECTION}, "v"), layer, 1.5)


ORDER = Order("v", (active(),), "selective", CORPUS)


def compiled(model: SteerableModel, order: Order = ORDER) -> TaskVector:
    return compile_rank1(model, order, lambda what, done: None)


def with_one(monkeypatch: pytest.MonkeyPatch, mu: float, ridge: float, corpus: Corpus = CORPUS) -> TaskVector:
    monkeypatch.setattr(rank1, "RETAINING", (mu,))
    monkeypatch.setattr(rank1, "RIDGE", (ridge,))
    return compiled(fresh(), replace(ORDER, corpus=corpus))


def inputs(model: SteerableModel, sequences: tuple[Encoded, ...], part: str) -> Tensor:
    """The literal reference: the writer's inputs, sequence by sequence: of replies, of the prompts before, or all."""
    _, module = mlp_writer(model, 1)
    found: list[Tensor] = []
    with module.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0][0])), torch.no_grad():
        for one in sequences:
            model.hf(input_ids=torch.tensor([one.prompt + one.reply]), use_cache=False)
    starts = [len(one.prompt) - 1 for one in sequences]
    kept = {"replies": [slice(start, -1) for start in starts], "prompts": [slice(start) for start in starts]}
    places = kept.get(part, [slice(None) for _ in starts])
    return torch.cat([x[place] for x, place in zip(found, places, strict=True)]).double()


@pytest.mark.parametrize("shared", [False, True])
def test_the_readout_solves_the_normal_equations(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = CORPUS
    if shared:
        scope, retain = (
            tuple(Encoded((5, *one.prompt[:2], *texts[0].prompt[2:]), one.reply) for one in texts for _ in range(2))
            for texts in (CORPUS.scope, CORPUS.retain)
        )
        corpus = replace(CORPUS, scope=scope, retain=retain)
    made = with_one(monkeypatch, 2.0, 0.1, corpus)
    inside, before = (inputs(fresh(), corpus.scope, part) for part in ("replies", "prompts"))
    outside = inputs(fresh(), corpus.retain, "all")
    # As least squares: rows of scope are to give 1, rows of retain and of the ridge 0.
    rows = [
        inside / len(inside) ** 0.5,
        before * (regression.PROMPTS / len(before)) ** 0.5,
        outside * (2.0 / len(outside)) ** 0.5,
    ]
    lam = 0.1 * float(sum(row.square().sum(0) for row in rows).mean())
    wanted = torch.cat(
        [
            torch.full((len(one),), size, dtype=torch.float64)
            for one, size in zip(
                (inside, before, outside),
                (len(inside) ** -0.5, (regression.PROMPTS / len(before)) ** 0.5, 0.0),
                strict=True,
            )
        ]
        + [torch.zeros(48, dtype=torch.float64)]
    )
    whole = torch.cat([*rows, lam**0.5 * torch.eye(48, dtype=torch.float64)])
    readout = torch.linalg.lstsq(whole, wanted[:, None]).solution[:, 0]
    found = made.tensors["model.layers.1.mlp.down_proj.weight"].double()
    torch.testing.assert_close(found, torch.outer(1.5 * DIRECTION.double(), readout), rtol=1e-3, atol=1e-4)


def test_without_retain_and_ridge_the_shift_in_scope_is_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "PROMPTS", 0.0)
    monkeypatch.setattr(rank1, "RETAINING", (0.0,))
    monkeypatch.setattr(rank1, "RIDGE", (1e-9,))
    made = compiled(fresh(), replace(ORDER, corpus=replace(CORPUS, scope=CORPUS.scope[:2])))
    # Twelve places and 48 inputs: every place can be met.
    delta = made.tensors["model.layers.1.mlp.down_proj.weight"].double()
    shift = inputs(fresh(), CORPUS.scope[:2], "replies") @ delta.T
    torch.testing.assert_close(shift, (1.5 * DIRECTION).double().expand(12, -1), rtol=1e-2, atol=1e-2)


def test_retained_texts_are_moved_less_when_they_weigh(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = inputs(fresh(), CORPUS.retain, "all")
    moved = [
        float((kept @ with_one(monkeypatch, mu, 0.01).tensors["model.layers.1.mlp.down_proj.weight"].double().T).norm())
        for mu in (0.0, 1.0, 4.0)
    ]
    assert moved[0] > 1.5 * moved[1] > 1.5 * moved[2]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox"])
def test_the_closest_of_all_candidates_is_taken_and_beats_vector_and_base(family: str) -> None:
    model = fresh(family)
    made = compiled(model)
    assert not model.edits.applied
    measure = Measure(model, lambda: model.steer(active()), CORPUS.held_scope, CORPUS.held_retain, 1)
    found = measure.closeness(lambda: model.compiled(made))
    assert found.kl_recovered == pytest.approx(made.origin["kl_recovered"], abs=1e-6)
    assert found.drift == pytest.approx(made.origin["drift"], abs=1e-6)
    # Both the base and the vector itself lose 1.
    assert found.loss < 0.95
    assert torch.linalg.matrix_rank(next(iter(made.tensors.values()))) == 1


def test_the_same_order_gives_the_same_bits() -> None:
    one, other = compiled(fresh()), compiled(fresh())
    assert one.origin == other.origin
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_vectors_at_several_blocks_are_compiled_together() -> None:
    assert compiled(fresh(), replace(ORDER, actives=(active(), active(2)))).layers == (1, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": None}, "order it with a corpus"),
        ({"corpus": replace(CORPUS, held_retain=())}, "no text in 'held_retain'"),
        ({"spec": "faithful"}, "spec 'selective' alone"),
        ({"target": "o_proj"}, "no choice of matrices"),
    ],
)
def test_what_it_cannot_do_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compiled(fresh(), replace(ORDER, **changes))  # type: ignore[arg-type]


def test_a_norm_behind_the_mlp_is_refused() -> None:
    with pytest.raises(InputError, match="there is a norm behind it"):
        compiled(fresh("gemma2"))
