"""What a model makes of pairs and of neutral text: preference margins in nats, divergence from the base in nats."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engrain.core.capture import PackRunner
from engrain.core.composition import Active
from engrain.core.contrast import ContrastPair
from engrain.core.edit import Edit
from engrain.core.errors import InputError, LayerError
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded, Pack
from engrain.core.progress import Count

RESAMPLES = 10_000
# Places whose distributions are compared at a time: 25 MB a side with a vocabulary of 49,152.
CHUNK = 128
# Edits in one fanned pass, and the tokens of a pack in it. Behind the edited block there are _FAN times as many, and of
# each reply token logits: 38 MB an edit and pack with that vocabulary. Fewer edits repeat the blocks before it.
_FAN = 10
_FAN_TOKENS = 192


def margins(model: SteerableModel, pairs: Sequence[ContrastPair], progress: Count | None = None) -> Tensor:
    """Return how much the model prefers each pair's positive reply, steering included.

    Args:
        model: the model.
        pairs: contrast pairs.
        progress: called with the number of pairs done since the last call.

    Returns:
        Mean log-probability per reply token of the positive minus that of the negative, nats, float64 [pairs].
    """
    sequences = [one for pair in pairs for one in model.encode_pair(pair)]
    means = reply_means(PackRunner(model, sequences, group=2), sequences, 2, progress)
    return means[0::2] - means[1::2]


def reply_means(
    runner: PackRunner, sequences: Sequence[Encoded], group: int = 1, progress: Count | None = None
) -> Tensor:
    """Return the mean log-probability per reply token of each sequence, nats, float64 [sequences].

    Args:
        runner: made for these sequences.
        sequences: conversations with their replies.
        group: how many sequences count as one for ``progress``.
        progress: called with the number of groups done since the last call.
    """
    means = torch.zeros(len(sequences), dtype=torch.float64)
    for pack in runner.packs():
        found = reply_log_probabilities(runner, pack, sequences)
        means[list(pack.members)] = torch.stack([own.mean() for own in found])
        if progress is not None:
            progress(len(pack.members) // group)
    return means


def reply_log_probabilities(runner: PackRunner, pack: Pack, sequences: Sequence[Encoded]) -> tuple[Tensor, ...]:
    """Return the log-probability of each reply token, nats: for each member of the pack a tensor float64 [reply].

    Args:
        runner: made for these sequences.
        pack: one of its packs.
        sequences: conversations with their replies.
    """
    places, targets, lengths = _reply_tokens(pack, sequences)
    found: tuple[Tensor, ...] = log_probabilities(runner.logits(pack, places), targets).split(lengths)
    return found


def margins_under(
    model: SteerableModel,
    pairs: Sequence[ContrastPair],
    edits: Sequence[Active],
    progress: Count | None = None,
) -> Tensor:
    """Return ``margins`` under each of several edits of the same block, which share the work up to that block.

    Args:
        model: the model, unsteered.
        pairs: contrast pairs.
        edits: vectors in use, each acting at the same one block.
        progress: called with the number of pairs times edits done since the last call.

    Returns:
        float64 [edits, pairs], nats.

    Raises:
        LayerError: the edits are not all at the same one block.
    """
    layers = {active.layers for active in edits}
    if len(layers) != 1 or len(next(iter(layers))) != 1:
        raise LayerError(f"Edits at the layers {sorted(layers)} were given; they must all act at the same one block.")
    layer = edits[0].layers[0]
    sequences = [one for pair in pairs for one in model.encode_pair(pair)]
    if not PackRunner(model, sequences).trees:
        found = []
        for active in edits:
            with model.steer(active):
                found.append(margins(model, pairs, progress))
        return torch.stack(found)
    means = torch.zeros(len(edits), len(sequences), dtype=torch.float64)
    for first in range(0, len(edits), _FAN):
        chunk = edits[first : first + _FAN]
        with model.steering.fan(layer, chunk):
            runner = PackRunner(model, sequences, group=2, tokens=_FAN_TOKENS)
            for pack in runner.packs():
                places, targets, lengths = _reply_tokens(pack, sequences)
                scores = torch.stack([log_probabilities(own, targets) for own in runner.fanned_logits(pack, places)])
                for member, own in zip(pack.members, scores.split(lengths, dim=1), strict=True):
                    means[first : first + len(chunk), member] = own.mean(dim=1)
                if progress is not None:
                    progress(len(chunk) * len(pack.members) // 2)
    return means[:, 0::2] - means[:, 1::2]


def _reply_tokens(pack: Pack, sequences: Sequence[Encoded]) -> tuple[Tensor, Tensor, list[int]]:
    """Return where reply tokens are predicted, [tokens], which they are, [tokens], and how many each member has.

    A reply token is predicted where its parent stands: the last prompt token, then each reply token but the last.
    """
    before = [path[length - 1 : -1] for path, length in zip(pack.paths, pack.prompt_lengths, strict=True)]
    targets = torch.cat([torch.tensor(sequences[member].reply) for member in pack.members])
    return torch.cat(before), targets, [len(places) for places in before]


def log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log-probabilities of ``targets`` [places] under ``logits`` [places, vocabulary], nats, float64."""
    logits = logits.float()
    chosen = logits.gather(-1, targets.to(logits.device).unsqueeze(-1)).squeeze(-1)
    return (chosen - logits.logsumexp(dim=-1)).double().cpu()


