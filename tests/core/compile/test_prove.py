"""A proof of what is the vector, of what is the base, and against slow and literal references."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engrain.core.compile import trajectories
from engrain.core.compile.ablate import compile_ablate
from engrain.core.compile.bias import compile_bias
from engrain.core.compile.compiler import Order
from engrain.core.compile.proof import Proof
from engrain.core.compile.prove import SCALES, prove, rounded
from engrain.core.compile.trajectories import sample_trajectories
from engrain.core.composition import Active, activate
from engrain.core.contrast import ContrastPair, Message, PairSet
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.scoring import Divergence, NeutralScorer, margins
from engrain.core.steps import Steps
from engrain.core.task_vector import TaskVector
from engrain.core.vector import SteeringVector
from engrain.core.verify import HeldOut
from tiny import byte_tokenizer, random_model

DIRECTION = torch.randn(32, generator=torch.Generator().manual_seed(3))
WRITER = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def anything_is_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model finds everything unlikely, its own replies too; and short ones are as good for a test."""
    monkeypatch.setattr(trajectories, "_SURPRISE", float("inf"))
    monkeypatch.setattr("engrain.core.compile.prove.REPLY_TOKENS", 10)


def fresh(family: str = "llama", dtype: torch.dtype = torch.float32) -> SteerableModel:
    return SteerableModel(random_model(family, dtype), byte_tokenizer(), f"tiny {family}")


def active(layer: int = 1, strength: float = 1.5, **how: Any) -> Active:
    return activate(SteeringVector({layer: DIRECTION}, "v"), layer, strength, **how)


def quiet(what: str, done: int) -> None:
    pass


def bias(model: SteerableModel, edit: Active | None = None) -> TaskVector:
    return compile_bias(model, Order("v", (edit or active(),), "faithful"), quiet)


def some_weights(model: SteerableModel, seed: int = 0) -> TaskVector:
    """Something in between: a bit of the vector, and a bit of noise."""
    parameter = model.hf.get_parameter(WRITER)
    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return TaskVector("v", {WRITER: 0.02 * noise}, model.fingerprint) + bias(model) * 0.6


def held_out(model: SteerableModel) -> HeldOut:
    pairs = [
        ContrastPair(
            (Message("user", f"Say {i}."),), f"aaa {i} aa", f"zzz {i} zz", scenario=f"s{i % 8}", boundary=i % 5 == 4
        )
        for i in range(15)
    ]
    neutral = [
        Encoded((), tuple(range(10, 40))),
        Encoded((), tuple(range(60, 85))),
        model.encode("Hello.", "a neutral reply"),
        model.encode("Who?", "nobody"),
    ]
    # Of what a random model says some is too unlikely to be kept.
    prompts = ("Tell me a story.", "What now?", "Why?", "Who goes there?", "Is it late?", "Name a river.")
    return HeldOut(PairSet(tuple(pairs)), neutral, prompts, ())


def proved(model: SteerableModel, task_vector: TaskVector, edit: Active | None = None, **how: Any) -> Proof:
    return prove(model, [edit or active()], task_vector, held_out(model), **how)


KINDS = ("proof: pairs", "proof: replies", "proof: hidden states", "proof: attention", "proof: neutral text")


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral-window"])
def test_the_vector_as_a_bias_is_all_of_the_vector(family: str) -> None:
    model = fresh(family)
    found = proved(model, bias(model))
    assert found.compiled.recovered.value == pytest.approx(1, abs=1e-4)
    assert found.compiled.recovered.ci95 == pytest.approx((1, 1), abs=1e-3)
    assert found.compiled.kl_recovered.value == pytest.approx(1, abs=1e-5)
    assert set(found.compiled.drift) == {"raw", "chat"}
    for drift in found.compiled.drift.values():
        assert drift.ratio == pytest.approx(1, abs=1e-4)
        assert drift.compiled.kl_p95 == pytest.approx(drift.steered.kl_p95, rel=1e-3)
    assert [one.layer for one in found.depths] == [1, 2]
    for one in found.depths:
        assert one.residual == pytest.approx(0, abs=1e-6)
        assert (one.projection, one.cosine) == pytest.approx((1, 1), abs=1e-4)
    assert found.steered.effect == pytest.approx(found.scales[2].effect, rel=1e-3)
    assert found.attention["compiled"] == pytest.approx(found.attention["steered"], abs=1e-6)
    if family == "mistral-window":  # its attention does not reach back so far
        assert set(found.attention.values()) == {0}
    else:
        assert found.attention["compiled"] != pytest.approx(found.attention["base"], abs=1e-6)


