"""Gradients of the margin against finite differences, on every family."""

import torch

from engrain.core.composition import activate
from engrain.core.contrast import ContrastPair, Message, PairSet
from engrain.core.extract import MeanDifference, extract, pair_differences
from engrain.core.gradient import MarginGradient, margin_gradient
from engrain.core.model import SteerableModel
from engrain.core.scoring import margins
from engrain.core.vector import SteeringVector
from tiny import tiny

PAIRS = PairSet(
    (
        ContrastPair((Message("user", "Tea or coffee?"),), "Tea, thanks.", "Well, that depends.", scenario="a"),
        ContrastPair((Message("user", "Ship it"),), "Shipped.", "Shall we wait, though?", scenario="b"),
        ContrastPair(
            (Message("system", "Be brief."), Message("user", "Why?")),
            "So.",
            "Well, because.",
            negative_messages=(Message("system", "Ramble on."), Message("user", "Why?")),
            scenario="c",
        ),
    )
)


def test_the_gradient_is_the_slope_of_the_margin_along_any_direction(clean: SteerableModel) -> None:
    # A block of experts chooses them by the hidden state, so that the margin jumps along a shift in front of it.
    layers = [2] if "moe" in clean.source else [0, 2]
    found = torch.stack([margin_gradient(clean, [pair], layers) for pair in PAIRS])
    generator = torch.Generator().manual_seed(0)
    for place, layer in enumerate(layers):
        direction = SteeringVector({layer: torch.randn(clean.width, generator=generator)})
        step = 2e-4  # the margin curves strongly over longer ones
        sides = []
        for strength in (step, -step):
            with clean.steer(activate(direction, layer, strength)):
                sides.append(margins(clean, PAIRS.pairs))
        slope = (sides[0] - sides[1]) / (2 * step)
        torch.testing.assert_close(found[:, place].double() @ direction.at(layer).double(), slope, atol=5e-3, rtol=1e-2)


def test_the_direction_raises_the_margin_more_than_the_mean_difference_of_the_same_length(
    llama: SteerableModel,
) -> None:
    steep = extract(llama, PAIRS, estimator=MarginGradient, layers=[1])
    typical = extract(llama, PAIRS, estimator=MeanDifference, layers=[1])
    torch.testing.assert_close(steep.at(1).norm(), typical.at(1).norm())
    base = margins(llama, PAIRS.pairs)
    gains = []
    for vector in (steep, typical):
        with llama.steer(activate(vector, 1, 0.05)):
            gains.append(float((margins(llama, PAIRS.pairs) - base).mean()))
    assert gains[0] > max(0.0, gains[1])


def test_pairs_that_share_a_pass_weigh_as_they_do_one_by_one(clean: SteerableModel) -> None:
    weights = [1.0, -0.5, 2.0]
    together = margin_gradient(clean, PAIRS.pairs, [0, 2], weights)
    alone = sum(weight * margin_gradient(clean, [pair], [0, 2]) for weight, pair in zip(weights, PAIRS, strict=True))
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)


def test_the_direction_is_the_mean_of_the_pairs_own_gradients(llama: SteerableModel) -> None:
    own = pair_differences(llama, PAIRS.pairs, 1, gradients=True)
    direction = extract(llama, PAIRS, estimator=MarginGradient).at(1)
    torch.testing.assert_close(torch.cosine_similarity(own.mean(dim=0), direction, dim=0), torch.tensor(1.0))


def test_half_precision_finds_the_same_direction_and_no_weight_keeps_a_gradient() -> None:
    whole, half = tiny("llama"), tiny("llama", torch.bfloat16)
    one, other = (extract(model, PAIRS, estimator=MarginGradient, layers=[1]).at(1) for model in (whole, half))
    assert float(torch.cosine_similarity(one, other, dim=0)) > 0.99
    assert all(parameter.grad is None for model in (whole, half) for parameter in model.hf.parameters())


def test_progress_counts_every_pair_once(llama: SteerableModel) -> None:
    told: list[int] = []
    extract(llama, PAIRS, estimator=MarginGradient, layers=[1], progress=told.append)
    assert sum(told) == len(PAIRS)
