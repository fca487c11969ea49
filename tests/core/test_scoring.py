"""Scores against their definitions, on every family."""

import math

import numpy as np
import pytest
import torch

from engrain.core.budget import Budget
from engrain.core.calibrate import calibrate, most_doses, overcorrection
from engrain.core.composition import activate
from engrain.core.contrast import ContrastPair, Message, PairSet
from engrain.core.errors import DataError, InputError
from engrain.core.evaluate import evaluate
from engrain.core.extract import extract
from engrain.core.model import SteerableModel
from engrain.core.neutral import SHIPPED, read_neutral
from engrain.core.packing import Encoded
from engrain.core.scoring import RESAMPLES, NeutralScorer, bootstrap_interval, bootstrap_ratio, margins
from engrain.core.vector import Calibration, SteeringVector
from oracle import log_probability


def pairs(count: int = 8) -> PairSet:
    made = [
        ContrastPair(
            (Message("user", f"Number {i}?"),),
            f"it is {i * 7}",
            f"who knows {i}",
            scenario=f"s{i}",
            boundary=i % 4 == 3,
        )
        for i in range(count)
    ]
    return PairSet(tuple(made))


def steer(model: SteerableModel, strength: float = 3.0) -> SteeringVector:
    generator = torch.Generator().manual_seed(1)
    return SteeringVector({layer: torch.randn(32, generator=generator) / 6 for layer in range(3)}, "v") * strength


@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_a_margin_is_the_difference_of_mean_log_probabilities_per_token(clean: SteerableModel, strength: float) -> None:
    with clean.steer(activate(steer(clean), "all", strength)):
        found = margins(clean, pairs().pairs)
        for pair, margin in zip(pairs(), found.tolist(), strict=True):
            positive, negative = (log_probability(clean, one).double().mean() for one in clean.encode_pair(pair))
            assert margin == pytest.approx(float(positive - negative), abs=1e-4)


@pytest.mark.parametrize("positions", ["prompt", "generated", "from:3"])
def test_a_margin_under_positional_steering_knows_what_is_prompt(clean: SteerableModel, positions: str) -> None:
    from engrain.core.composition import TokenLayout

    with clean.steer(activate(steer(clean), "all", 1.0, positions)):
        found = margins(clean, pairs(3).pairs)
        for pair, margin in zip(pairs(3), found.tolist(), strict=True):
            means = []
            for one in clean.encode_pair(pair):
                index = torch.arange(len(one.prompt) + len(one.reply))[None]
                with clean.steering.layout(TokenLayout(index, index >= len(one.prompt))):
                    means.append(float(log_probability(clean, one).mean()))
            assert margin == pytest.approx(means[0] - means[1], abs=1e-4)


def test_divergence_is_the_mean_of_the_kl_at_every_scored_position(clean: SteerableModel) -> None:
    raw = Encoded((), (*range(40, 60),) * 8)
    chat = clean.encode("Hello?", "Good day.")
    edit = activate(steer(clean), "all", 1.0)
    expected = []
    for one in (raw, chat):
        tokens = torch.tensor([one.prompt + one.reply])
        with torch.no_grad():
            base = clean.hf(tokens, use_cache=False).logits[0].double().log_softmax(-1)
            with clean.steer(edit):
                edited = clean.hf(tokens, use_cache=False).logits[0].double().log_softmax(-1)
        kl = (base.exp() * (base - edited)).sum(-1)
        expected.append(kl[len(one.prompt) - 1 : -1] if one.prompt else kl)
    pooled = torch.cat(expected)
    found = NeutralScorer(clean, [raw, chat]).divergence(lambda: clean.steer(edit))
    assert found.positions == len(pooled)
    assert found.kl_mean == pytest.approx(float(pooled.mean()), rel=1e-3)
    assert found.kl_p95 == pytest.approx(float(pooled.quantile(0.95)), rel=1e-3)


def test_divergence_of_no_edit_is_zero_and_what_is_remembered_changes_nothing(llama: SteerableModel) -> None:
    texts = [llama.encode("Hello?", "Good day."), llama.encode("And?", "No.")]
    scorer = NeutralScorer(llama, texts, remember=True)
    edit = activate(steer(llama), 1, 1.0)
    first = scorer.divergence(lambda: llama.steer(edit))
    assert scorer.divergence(lambda: llama.steer()).kl_mean == pytest.approx(0, abs=1e-6)
    assert scorer.divergence(lambda: llama.steer(edit)) == first


