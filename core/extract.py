"""Steering vectors from contrast pairs: one pass over the replies, sums kept, nothing stored."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from engrain.core.capture import STATE_TOKENS, PackRunner
from engrain.core.chat import encode_reply
from engrain.core.contrast import ContrastPair, PairSet
from engrain.core.errors import DataError, UnknownNameError
from engrain.core.gradient import margin_gradient
from engrain.core.model import SteerableModel
from engrain.core.number import whole
from engrain.core.packing import Pack
from engrain.core.progress import Count
from engrain.core.vector import SteeringVector

NAMED_POSITIONS = ("response-mean", "last", "first", "prompt-last")


# So many pairs are tokenized at a time: enough to pack well, and the tokens of more would grow with their number.
_WINDOW = 256


class Estimator(Protocol):
    """Turns pairs of representations into one direction, without keeping them where it can."""

    def update(self, positive: Tensor, negative: Tensor) -> None:
        """Take in some pairs: both [pairs, d_model], float32, row i of one belonging to row i of the other."""

    def direction(self) -> Tensor:
        """Return the direction, [d_model]."""


@runtime_checkable
class GradientEstimator(Estimator, Protocol):
    """An estimator that also sees how the preference margin changes with the hidden states."""

    def update_gradient(self, gradient: Tensor) -> None:
        """Take in the gradient of some pairs' summed margins by a shift at the layer, [d_model], float32."""


class MeanDifference:
    """Mean of (positive - negative), each pair weighing the same (Panickssery et al., arXiv 2312.06681)."""

    def __init__(self, width: int) -> None:
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._pairs = 0

    def update(self, positive: Tensor, negative: Tensor) -> None:
        """Take in some pairs."""
        # The difference first: summed apart, two large means would cancel and leave their rounding.
        self._sum += (positive - negative).double().sum(dim=0)
        self._pairs += len(positive)

    def direction(self) -> Tensor:
        """Return the mean."""
        return (self._sum / self._pairs).float()


class PrincipalDifference:
    """First principal axis of the differences about zero (Zou et al., arXiv 2310.01405).

    The sign is the one along which the differences lie on average, the length their mean projection, so that its
    strength reads as a mean difference's does. Keeps a d_model x d_model sum, whatever the number of pairs.
    """

    def __init__(self, width: int) -> None:
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._outer = torch.zeros(width, width, dtype=torch.float64)
        self._pairs = 0

    def update(self, positive: Tensor, negative: Tensor) -> None:
        """Take in some pairs."""
        difference = (positive - negative).double()
        self._sum += difference.sum(dim=0)
        self._outer += difference.T @ difference
        self._pairs += len(difference)

    def direction(self) -> Tensor:
        """Return the axis, scaled and signed by the mean projection of the differences."""
        axis: Tensor = torch.linalg.eigh(self._outer)[1][:, -1]
        direction: Tensor = axis * (axis @ self._sum / self._pairs)
        return direction.float()


def extract(
    model: SteerableModel,
    pairs: PairSet | Sequence[ContrastPair],
    *,
    layers: Iterable[int] | None = None,
    positions: str = "response-mean",
    estimator: Callable[[int], Estimator] = MeanDifference,
    name: str = "vector",
    tokens: int = STATE_TOKENS,
    progress: Count | None = None,
) -> SteeringVector:
    """Return the direction from the replies without a behavior to those with it, at every layer asked for.

    Every non-boundary pair is used. Each is run in one forward pass with both replies behind one prompt; whatever the
    number of pairs, the memory is that of one pass and the sums.

    Args:
        model: the model, unsteered.
        pairs: contrast pairs.
        layers: decoder blocks counted from 0; None for all.
        positions: what stands for a reply: response-mean, last, first, prompt-last, or a reply token's number.
        estimator: makes the running estimate for one layer, given d_model.
        name: what the vector is called.
        tokens: how many tokens one forward pass may hold.
        progress: called with the number of pairs done since the last call.

    Raises:
        DataError: no ordinary pair, a reply too short for ``positions``, or prompt-last where both sides share it.
        LayerError: a layer that is not in the model.
        UnknownNameError: ``positions`` names no part of a reply.
    """
    ordinary = [pair for pair in pairs if not pair.boundary]
    source = pairs.source if isinstance(pairs, PairSet) else "pairs"
    if not ordinary:
        raise DataError(source, None, "holds no pair to extract from (boundary pairs are not).")
    chosen = model.choose_layers(layers)
    _check_lengths(model, ordinary, check_extraction_positions(positions), source)
    estimates = {layer: estimator(model.width) for layer in chosen}

    def take(layer: int, numbers: Sequence[int], positive: Tensor, negative: Tensor) -> None:
        estimates[layer].update(positive, negative)

    steep = {layer: one for layer, one in estimates.items() if isinstance(one, GradientEstimator)}
    _represent(model, ordinary, chosen, positions, take, tokens, None if steep else progress)
    if steep:
        for first in range(0, len(ordinary), _WINDOW):
            gradients = margin_gradient(model, ordinary[first : first + _WINDOW], chosen, progress=progress)
            for layer, gradient in zip(chosen, gradients, strict=True):
                steep[layer].update_gradient(gradient)
    return SteeringVector(
        {layer: estimate.direction() for layer, estimate in estimates.items()}, name, fingerprint=model.fingerprint
    )