def test_no_change_is_nothing_of_the_vector() -> None:
    model = fresh()
    found = proved(model, bias(model) * 0.0)
    for one in (found.compiled, found.rounded):
        assert (one.recovered.value, one.recovered.ci95) == (0, (0, 0))
        assert one.kl_recovered.value == pytest.approx(0, abs=1e-6)
        assert one.drift_ratio == pytest.approx(0, abs=1e-6)
    for depth in found.depths:
        assert depth.residual == pytest.approx(1, abs=1e-6)
        assert (depth.projection, depth.cosine) == (0, 0)
    assert all(one.effect == 0 for one in found.scales)
    assert found.attention["compiled"] == found.attention["base"]


def test_a_share_of_the_behavior_is_that_of_the_mean_margins() -> None:
    model, held = fresh(), held_out(fresh())
    made = some_weights(model)
    found = proved(model, made)
    pairs = held.pairs.ordinary.pairs
    base = margins(model, pairs).mean()
    with model.steer(active()):
        steered = margins(model, pairs).mean()
    with model.compiled(made):
        compiled = margins(model, pairs).mean()
    assert found.steered.effect == pytest.approx(float(steered - base), abs=1e-6)
    assert found.compiled.recovered.value == pytest.approx(float((compiled - base) / (steered - base)), rel=1e-3)
    low, high = found.compiled.recovered.ci95 or (0, 0)
    assert low <= found.compiled.recovered.value <= high
    assert found.compiled.recovered.n == len(pairs) == 12


def test_the_scales_are_measured_as_a_verdict_measures() -> None:
    model, held = fresh(), held_out(fresh())
    made = some_weights(model)
    found = proved(model, made)
    assert [one.scale for one in found.scales] == sorted({0.0, 1.0, *SCALES})
    pairs, scorer = held.pairs.ordinary.pairs, NeutralScorer(model, held.neutral)
    base = margins(model, pairs)
    for one in found.scales:
        edit = partial(model.compiled, made, one.scale)
        with edit():
            effect = (margins(model, pairs) - base).mean()
        assert one.effect == pytest.approx(float(effect), abs=1e-6)
        assert one.kl_mean == pytest.approx(scorer.divergence(edit).kl_mean, abs=1e-6)
        assert one.ci95 is not None


def test_drift_is_a_verdicts_divergence_on_raw_text_and_on_chat_apart() -> None:
    model, held = fresh(), held_out(fresh())
    made = some_weights(model)
    found = proved(model, made)
    for kind, own in found.compiled.drift.items():
        scorer = NeutralScorer(model, [one for one in held.neutral if bool(one.prompt) == (kind == "chat")])
        for seen, edit in (
            (own.compiled, partial(model.compiled, made)),
            (own.steered, partial(model.steer, active())),
        ):
            assert close(seen, scorer.divergence(edit))
        assert own.ratio == own.compiled.kl_mean / own.steered.kl_mean
    assert found.compiled.drift_ratio == max(own.ratio for own in found.compiled.drift.values())


def close(one: Divergence, other: Divergence) -> bool:
    return one.to_json() == pytest.approx(other.to_json(), rel=1e-3, abs=1e-6)


def replies(model: SteerableModel, edit: Active) -> list[Encoded]:
    sampled = sample_trajectories(model, held_out(model).prompts, partial(model.steer, edit), tokens=10)
    assert len(sampled) > 1
    return [one.sequence for one in sampled]


def states_and_scores(model: SteerableModel, text: Encoded) -> tuple[Tensor, Tensor]:
    """The literal reference: the outputs of blocks 1 and 2, and log-probabilities, where the reply is predicted."""
    found: list[Tensor] = []
    tokens = torch.tensor([text.prompt + text.reply])
    hooks = [block.register_forward_hook(lambda m, i, o: found.append(o[0])) for block in model.blocks[1:]]
    with torch.no_grad():
        scores = model.hf(tokens, use_cache=False).logits[0].double().log_softmax(-1)
    for hook in hooks:
        hook.remove()
    where = slice(len(text.prompt) - 1, -1)
    return torch.stack([one.reshape(-1, 32)[where] for one in found]).double(), scores[where]