def test_the_interval_covers_the_mean_and_shrinks_with_more_scenarios() -> None:
    values = np.random.default_rng(0).normal(1, 1, 400)
    wide = bootstrap_interval(values[:40], [str(i) for i in range(40)])
    narrow = bootstrap_interval(values, [str(i) for i in range(400)])
    assert wide[0] < values[:40].mean() < wide[1]
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 2
    # A normal mean's own interval, from theory.
    assert narrow[1] - narrow[0] == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.1)


def test_pairs_of_one_scenario_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(0).normal(0, 1, 20), 10)
    together = bootstrap_interval(values, [str(i // 10) for i in range(200)])
    apart = bootstrap_interval(values, [str(i) for i in range(200)])
    assert together[1] - together[0] > 2.5 * (apart[1] - apart[0])


def test_the_same_seed_gives_the_same_interval_and_one_scenario_gives_none() -> None:
    values, names = [0.1, 0.5, -0.2, 0.3], ["a", "b", "c", "d"]
    assert bootstrap_interval(values, names, seed=1) == bootstrap_interval(values, names, seed=1)
    with pytest.raises(InputError, match="two scenarios"):
        bootstrap_interval(values, ["a"] * 4)


def drawn_scenarios(scenarios: list[str], seed: int, resamples: int) -> list[list[int]]:
    """The literal reference: for each resample the places of all pairs of the scenarios that were drawn."""
    names = sorted(set(scenarios))
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    return [
        [place for one in row for place, name in enumerate(scenarios) if name == names[one]] for row in drawn.tolist()
    ]


def test_intervals_are_the_quantiles_of_resamples_made_one_by_one() -> None:
    generator = np.random.default_rng(5)
    values, whole = generator.normal(1, 1, 15), generator.normal(2, 1, 15)
    scenarios = [f"s{place % 6}" for place in range(15)]
    chosen = drawn_scenarios(scenarios, 3, 200)
    means = [values[places].mean() for places in chosen]
    ratios = [values[places].sum() / whole[places].sum() for places in chosen]
    found = bootstrap_interval(values, scenarios, seed=3, resamples=200)
    assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), rel=1e-12)
    value, interval = bootstrap_ratio(values, whole, scenarios, seed=3, resamples=200)
    assert value == pytest.approx(values.mean() / whole.mean(), rel=1e-12)
    assert interval == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])), rel=1e-12)


def test_sharing_the_resampling_changed_no_bit_of_the_interval() -> None:
    values = np.random.default_rng(2).normal(0.1, 1, 97)
    scenarios = [f"s{place % 31}" for place in range(97)]
    # As it stood before ratios were resampled too.
    names, of = np.unique(np.asarray(scenarios), return_inverse=True)
    drawn = np.random.default_rng(4).integers(len(names), size=(RESAMPLES, len(names)))
    means = np.bincount(of, weights=values)[drawn].sum(axis=1) / np.bincount(of)[drawn].sum(axis=1)
    assert bootstrap_interval(values, scenarios, seed=4) == tuple(np.quantile(means, [0.025, 0.975]).tolist())


def test_all_of_something_is_surely_one_and_a_part_of_it_surely_that_part() -> None:
    whole = np.random.default_rng(1).normal(0.2, 1, 60)
    scenarios = [f"s{place % 20}" for place in range(60)]
    assert bootstrap_ratio(whole, whole, scenarios) == (1.0, (1.0, 1.0))
    value, interval = bootstrap_ratio(0.25 * whole, whole, scenarios)
    assert (value, *interval) == (0.25, 0.25, 0.25)


def test_a_resample_without_anything_is_no_share_and_a_whole_of_nothing_is_refused() -> None:
    value, interval = bootstrap_ratio([1.0, 0.0, 0.5], [2.0, 0.0, 1.0], ["a", "b", "c"])
    assert (value, *interval) == (0.5, 0.5, 0.5)
    with pytest.raises(InputError, match="nothing that a share"):
        bootstrap_ratio([1.0, 2.0], [0.0, 0.0], ["a", "b"])
    with pytest.raises(InputError, match="two scenarios"):
        bootstrap_ratio([1.0, 2.0], [1.0, 1.0], ["a", "a"])


