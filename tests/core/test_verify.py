"""Verification: shared passes equal single ones, controls are fair, gates hold, an interrupted run goes on."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engrain.core.advice import advise, pulling_against
from engrain.core.budget import Budget
from engrain.core.capability import Question, answered, read_questions
from engrain.core.compile.bias import compile_bias
from engrain.core.compile.compiler import Order
from engrain.core.composition import Active, activate
from engrain.core.contrast import ContrastPair, Message, PairSet
from engrain.core.controls import random_controls, shuffled_control
from engrain.core.errors import DataError, InputError, LayerError
from engrain.core.extract import extract
from engrain.core.fluency import Degeneration, Fluency, distinct_runs, fluency
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded
from engrain.core.scoring import NeutralScorer, margins, margins_under
from engrain.core.steps import Steps
from engrain.core.training import Training
from engrain.core.vector import SteeringVector
from engrain.core.verdict import Gate, Verdict
from engrain.core.verify import MIN_SCENARIOS, HeldOut, verify
from oracle import log_probability
from tiny import byte_tokenizer, random_model


def pairs(count: int, first: int = 0) -> PairSet:
    made = [
        ContrastPair(
            (Message("user", f"Say {i}."),),
            f"aaa {i} aa",
            f"zzz {i} zz",
            scenario=f"s{i}",
            id=f"p{i}",
            boundary=i % 8 == 7,
        )
        for i in range(first, first + count)
    ]
    return PairSet(tuple(made))


def random_vector(layer: int = 1, seed: int = 1) -> SteeringVector:
    return SteeringVector({layer: torch.randn(32, generator=torch.Generator().manual_seed(seed)) / 3}, "v")


@pytest.mark.parametrize(("positions", "operation"), [("all", "add"), ("generated", "ablate"), ("prompt", "clamp")])
def test_edits_that_share_a_pass_score_as_they_do_one_by_one(
    clean: SteerableModel, positions: str, operation: str
) -> None:
    edits = [activate(random_vector(seed=seed), 1, seed / 2, positions, operation) for seed in range(8)]
    together = margins_under(clean, pairs(5).pairs, edits)
    for edit, found in zip(edits, together, strict=True):
        with clean.steer(edit):
            alone = margins(clean, pairs(5).pairs)
        torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-4)


def test_edits_of_different_blocks_cannot_share_a_pass(llama: SteerableModel) -> None:
    with pytest.raises(LayerError, match="same one block"):
        margins_under(llama, pairs(2).pairs, [activate(random_vector(0), 0, 1.0), activate(random_vector(1), 1, 1.0)])


def test_the_perplexity_ratio_is_that_of_the_text_under_both_models(clean: SteerableModel) -> None:
    texts = [Encoded((), tuple(range(5, 40))), clean.encode("Hello.", "a reply of some length")]
    edit = activate(random_vector(), 1, 2.0)

    def loss() -> float:
        return -float(torch.cat([log_probability(clean, text) for text in texts]).mean())

    before = loss()
    with clean.steer(edit):
        after = loss()
    found = NeutralScorer(clean, texts).divergence(lambda: clean.steer(edit))
    assert found.perplexity_ratio == pytest.approx(float(torch.tensor(after - before).exp()), rel=1e-4)
    assert found.kl_mean <= found.kl_rms


def test_controls_have_the_length_of_the_vector_and_act_where_it_does(llama: SteerableModel) -> None:
    active = activate(random_vector(), 1, 2.5, "generated")
    controls = random_controls(active, 19, seed=3)
    controls.append(shuffled_control(llama, active, pairs(9).pairs, seed=3))
    for control in controls:
        assert (control.layers, control.strength, control.positions) == ((1,), 2.5, "generated")
        torch.testing.assert_close(control.vector.at(1).norm(), active.vector.at(1).norm())
    assert len({tuple(control.vector.at(1).tolist()) for control in controls}) == 20
    again = random_controls(active, 19, seed=3)
    assert all(torch.equal(one.vector.at(1), other.vector.at(1)) for one, other in zip(controls, again, strict=False))


def test_exactly_half_of_the_pairs_are_exchanged_for_the_shuffled_control(llama: SteerableModel) -> None:
    made = pairs(7)
    active = activate(extract(llama, made, layers=[1]), 1, 1.0)
    differences = torch.stack([extract(llama, [pair], layers=[1]).at(1) for pair in made])
    for seed in range(3):
        direction = shuffled_control(llama, active, made.pairs, seed=seed).vector.at(1)
        # Each pair's share in the direction: all of one size, the sign says whether it was exchanged.
        shares = torch.linalg.lstsq(differences.T.double(), direction.double()).solution
        torch.testing.assert_close(shares.abs(), shares.abs().mean().expand(7), rtol=1e-3, atol=0)
        assert int((shares < 0).sum()) in (3, 4)


def test_a_run_that_is_repeated_is_told_from_one_that_is_not() -> None:
    assert distinct_runs([1, 2, 3, 4, 5], 2) == 1.0
    assert distinct_runs([1, 1, 1, 1, 1], 2) == 0.25
    assert distinct_runs([1], 2) == 1.0


def test_the_surprise_is_the_mean_negative_log_probability(llama: SteerableModel) -> None:
    reply = llama.encode("Hello.", "some reply")
    expected = -float(log_probability(llama, reply).mean())
    found, empty = fluency(llama, [reply, Encoded(reply.prompt, ())])
    assert found.surprise == pytest.approx(expected, rel=1e-5)
    assert (empty.tokens, empty.repeated) == (0, 1.0)


def test_replies_that_loop_are_a_fault_and_the_bases_own_are_not() -> None:
    base = tuple(Fluency(0.1 + i / 100, 0.9, 100, 1.5) for i in range(10))
    assert Degeneration(base, base).faults() == []
    looping = tuple(Fluency(0.8, 0.2, 128, 0.3) for _ in range(10))
    assert [fault.split()[0] for fault in Degeneration(base, looping).faults()] == ["repeated", "distinct"]
    babble = tuple(Fluency(0.0, 1.0, 90, 6.0) for _ in range(10))
    assert [fault.split()[0] for fault in Degeneration(base, babble).faults()] == ["surprise"]


def test_the_shipped_questions_are_many_and_their_answers_stand_everywhere() -> None:
    questions = read_questions()
    assert len(questions) >= 100
    assert len({one.question for one in questions}) == len(questions)
    assert len({one.subject for one in questions}) >= 8
    places = [sum(one.answer == place for one in questions) for place in range(4)]
    assert max(places) - min(places) <= 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"choices": "abcd"}, "list of texts"),
        ({"choices": ["a", "a"]}, "none of them twice"),
        ({"choices": ["a"]}, "two different texts"),
        ({"answer": 2}, "place of one of the 2 choices"),
        ({"answer": True}, "place of one"),
        ({"question": " "}, "all text"),
    ],
)
def test_a_bad_question_is_named_with_its_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    line = {"id": "q", "subject": "s", "question": "Which?", "choices": ["a", "b"], "answer": 0}
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(line) + "\n" + json.dumps(line | changes))
    with pytest.raises(DataError, match=words) as caught:
        read_questions(path)
    assert caught.value.line == 2


def test_the_likeliest_choice_is_the_answer(llama: SteerableModel) -> None:
    questions = [Question(str(i), "s", f"Which {i}?", ("alpha", "beta", "gamma"), i % 3) for i in range(6)]
    expected = []
    for one in questions:
        scores = [float(log_probability(llama, llama.encode(one.question, choice)).mean()) for choice in one.choices]
        expected.append(scores.index(max(scores)) == one.answer)
    assert answered(llama, questions).tolist() == expected


def held_out(model: SteerableModel, count: int = 24) -> HeldOut:
    return HeldOut(
        pairs(count, first=100),
        [model.encode("Hello.", "a neutral reply"), Encoded((), tuple(range(10, 60)))],
        ("Tell me a story.", "What now?"),
        read_questions()[:4],
        "Say aaa.",
    )


# Loose: what is tested here is the machinery; a random model is moved far by any direction.
ANY = Budget(kl_mean=50, kl_p95=50, perplexity=1e9)


def true_vector(model: SteerableModel, strength: float = 3.0) -> tuple[Active, Training]:
    train = pairs(24)
    vector = extract(model, train, layers=[1])
    with model.steer(activate(vector, 1, strength)):
        steered = margins(model, train.pairs)
    # On random weights the direction has an effect of either sign; the train pairs say of which.
    works = 1.0 if steered.mean() > margins(model, train.pairs).mean() else -1.0
    return activate(vector * works, 1, strength), Training(train)


def gate(verdict: Verdict, name: str) -> Gate:
    return next(one for one in verdict.gates if one.name == name)


@pytest.fixture
def whole(llama: SteerableModel) -> tuple[Active, Training, Verdict]:
    active, training = true_vector(llama)
    return active, training, verify(llama, active, held_out(llama), training, budget=ANY, controls=5)


def test_a_direction_from_true_labels_passes_and_from_swapped_labels_fails_at_the_effect(
    llama: SteerableModel, whole: tuple[Active, Training, Verdict]
) -> None:
    active, training, verdict = whole
    assert gate(verdict, "effect").passed
    assert gate(verdict, "controls").passed
    swapped = activate(active.vector * -1.0, 1, active.strength)
    found = verify(llama, swapped, held_out(llama), training, budget=ANY, controls=5)
    assert not found.passed
    assert not gate(found, "effect").passed
    assert gate(found, "effect").value < 0
    assert found.measured["anti_steered"] > 0.5
    assert found.advice


def test_weights_that_are_the_vector_get_its_verdict(whole: tuple[Active, Training, Verdict]) -> None:
    active, training, verdict = whole
    model = SteerableModel(random_model("llama"), byte_tokenizer(), "tiny llama")
    made = compile_bias(model, Order("v", (active,), "faithful"), lambda what, done: None)
    found = verify(
        model,
        active,
        held_out(model),
        training,
        compiled=lambda: model.compiled(made),
        budget=ANY,
        controls=5,
    )
    assert model.edits.applied == {}
    # Of weights the boundary is a gate; all the rest is the vector's.
    assert [one.name for one in found.gates] == ["effect", "controls", "side_effects", "boundary"]
    for one, own in zip(found.gates, verdict.gates, strict=False):
        assert (one.name, one.passed, one.bound, one.faults) == (own.name, own.passed, own.bound, own.faults)
        assert one.value == pytest.approx(own.value, rel=1e-3, abs=1e-6)
        assert (one.ci95 or ()) == pytest.approx(own.ci95 or (), rel=1e-3, abs=1e-5)
    assert found.measured["controls"] == pytest.approx(verdict.measured["controls"])
    for key in ("anti_steered", "best_control", "control_pairs", "prompt", "capability", "replies"):
        assert found.measured[key] == verdict.measured[key]
    assert found.measured["boundary"]["value"] == pytest.approx(verdict.measured["boundary"]["value"], rel=1e-3)


def test_what_says_nothing_of_the_edit_is_measured_once_for_vector_and_weights(
    llama: SteerableModel, whole: tuple[Active, Training, Verdict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    active, training, verdict = whole
    common, held = Steps(tmp_path / "common.json", "k"), held_out(llama)
    first = verify(llama, active, held, training, budget=ANY, controls=5, common=common)
    assert first.to_json() == verdict.to_json()
    assert common.finished == ("base", "controls", "prompt")
    alone = verify(llama, active, held, training, compiled=nullcontext, budget=ANY, controls=5)
    monkeypatch.setattr("engrain.core.verify.margins_under", lambda *given: pytest.fail("measured again"))
    kept = Steps(tmp_path / "common.json", "k")
    again = verify(llama, active, held, training, compiled=nullcontext, budget=ANY, controls=5, common=kept)
    assert again.to_json() == alone.to_json()


def test_weights_that_are_the_base_fail_at_the_effect(
    llama: SteerableModel, whole: tuple[Active, Training, Verdict]
) -> None:
    active, training, _ = whole
    found = verify(llama, active, held_out(llama), training, compiled=nullcontext, budget=ANY, controls=2)
    assert not found.passed
    assert (gate(found, "effect").passed, gate(found, "effect").value) == (False, 0.0)
    assert gate(found, "side_effects").passed
    assert gate(found, "boundary").passed
    assert any("--backend bias" in advice for advice in found.advice)


@pytest.mark.parametrize(("sign", "passed"), [(1.0, True), (-1.0, False)])
def test_weights_that_surely_move_boundary_pairs_the_wrong_way_fail_and_a_vector_does_not(
    llama: SteerableModel, whole: tuple[Active, Training, Verdict], sign: float, passed: bool
) -> None:
    active, training, _ = whole
    # The boundary pairs are of the same make as the others, so that either sign moves both alike.
    edit = activate(active.vector * sign, 1, active.strength)
    held = held_out(llama, count=96)
    found = verify(llama, active, held, training, compiled=lambda: llama.steer(edit), budget=ANY, controls=2)
    boundary = gate(found, "boundary")
    assert boundary.passed == passed
    assert (boundary.value > 0) == passed
    assert bool(boundary.faults) == (not passed)
    assert boundary.ci95 is not None
    assert [one.name for one in verify(llama, edit, held, training, budget=ANY, controls=2).gates][-1] == "side_effects"
    assert any("boundary" in advice for advice in found.advice) == (not passed)


def test_weights_are_not_held_to_a_boundary_that_no_pair_tests(
    llama: SteerableModel, whole: tuple[Active, Training, Verdict]
) -> None:
    active, training, _ = whole
    held = replace(held_out(llama), pairs=held_out(llama).pairs.ordinary)
    found = verify(llama, active, held, training, compiled=nullcontext, budget=ANY, controls=2)
    assert [one.name for one in found.gates] == ["effect", "controls", "side_effects"]


def test_a_random_direction_does_not_pass_its_controls(llama: SteerableModel) -> None:
    _, training = true_vector(llama)
    passed = 0
    for seed in range(8):
        active = activate(random_vector(seed=seed) * 3.0, 1, 1.0)
        verdict = verify(llama, active, held_out(llama), training, budget=ANY, controls=19, seed=seed)
        passed += gate(verdict, "controls").passed
    assert passed <= 1


def test_an_interrupted_run_goes_on_and_ends_with_the_same_verdict(
    llama: SteerableModel, tmp_path: Path, whole: tuple[Active, Training, Verdict]
) -> None:
    active, training, verdict = whole
    path = tmp_path / "steps.json"
    for stop_at in ("pairs", "controls", "neutral text", "replies", "questions"):

        def interrupt(what: str, done: int, stop_at: str = stop_at) -> None:
            if what == stop_at:
                raise KeyboardInterrupt

        before = Steps(path, "k").finished
        with pytest.raises(KeyboardInterrupt):
            verify(
                llama,
                active,
                held_out(llama),
                training,
                budget=ANY,
                controls=5,
                steps=Steps(path, "k"),
                progress=interrupt,
            )
        assert set(before) <= set(Steps(path, "k").finished)
    resumed = verify(llama, active, held_out(llama), training, budget=ANY, controls=5, steps=Steps(path, "k"))
    assert resumed.to_json() == verdict.to_json()
    kept = {"base", "edited", "controls", "prompt", "neutral", "scores", "replies", "judged", "capability"}
    assert set(Steps(path, "k").finished) == kept
    assert Steps(path, "other work").finished == ()


def test_the_steps_of_a_damaged_file_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    Steps(path, "k").do("one", lambda: [1.0, 0.1])
    assert Steps(path, "k").do("one", lambda: pytest.fail("made again")) == [1.0, 0.1]
    path.write_bytes(path.read_bytes()[:-5])
    assert Steps(path, "k").finished == ()


def test_controls_are_compared_on_whole_scenarios_up_to_a_bound(
    llama: SteerableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engrain.core.verify.CONTROL_PAIRS", 9)
    active, training = true_vector(llama)
    held = held_out(llama)
    twins = tuple(replace(pair, positive=f"{pair.positive} so", id=f"{pair.id}b") for pair in held.pairs)
    verdict = verify(
        llama, active, replace(held, pairs=PairSet(held.pairs.pairs + twins)), training, budget=ANY, controls=2
    )
    measured = verdict.to_json()
    assert measured["control_pairs"] == 10
    assert measured["effect"]["n"] == 2 * len(held.pairs.ordinary)


def test_the_same_seed_gives_the_same_verdict(llama: SteerableModel, whole: tuple[Active, Training, Verdict]) -> None:
    active, training, verdict = whole
    again = verify(llama, active, held_out(llama), training, budget=ANY, controls=5)
    assert again.to_json() == verdict.to_json()


def test_side_effects_beyond_the_budget_fail_and_are_named(llama: SteerableModel) -> None:
    active, training = true_vector(llama)
    tight = Budget(kl_mean=1e-9, kl_p95=1e-9, perplexity=0.0)
    verdict = verify(llama, active, held_out(llama), training, budget=tight, controls=1)
    found = gate(verdict, "side_effects")
    assert not found.passed
    assert len([fault for fault in found.faults if "neutral" in fault]) == 3
    assert any("too strong" in advice for advice in verdict.advice)


@pytest.mark.parametrize(
    "doses", [7, [None], [{"layer": 0}], [{"layer": 0, "strength": 1, "effect": "much", "effect_low": None}]]
)
def test_advice_reads_no_more_of_a_strangers_origin_than_is_numbers(llama: SteerableModel, doses: object) -> None:
    active, training = true_vector(llama)
    foreign = replace(active, vector=replace(active.vector, origin={"calibration_doses": doses}))
    assert advise(llama, foreign, training, ["effect"])[0].startswith("Calibrate over more layers")


def test_too_few_scenarios_are_refused_with_how_many_are_needed(llama: SteerableModel) -> None:
    active, training = true_vector(llama)
    with pytest.raises(InputError, match=f"{MIN_SCENARIOS} are needed"):
        verify(llama, active, held_out(llama, count=8), training)


def test_a_pair_with_its_replies_exchanged_is_named_as_pulling_against_the_rest(llama: SteerableModel) -> None:
    good = list(pairs(7))
    odd = ContrastPair((Message("user", "Say 3."),), "zzz 3 zz", "aaa 3 aa", scenario="odd", id="odd")
    active, _ = true_vector(llama)
    assert pulling_against(llama, active, Training(PairSet((*good, odd))))[0] == "odd"