def pair_differences(
    model: SteerableModel,
    pairs: Sequence[ContrastPair],
    layer: int,
    positions: str = "response-mean",
    progress: Count | None = None,
    *,
    gradients: bool = False,
) -> Tensor:
    """Return each pair's own share in a direction at one layer, float32 [pairs, d_model]: its replies' difference.

    Args:
        model: the model, unsteered.
        pairs: contrast pairs that ``extract`` would take.
        layer: decoder block, counted from 0.
        positions: what stands for a reply.
        progress: called with the number of pairs done since the last call.
        gradients: return the gradients of the pairs' margins instead.
    """
    if gradients:
        return torch.cat([margin_gradient(model, [pair], [layer]) for pair in pairs])
    found = torch.zeros(len(pairs), model.width)

    def take(layer: int, numbers: Sequence[int], positive: Tensor, negative: Tensor) -> None:
        found[list(numbers)] = positive - negative

    _represent(model, pairs, [layer], positions, take, STATE_TOKENS, progress)
    return found


def _represent(
    model: SteerableModel,
    pairs: Sequence[ContrastPair],
    layers: Sequence[int],
    positions: str,
    take: Callable[[int, Sequence[int], Tensor, Tensor], None],
    tokens: int,
    progress: Count | None,
) -> None:
    """Hand ``take`` a layer, the numbers of some pairs and their replies' representations, [pairs, d_model] each."""
    for first in range(0, len(pairs), _WINDOW):
        sequences = [one for pair in pairs[first : first + _WINDOW] for one in model.encode_pair(pair)]
        runner = PackRunner(model, sequences, layers, group=2, tokens=tokens, float32=True)
        for pack in runner.packs():
            weights = _weights(pack, positions)
            numbers = [first + member // 2 for member in pack.members[0::2]]

            def observe(layer: int, hidden: Tensor, weights: Tensor = weights, own: list[int] = numbers) -> None:
                states = (weights.to(hidden.device) @ hidden.float()).cpu()
                take(layer, own, states[0::2], states[1::2])

            runner.observe(pack, observe)
            if progress is not None:
                progress(len(pack.members) // 2)


def _weights(pack: Pack, positions: str) -> Tensor:
    """Return how much each token counts for each member's representation, [members, batch * seq]."""
    weights = torch.zeros(len(pack.members), pack.tokens.numel())
    for place, length in enumerate(pack.prompt_lengths):
        path = pack.paths[place]
        if positions == "prompt-last":
            chosen = path[length - 1 : length]
        elif positions == "response-mean":
            chosen = path[length:]
        else:
            chosen = path[length:][_token_number(positions)].reshape(1)
        weights[place, chosen] = 1 / len(chosen)
    return weights


def _token_number(positions: str) -> int:
    return {"first": 0, "last": -1}[positions] if positions in ("first", "last") else int(positions)


def _check_lengths(model: SteerableModel, pairs: Sequence[ContrastPair], positions: str, source: str) -> None:
    if positions == "prompt-last":
        if all(pair.negative_messages is None for pair in pairs):
            raise DataError(
                source, None, "both replies of every pair share their prompt, so 'prompt-last' has no contrast."
            )
        return
    if positions == "response-mean":
        return
    number = _token_number(positions)
    needed = number + 1 if number >= 0 else -number
    for pair in pairs:
        for reply in (pair.positive, pair.negative):
            length = len(encode_reply(model.tokenizer, reply))
            if length < needed:
                name = pair.id or f"with the reply {pair.positive[:40]!r}"
                raise DataError(
                    source, None, f"the pair {name} has a reply of {length} tokens, none number {positions}."
                )


def check_extraction_positions(positions: str) -> str:
    """Return ``positions`` when it names a part of the reply or a token of it.

    Raises:
        UnknownNameError: anything else.
    """
    if positions not in NAMED_POSITIONS and not whole(positions.removeprefix("-")):
        raise UnknownNameError("positions", positions, [*NAMED_POSITIONS, "a reply token's number"])
    return positions