@dataclass(frozen=True)
class Divergence:
    """How far an edited model is from its base, pooled over token positions.

    Attributes:
        kl_mean: mean KL(base || edited), nats.
        kl_p95: 95th percentile of it over positions, nats.
        kl_rms: root of its mean square, nats: a few positions far off weigh more than in the mean.
        perplexity_ratio: perplexity of the text under the edited model over that under the base.
        positions: number of token positions.
    """

    kl_mean: float
    kl_p95: float
    kl_rms: float
    perplexity_ratio: float
    positions: int

    @classmethod
    def of(cls, kl: Tensor, loss: Tensor) -> "Divergence":
        """Return it from what was found at every position.

        Args:
            kl: KL(base || edited), nats, float64 [positions].
            loss: how much more log-probability the base gives to the token that follows, float64 [known], where one
                does.
        """
        ratio = float(loss.mean().exp()) if len(loss) else 1.0
        rms = float(kl.square().mean().sqrt())
        return cls(float(kl.mean()), float(kl.quantile(0.95)), rms, ratio, len(kl))

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


class NeutralScorer:
    """Scores edits of a model by how far they move it on text that they should leave alone.

    Args:
        model: the model, unedited.
        sequences: raw texts as replies without a prompt, scored at every position; conversations with a reply,
            scored where the reply is predicted.
        remember: keep the base's logits for the next edit: 4 * positions * vocabulary bytes.
    """

    def __init__(self, model: SteerableModel, sequences: Sequence[Encoded], *, remember: bool = False) -> None:
        self._model = model
        self._sequences = sequences
        self._remember = remember
        self._base: list[Tensor] = []

    def divergence(self, edit: Edit, progress: Count | None = None) -> Divergence:
        """Return how far the model inside of ``edit()`` is from the model outside of it.

        Args:
            edit: makes a context in which the model is edited.
            progress: called with the number of texts done since the last call.
        """
        # Two runners: each computes the tokens that all texts start with under its own model.
        base, edited = (PackRunner(self._model, self._sequences) for _ in range(2))
        found: list[Tensor] = []
        lost: list[Tensor] = []
        for number, pack in enumerate(base.packs()):
            places, following = scored_places(pack)
            if number < len(self._base):
                before = self._base[number]
            else:
                before = base.logits(pack, places).float()
                if self._remember:
                    self._base.append(before)
            with edit():
                after = edited.logits(pack, places).float()
            kl, loss = divergences(before, after, following)
            found.append(kl)
            lost.append(loss)
            if progress is not None:
                progress(len(pack.members))
        return Divergence.of(torch.cat(found), torch.cat(lost))