def test_an_evaluation_keeps_boundary_pairs_apart(llama: SteerableModel) -> None:
    edit = activate(steer(llama), 1, 1.0)
    texts = [llama.encode("Hello?", "Good day.")]
    found = evaluate(llama, pairs(), texts, lambda: llama.steer(edit))
    assert found.boundary is not None
    assert (found.ordinary.base.n, found.boundary.base.n) == (6, 2)
    before = margins(llama, pairs().ordinary.pairs)
    with llama.steer(edit):
        after = margins(llama, pairs().ordinary.pairs)
    assert found.ordinary.change.effect == pytest.approx(float((after - before).mean()), abs=1e-6)
    low, high = found.ordinary.change.ci95 or (0, 0)
    assert low <= found.ordinary.change.effect <= high
    assert found.to_json()["effect"] == found.ordinary.change.effect
    with pytest.raises(DataError, match="not a boundary pair"):
        evaluate(llama, pairs().boundary, texts, lambda: llama.steer(edit))


def test_calibration_stays_within_the_budget_and_takes_the_most_certain_effect(llama: SteerableModel) -> None:
    some = pairs(24)
    vector = extract(llama, some)
    texts = [Encoded((), tuple(range(start, start + 30))) for start in (10, 60, 120)]
    found, doses = calibrate(llama, vector, some, texts, [0, 1, 2], budget=Budget(kl_mean=0.05))
    assert found.calibration is not None
    within = [dose for dose in doses if dose.within]
    assert all((dose.kl_mean <= 0.05 and dose.kl_p95 <= 1 and dose.perplexity_ratio <= 1.15) for dose in within)
    best = max(within, key=lambda dose: dose.effect_low)
    assert all(dose.effect_low <= dose.effect for dose in doses)
    assert (found.calibration.layer, found.calibration.strength) == (best.layer, best.strength)
    # Every layer is searched up to the budget, and the curve at the best one goes past it.
    assert {dose.layer for dose in within} == {0, 1, 2}
    assert max(dose.kl_mean for dose in doses) > 0.05
    assert len(doses) == most_doses(3)
    assert len([dose for dose in doses if dose.layer == best.layer]) == 6
    beyond = overcorrection(doses, found.calibration)
    if beyond is not None:
        assert not beyond.within
        assert beyond.effect > best.effect
    assert llama.steering.handles == ()


def test_calibrating_again_keeps_the_positions_and_the_operation_that_the_doses_were_measured_with(
    llama: SteerableModel,
) -> None:
    some = pairs(24)
    vector = (-extract(llama, some)).calibrated(Calibration(0, 1.0, "generated", "clamp"))
    texts = [llama.encode("Hello?", "Good day, and how are you this fine morning?")]
    found, doses = calibrate(llama, vector, some, texts, [1], budget=Budget(kl_mean=0.05))
    assert found.calibration is not None
    assert (found.calibration.positions, found.calibration.operation) == ("generated", "clamp")
    chosen = next(dose for dose in doses if dose.strength == found.calibration.strength)
    with llama.steer(activate(found)):
        steered = margins(llama, some.ordinary.pairs)
    assert float((steered - margins(llama, some.ordinary.pairs)).mean()) == pytest.approx(chosen.effect, abs=1e-5)


def test_a_vector_that_does_nothing_good_is_not_calibrated(llama: SteerableModel) -> None:
    some = pairs(24)
    wrong = extract(llama, some)
    texts = [Encoded((), tuple(range(10, 40)))]
    with pytest.raises(InputError, match=r"no dose with an effect above 0 within 0.01 nats; layers: 1 \(-"):
        calibrate(llama, wrong, some, texts, [1], budget=Budget(kl_mean=0.01))


def test_the_shipped_neutral_text_is_read_and_split(llama: SteerableModel) -> None:
    whole = read_neutral(llama)
    assert len(whole) >= 100
    parts = [read_neutral(llama, split=split) for split in ("train", "calibration", "test")]
    assert sorted(map(hash, whole)) == sorted(hash(one) for part in parts for one in part)
    assert any(not one.prompt for one in whole)
    assert any(one.prompt for one in whole)
    assert SHIPPED.is_file()


@pytest.mark.parametrize(
    "line",
    [
        '{"text": ""}',
        "{}",
        '{"text": "a", "messages": []}',
        '{"messages": [{"role": "user", "content": "x"}]}',
        '{"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]}',
        "[",
    ],
)
def test_a_bad_neutral_line_is_named(
    llama: SteerableModel, line: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("neutral") / "n.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(DataError, match=r"n\.jsonl, line 2"):
        read_neutral(llama, path)