@pytest.mark.parametrize("operation", ["add", "ablate"])
def test_kl_and_hidden_states_are_those_of_the_steered_models_replies_one_by_one(operation: str) -> None:
    model = fresh()
    edit = active(strength=1.0, operation=operation)
    made = some_weights(model)
    found = proved(model, made, edit)
    missing = whole = 0.0
    states: dict[str, list[Tensor]] = {"base": [], "steered": [], "compiled": []}
    for text in replies(model, edit):
        sides = {}
        for name, on in (
            ("base", nullcontext()),
            ("steered", model.steer(edit)),
            ("compiled", model.compiled(made)),
        ):
            with on:
                own, sides[name] = states_and_scores(model, text)
            states[name].append(own)
        missing += float((sides["steered"].exp() * (sides["steered"] - sides["compiled"])).sum())
        whole += float((sides["steered"].exp() * (sides["steered"] - sides["base"])).sum())
    assert found.compiled.kl_recovered.value == pytest.approx(1 - missing / whole, rel=1e-4)
    base, steered, compiled = (torch.cat(states[name], dim=1) for name in ("base", "steered", "compiled"))
    for place, one in enumerate(found.depths):
        wanted, shift = steered[place] - base[place], compiled[place] - base[place]
        assert one.residual == pytest.approx(float((shift - wanted).square().sum() / wanted.square().sum()), rel=1e-3)
        cosine = torch.cosine_similarity(shift.mean(0), wanted.mean(0), dim=0)
        assert one.cosine == pytest.approx(float(cosine), abs=1e-4)
        if operation == "add" and one.layer == 1:
            v = DIRECTION.double()
            assert one.projection == pytest.approx(float((shift @ v).mean() / v.square().sum()), rel=1e-3)


def test_a_vector_at_the_last_block_and_one_at_the_first_are_proved_too() -> None:
    model = fresh()
    for layer, depths in ((0, [0, 1, 2]), (2, [2])):
        edit = activate(SteeringVector({layer: DIRECTION}, "v"), layer, 1.0)
        found = proved(model, bias(model, edit), edit)
        assert [one.layer for one in found.depths] == depths
        assert found.compiled.kl_recovered.value == pytest.approx(1, abs=1e-5)


def test_what_changes_the_embeddings_is_proved_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SteerableModel(random_model("llama", tie_word_embeddings=True), byte_tokenizer(), "tied")
    vector = SteeringVector(dict.fromkeys(range(3), DIRECTION), "v")
    edit = activate(vector, "all", 1.0, operation="ablate")
    made = compile_ablate(model, Order("v", (edit,), "faithful"), quiet)
    assert "model.embed_tokens.weight" in made.tensors
    held = held_out(model)
    found = prove(model, [edit], made, held)
    scorer = NeutralScorer(model, [one for one in held.neutral if not one.prompt])
    assert close(found.compiled.drift["raw"].compiled, scorer.divergence(partial(model.compiled, made)))


def test_rounding_leaves_what_bfloat16_keeps_of_the_sum() -> None:
    model = fresh()
    made = some_weights(model)
    before = model.hf.get_parameter(WRITER).detach().clone()
    with model.compiled(rounded(model, made)):
        written = model.hf.get_parameter(WRITER)
        wanted = (before + made.tensors[WRITER]).bfloat16().float()
        torch.testing.assert_close(written, wanted, rtol=1e-6, atol=0)
        name = WRITER.replace("weight", "bias")
        assert torch.equal(model.hf.get_parameter(name), made.tensors[name].bfloat16().float())
    half = fresh(dtype=torch.bfloat16)
    made = some_weights(half)
    with half.compiled(made):
        kept = half.hf.get_parameter(WRITER).clone()
    with half.compiled(rounded(half, made)):
        # Where the weights are half precision anyway, nothing more is lost.
        assert torch.equal(half.hf.get_parameter(WRITER), kept)


def test_a_proof_of_rounded_weights_is_near_the_whole_ones() -> None:
    model = fresh()
    found = proved(model, bias(model))
    assert found.rounded.recovered.value == pytest.approx(1, abs=0.05)
    assert found.rounded.recovered != found.compiled.recovered
    assert found.rounded.kl_recovered.value == pytest.approx(1, abs=0.01)


