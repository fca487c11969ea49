"""What a model makes of pairs and of neutral text: preference margins in nats, divergence from the base in nats."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engrain.core.capture import PackRunner
from engrain.core.contrast import ContrastPair
from engrain.core.errors import InputError
from engrain.core.extract import encode_pair
from engrain.core.model import SteerableModel
from engrain.core.packing import Encoded

Progress = Callable[[int], None]

RESAMPLES = 10_000


def margins(model: SteerableModel, pairs: Sequence[ContrastPair], progress: Progress | None = None) -> Tensor:
    """Return how much the model prefers each pair's positive reply, steering included.

    Args:
        model: the model.
        pairs: contrast pairs.
        progress: called with the number of pairs done since the last call.

    Returns:
        Mean log-probability per reply token of the positive minus that of the negative, nats, float64 [pairs].
    """
    sequences = [one for pair in pairs for one in encode_pair(model, pair)]
    runner = PackRunner(model, sequences, group=2)
    means = torch.zeros(len(sequences), dtype=torch.float64)
    for pack in runner.packs():
        # A reply token is predicted where its parent stands: the last prompt token, then each reply token but the last.
        before = [path[length - 1 : -1] for path, length in zip(pack.paths, pack.prompt_lengths, strict=True)]
        chosen = torch.cat([torch.tensor(sequences[member].reply) for member in pack.members])
        scores = runner.logits(pack, torch.cat(before)).float().log_softmax(dim=-1)
        found = scores.gather(1, chosen.to(scores.device)[:, None])[:, 0].double().cpu()
        for member, own in zip(pack.members, found.split([len(places) for places in before]), strict=True):
            means[member] = own.mean()
        if progress is not None:
            progress(len(pack.members) // 2)
    return means[0::2] - means[1::2]


@dataclass(frozen=True)
class Divergence:
    """How far an edited model is from its base, pooled over token positions.

    Attributes:
        kl_mean: mean KL(base || edited), nats.
        kl_p95: 95th percentile of it over positions, nats.
        positions: number of token positions.
    """

    kl_mean: float
    kl_p95: float
    positions: int


class NeutralScorer:
    """Scores edits of a model by how far they move it on text that they should leave alone.

    Args:
        model: the model, unedited.
        sequences: raw texts as replies without a prompt, scored at every position; conversations with a reply,
            scored where the reply is predicted.
        remember: keep the base's log-probabilities for the next edit: 4 * positions * vocabulary bytes.
    """

    def __init__(self, model: SteerableModel, sequences: Sequence[Encoded], *, remember: bool = False) -> None:
        self._model = model
        self._sequences = sequences
        self._remember = remember
        self._base: list[Tensor] = []

    def divergence(
        self, edit: Callable[[], AbstractContextManager[object]], progress: Progress | None = None
    ) -> Divergence:
        """Return how far the model inside of ``edit()`` is from the model outside of it.

        Args:
            edit: makes a context in which the model is edited.
            progress: called with the number of texts done since the last call.
        """
        # Two runners: each computes the tokens that all texts start with under its own model.
        base, edited = (PackRunner(self._model, self._sequences) for _ in range(2))
        found: list[Tensor] = []
        for number, pack in enumerate(base.packs()):
            places = torch.cat(
                [_scored(path, length) for path, length in zip(pack.paths, pack.prompt_lengths, strict=True)]
            )
            if number < len(self._base):
                before = self._base[number]
            else:
                before = base.logits(pack, places).float().log_softmax(dim=-1)
                if self._remember:
                    self._base.append(before)
            with edit():
                after = edited.logits(pack, places).float().log_softmax(dim=-1)
            found.append((before.exp() * (before - after)).sum(dim=-1).double().cpu())
            if progress is not None:
                progress(len(pack.members))
        kl = torch.cat(found)
        return Divergence(float(kl.mean()), float(kl.quantile(0.95)), len(kl))


def _scored(path: Tensor, prompt_length: int) -> Tensor:
    return path[prompt_length - 1 : -1] if prompt_length else path


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
    names, of = np.unique(np.asarray(scenarios), return_inverse=True)
    if len(names) < 2:
        raise InputError(f"An interval needs pairs of two scenarios at least, there is {len(names)}; add pairs.")
    sums = np.bincount(of, weights=numbers)
    counts = np.bincount(of)
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
