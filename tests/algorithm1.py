"""Algorithm 1 of arXiv 2412.05270, slow and literal: what Apollo is held against."""

import math

import torch
from torch import Tensor

from engrain.core.projection import gaussian, mix


class Algorithm1:
    """One matrix, in float64, one channel at a time.

    Args:
        weight: W, of any two dimensions; transposed to the paper's m <= n, channels are the n columns.
        place: which parameter it is, counted from 0.
        expert: which matrix of a stack it is, None if there is no stack.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        lr: float,
        rank: int,
        tensor_wise: bool,
        alpha: float,
        gap: int,
        weight_decay: float,
        place: int = 0,
        expert: int | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        gamma: float = 1.01,
    ) -> None:
        self.tall = weight.shape[0] > weight.shape[1]
        self.w = (weight.T if self.tall else weight).detach().double().clone()
        self.lr, self.rank, self.tensor_wise, self.alpha = lr, rank, tensor_wise, alpha
        self.gap, self.weight_decay, self.betas, self.eps, self.gamma = gap, weight_decay, betas, eps, gamma
        self.seed, self.expert = mix(0, place), expert
        self.m = torch.zeros(rank, self.w.shape[1], dtype=torch.float64)
        self.v = torch.zeros_like(self.m)
        self.before = 0.0
        self.t = 0

    @property
    def weight(self) -> Tensor:
        return self.w.T if self.tall else self.w

    def draw(self, side: int) -> Tensor:
        """Return a projection, [rank, side]."""
        seed = mix(self.seed, self.t // self.gap)
        seed = seed if self.expert is None else mix(seed, self.expert)
        return gaussian([seed], side, self.rank, 1 / self.rank, torch.device("cpu"))[0].T.double()

    def step(self, gradient: Tensor) -> None:
        g = (gradient.T if self.tall else gradient).double()
        if self.t % self.gap == 0:
            self.p = self.draw(len(g))
        r = self.p @ g
        self.t += 1
        self.m = self.betas[0] * self.m + (1 - self.betas[0]) * r
        self.v = self.betas[1] * self.v + (1 - self.betas[1]) * r * r
        m = self.m / (1 - self.betas[0] ** self.t)
        v = self.v / (1 - self.betas[1] ** self.t)
        adapted = m / (v.sqrt() + self.eps)
        update = torch.zeros_like(g)
        for j in range(g.shape[1]):
            above, below = (adapted, r) if self.tensor_wise else (adapted[:, j], r[:, j])
            norm = below.norm().item()
            update[:, j] = g[:, j] * (above.norm().item() / norm if norm else 0.0)
        norm = update.norm().item()
        if self.before and norm / self.before > self.gamma:
            update *= self.gamma * self.before / norm
        if r.norm().item() / math.sqrt(r.numel()) > self.eps:
            self.before = update.norm().item()
        self.w = self.w - self.lr * self.alpha * update - self.lr * self.weight_decay * self.w
