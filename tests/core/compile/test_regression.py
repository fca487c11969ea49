"""Moments of texts against plain passes, and what solves them."""

import pytest
import torch
from torch import Tensor

from compile_order import fresh
from engrain.core.compile.passage import Passage
from engrain.core.compile.regression import Kind, moments, prompts, replies, solve, tokens
from engrain.core.packing import Encoded

# Two that share their start, one without a prompt.
TEXTS = (Encoded((1, 2, 3, 4), (5, 6)), Encoded((1, 2, 9), (7, 5, 6)), Encoded((), (8, 2, 6, 11)))


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        (tokens, [slice(None)] * 3),
        (replies, [slice(3, 5), slice(2, 5), slice(None)]),
        (prompts, [slice(3), slice(2), slice(0)]),
    ],
)
def test_moments_are_those_of_plain_passes(kind: Kind, kept: list[slice]) -> None:
    model = fresh()
    module = model.hf.get_submodule("model.layers.1.mlp.down_proj")
    inputs: list[Tensor] = []
    with module.register_forward_pre_hook(lambda module, seen: inputs.append(seen[0][0])), torch.no_grad():
        for one in TEXTS:
            model.hf(input_ids=torch.tensor([one.prompt + one.reply]))
    wanted = torch.cat([own[part] for own, part in zip(inputs, kept, strict=True)]).double()
    passage = Passage(model, TEXTS, 1)

    def look(number: int) -> dict[str, tuple[Tensor, Tensor]]:
        x = passage.see(number, 1, {"it": module}).inputs["it"]
        return {"it": (x, 2 * x[:, :3])}

    ((square, cross),) = (found["it"] for found in moments(passage, look, [kind]))
    torch.testing.assert_close(square, wanted.T @ wanted / len(wanted), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(cross, 2 * wanted.T @ wanted[:, :3] / len(wanted), rtol=1e-4, atol=1e-7)


def test_of_no_tokens_there_are_no_moments() -> None:
    model = fresh()
    passage = Passage(model, TEXTS[2:], 1)
    (found,) = moments(passage, lambda number: {"it": (torch.ones(4, 2), torch.ones(4, 1))}, [prompts])
    assert all(not part.any() for part in found["it"])


def test_a_linear_map_is_found_again_as_the_ridge_goes() -> None:
    drawn = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inside, outside = ((part.T @ part, part.T @ part @ wanted) for part in (drawn[:25], drawn[25:]))
    torch.testing.assert_close(solve(inside, outside, 2.0, 1e-12), wanted)


def test_a_larger_ridge_gives_a_smaller_map() -> None:
    drawn = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inside = (drawn.T @ drawn, drawn.T @ drawn[:, :2])
    sizes = [float(solve(inside, inside, 1.0, ridge).norm()) for ridge in (1e-3, 1e-2, 1e-1)]
    assert sizes == sorted(sizes, reverse=True)