def divergences(before: Tensor, after: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(before || after) at each place, [places], and the loss of what follows, where known, [known]; float64.

    Args:
        before: logits, [places, vocabulary].
        after: the same of another model.
        following: the token that follows, -1 where none does, [places].
    """
    kl, loss = [], []
    # Some places at a time: every intermediate is as wide as the vocabulary.
    for ones, others, tokens in zip(*(side.split(CHUNK) for side in (before, after, following)), strict=True):
        one, other = ones.log_softmax(dim=-1), others.log_softmax(dim=-1)
        gained = one - other
        kl.append(one.exp_().mul_(gained).sum(dim=-1))
        loss.append(gained.gather(1, tokens.clamp(min=0).to(gained.device)[:, None])[:, 0])
    return torch.cat(kl).double().cpu(), torch.cat(loss).double().cpu()[following >= 0]


def scored_places(pack: Pack) -> tuple[Tensor, Tensor]:
    """Return the places that are scored, and the token that follows each in its text (-1 behind the last one)."""
    tokens = pack.tokens.flatten()
    places, following = [], []
    for path, length in zip(pack.paths, pack.prompt_lengths, strict=True):
        after = torch.cat([tokens[path[1:]], torch.tensor([-1])])
        chosen = slice(length - 1, -1) if length else slice(None)
        places.append(path[chosen])
        following.append(after[chosen])
    return torch.cat(places), torch.cat(following)


def bootstrap_interval(
    values: Sequence[float] | Tensor | NDArray[np.float64],
    scenarios: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean, resampling whole scenarios (Efron and Tibshirani, 1993).

    Pairs of one scenario are not independent, so they are drawn together. Given the differences of two models on the
    same pairs, it is the paired bootstrap.

    Args:
        values: one number per pair.
        scenarios: the scenario of each pair.
        seed: of the resampling; the same seed gives the same interval.
        resamples: how many.

    Raises:
        InputError: fewer than two scenarios, which say nothing about others.
    """
    numbers = np.asarray(values, dtype=np.float64)
    sums, counts = _resampled((numbers, np.ones_like(numbers)), scenarios, seed, resamples)
    low, high = np.quantile(sums / counts, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_ratio(
    values: Sequence[float] | Tensor | NDArray[np.float64],
    whole: Sequence[float] | Tensor | NDArray[np.float64],
    scenarios: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, tuple[float, float]]:
    """Return the sum of ``values`` over that of ``whole``, with its 95 % percentile interval over whole scenarios.

    Where ``whole`` is not surely of one sign the interval is wide, or not one at all: a share of nothing.

    Args:
        values: one number per pair.
        whole: what they are a share of, one number per pair.
        scenarios: the scenario of each pair.
        seed: of the resampling; the same seed gives the same interval.
        resamples: how many.

    Raises:
        InputError: fewer than two scenarios, which say nothing about others; or ``whole`` sums to 0.
    """
    part, total = (np.asarray(side, dtype=np.float64) for side in (values, whole))
    if total.sum() == 0:
        raise InputError("There is nothing that a share could be of: the sum is 0.")
    parts, totals = _resampled((part, total), scenarios, seed, resamples)
    drawn = totals != 0
    low, high = np.quantile(parts[drawn] / totals[drawn], [0.025, 0.975])
    return float(part.sum() / total.sum()), (float(low), float(high))


def _resampled(
    rows: Sequence[NDArray[np.float64]], scenarios: Sequence[str], seed: int, resamples: int
) -> list[NDArray[np.float64]]:
    """Return the sums of each row, [pairs], over the scenarios that were drawn, [resamples] each."""
    names, of = np.unique(np.asarray(scenarios), return_inverse=True)
    if len(names) < 2:
        raise InputError(f"An interval needs pairs of two scenarios at least, there is {len(names)}; add pairs.")
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    return [np.bincount(of, weights=row)[drawn].sum(axis=1) for row in rows]