def test_a_control_is_measured_on_the_same_pairs_and_changes_nothing_else() -> None:
    model, held = fresh(), held_out(fresh())
    made = bias(model)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(9))
    other = bias(model, activate(SteeringVector({1: direction}, "random"), 1, 1.5))
    found = proved(model, made, control=other)
    pairs = held.pairs.ordinary.pairs
    base = margins(model, pairs)
    with model.compiled(other):
        effect = (margins(model, pairs) - base).mean()
    assert found.control is not None
    assert found.control.effect == pytest.approx(float(effect), abs=1e-6)
    assert replace(found, control=None) == proved(model, made)


def test_a_proof_is_read_back_as_it_was_and_nothing_else_is_one() -> None:
    model = fresh()
    found = proved(model, some_weights(model), control=bias(model))
    text = json.dumps(found.to_json(), allow_nan=False)
    assert Proof.from_json(json.loads(text)) == found
    for broken in (
        {},
        {"schema": "engrain.proof/1"},
        found.to_json() | {"compiled": None},
        found.to_json() | {"depths": [{"layer": 1}]},
        found.to_json() | {"schema": "engrain.proof/2"},
    ):
        with pytest.raises(InputError, match="proof"):
            Proof.from_json(broken)


def test_an_interrupted_proof_goes_on_and_ends_as_the_same(tmp_path: Path) -> None:
    model = fresh()
    made = some_weights(model)
    whole = proved(model, made).to_json()
    path = tmp_path / "steps.json"
    totals: dict[str, int] = {}
    for stop_at in KINDS:

        def interrupt(what: str, done: int, stop_at: str = stop_at) -> None:
            if what == stop_at:
                raise KeyboardInterrupt

        before = Steps(path, "k").finished
        with pytest.raises(KeyboardInterrupt):
            proved(model, made, steps=Steps(path, "k"), plan=totals.update, progress=interrupt)
        assert model.edits.applied == {}
        assert model.steering.handles == ()
        assert set(before) <= set(Steps(path, "k").finished)
        assert stop_at in totals
    assert proved(model, made, steps=Steps(path, "k")).to_json() == whole
    assert len(Steps(path, "k").finished) == 6


def test_progress_tells_of_all_that_was_planned() -> None:
    model = fresh()
    totals: dict[str, int] = {}
    done = dict.fromkeys(KINDS, 0)

    def count(what: str, more: int) -> None:
        done[what] += more

    proved(model, bias(model), plan=totals.update, progress=count)
    assert done == totals


def test_the_model_is_the_base_again_after_a_proof_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh()
    before = {name: one.clone() for name, one in model.hf.state_dict().items()}

    def fail(*sides: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("engrain.core.compile.prove.divergences", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        proved(model, some_weights(model))
    assert model.hf.state_dict().keys() == before.keys()
    assert all(torch.equal(one, before[name]) for name, one in model.hf.state_dict().items())
    assert not any(block.__dict__.get("forward") for block in model.blocks)


def nothing_neutral(held: HeldOut) -> HeldOut:
    return replace(held, neutral=())


def no_prompts(held: HeldOut) -> HeldOut:
    return replace(held, prompts=())


def one_scenario(held: HeldOut) -> HeldOut:
    return replace(held, pairs=PairSet(tuple(replace(pair, scenario="s") for pair in held.pairs.ordinary)))


@pytest.mark.parametrize(
    ("change", "words"),
    [(nothing_neutral, "no neutral text"), (no_prompts, "no fluent reply"), (one_scenario, "two scenarios")],
)
def test_too_little_to_prove_on_is_refused(change: Callable[[HeldOut], HeldOut], words: str) -> None:
    model = fresh()
    with pytest.raises(InputError, match=words):
        prove(model, [active()], bias(model), change(held_out(model)))


def test_a_vector_that_does_nothing_and_a_model_that_is_changed_already_are_refused() -> None:
    model = fresh()
    with pytest.raises(InputError, match="nothing"):
        proved(model, bias(model), active(strength=0.0))
    with model.compiled(bias(model)), pytest.raises(InputError, match="take it off"):
        proved(model, some_weights(model))
