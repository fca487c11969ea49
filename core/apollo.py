"""APOLLO: AdamW's step sizes without AdamW's memory, from Algorithm 1 of Zhu et al. (2024), arXiv 2412.05270.

A matrix of m x n, m <= n, keeps Adam's moments of a random projection of its gradient to r x n. They say by how much
Adam would scale each channel (column of the n), or the whole tensor (APOLLO-Mini); the raw gradient is scaled by that.

Stands on torch alone. A matrix is handled as [channels, side], channels the larger dimension, a stack of experts as
[experts, channels, side]; the moments are [..., channels, rank].
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from engrain.core import shards
from engrain.core.apollo_settings import check_settings
from engrain.core.errors import OptimizerError
from engrain.core.projection import gaussian, mix

# Matrices handled at once, in entries: on a processor what stays in its cache, elsewhere what fills the device.
_CACHED, _FILLING = 1 << 20, 1 << 26

State = dict[str, Any]
Group = dict[str, Any]


class Apollo(torch.optim.Optimizer):
    """APOLLO and APOLLO-Mini for matrices and stacks of matrices, AdamW for everything else.

    Each argument but ``params`` may also stand in a parameter group. Moments are kept in float32 at least.

    Args:
        params: parameters, named parameters, or groups of them; those with two or three dimensions are projected.
        lr: learning rate; one that suits AdamW suits here with the default ``scale``.
        rank: rows of the projected gradient, at most the smaller side of the matrix; None leaves the group to AdamW.
        scale_type: "channel" (APOLLO) or "tensor" (APOLLO-Mini, meant for rank 1).
        scale: the square of Algorithm 1's alpha: updates are multiplied by its root. None is smaller side / rank, which
            makes them as large as AdamW's.
        update_proj_gap: steps after which another projection is drawn.
        norm_growth: bound on the growth of an update's norm from one step to the next; infinity is none.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, as AdamW's.
        seed: what the projections follow from, together with the parameter's place among the parameters.

    Raises:
        OptimizerError: a setting out of its range, or a complex parameter.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        rank: int | None = 64,
        scale_type: str = "channel",
        scale: float | None = None,
        update_proj_gap: int = 200,
        norm_growth: float = 1.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "rank": rank,
            "scale_type": scale_type,
            "scale": scale,
            "update_proj_gap": update_proj_gap,
            "norm_growth": norm_growth,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "seed": seed,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; checked first, so that a refused one changes nothing."""
        check_settings(self.defaults | param_group, f"Group {len(self.param_groups)}")
        super().add_param_group(param_group)
        for index, parameter in enumerate(self.param_groups[-1]["params"]):
            if not parameter.is_floating_point():
                group = self.param_groups.pop()
                raise OptimizerError(f"{_name(group, index)} is {parameter.dtype}; Apollo takes real floating point.")

    @property
    def projected(self) -> int:
        """Number of parameters that are projected; none is a configuration that saves nothing."""
        return sum(_is_projected(parameter, group) for group, parameter in self._parameters())

    @property
    def dense(self) -> int:
        """Number of parameters left to AdamW."""
        return sum(not _is_projected(parameter, group) for group, parameter in self._parameters())

    @property
    def clamped(self) -> int:
        """Number of projected parameters with a side no larger than the rank: they take the memory of AdamW."""
        return sum(
            _is_projected(parameter, group) and min(parameter.shape[-2:]) <= group["rank"]
            for group, parameter in self._parameters()
        )

    def state_bytes(self) -> int:
        """Return the bytes of all state tensors held by this process; there are none before the first step."""
        held = (value for state in self.state.values() for value in state.values() if isinstance(value, Tensor))
        return sum(tensor.numel() * tensor.element_size() for tensor in map(shards.local, held))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss anew, with gradients on.

        Returns:
            What the closure returned.

        Raises:
            OptimizerError: a gradient that is not strided; no parameter has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is not None and parameter.grad.layout is not torch.strided:
                    found = f"{_name(group, index)} has a {parameter.grad.layout} gradient"
                    raise OptimizerError(f"{found}; Apollo needs a dense one: make the layer with sparse=False.")
        first = 0
        for group in self.param_groups:
            dense = []
            alike = defaultdict(list)
            for index, parameter in enumerate(group["params"], first):
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not _is_projected(parameter, group):
                    dense.append(parameter)
                    continue
                if not state:
                    state |= {"step": 0, "seed": mix(group["seed"], index)}
                place = parameter.device, shards.layout(parameter)
                alike[state["step"], parameter.shape, parameter.dtype, place].append(parameter)
            first += len(group["params"])
            self._step_dense(dense, group)
            for parameters in alike.values():
                for some in _portions(parameters):
                    self._step_projected(some, group)
        return loss

    def _step_dense(self, parameters: Sequence[Tensor], group: Group) -> None:
        """Take torch's own AdamW step."""
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        if parameters:
            adamw(
                list(parameters),
                [shards.gradient(parameter) for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def _step_projected(self, parameters: Sequence[Tensor], group: Group) -> None:
        """Take Algorithm 1's step for parameters of one shape, type, place and age."""
        states = [self.state[parameter] for parameter in parameters]
        step = states[0]["step"]
        channels, side, rank = _sizes(parameters[0], group)
        work = torch.promote_types(parameters[0].dtype, torch.float32)
        (beta1, beta2), eps = group["betas"], group["eps"]

        gradients = [_rows(shards.gradient(parameter)) for parameter in parameters]
        epoch = step // group["update_proj_gap"]
        reduced = _project(gradients, [mix(state["seed"], epoch) for state in states], rank)
        for state, projected in zip(states, reduced, strict=True):
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(projected, dtype=work)
                state["exp_avg_sq"] = torch.zeros_like(projected, dtype=work)
                state["norm"] = shards.norms(projected, work)
            state["step"] = step + 1

        first = [shards.local(state["exp_avg"]) for state in states]
        second = [shards.local(state["exp_avg_sq"]) for state in states]
        raw = [shards.local(projected).to(work) for projected in reduced]
        torch._foreach_lerp_(first, raw, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, raw, raw, 1 - beta2)
        # first / (1 - beta1^t) over root(second / (1 - beta2^t)) + eps, with one division.
        divisors = torch._foreach_sqrt(second)
        torch._foreach_mul_(divisors, (1 - beta1 ** (step + 1)) / math.sqrt(1 - beta2 ** (step + 1)))
        torch._foreach_add_(divisors, eps * (1 - beta1 ** (step + 1)))
        adapted = torch._foreach_div(first, divisors)

        rows = [shards.local(gradient) for gradient in gradients]
        raw_squares = _channel_squares(raw)
        adapted_squares = _channel_squares(adapted)
        raw_total = shards.total(raw_squares.sum(-2, keepdim=True), reduced[0])
        if group["scale_type"] == "channel":
            factors = _ratio(adapted_squares, raw_squares)
            updates = [
                row * shards.spread(factor, projected, gradient)
                for row, factor, projected, gradient in zip(rows, factors, reduced, gradients, strict=True)
            ]
            norms = shards.total(_matrix_squares(updates, work), gradients[0]).sqrt_()
            multipliers = torch.ones_like(norms)
        else:
            updates = rows
            multipliers = _ratio(shards.total(adapted_squares.sum(-2, keepdim=True), reduced[0]), raw_total)
            norms = shards.total(_matrix_squares(rows, work), gradients[0]).sqrt_().mul_(multipliers)

        # A gradient that is lost in eps sets no reference: a zero one at first would hold all later ones down.
        heard = raw_total > eps**2 * channels * rank
        before = torch.stack([shards.local(state["norm"]) for state in states])
        limits = torch.where(before > 0, (group["norm_growth"] * before / norms).clamp_(max=1), 1)
        after = torch.where(heard, norms * limits, before)
        torch._foreach_copy_([shards.local(state["norm"]) for state in states], list(after.unbind()))

        scale = side / rank if group["scale"] is None else group["scale"]
        multipliers *= limits * (-group["lr"] * math.sqrt(scale))
        weights = [shards.local(parameter) for parameter in parameters]
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        for parameter, weight, update, multiplier in zip(parameters, weights, updates, multipliers, strict=True):
            (weight.mT if _is_wide(parameter) else weight).addcmul_(update, multiplier)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave; resuming from it is the same to the bit.

        Raises:
            OptimizerError: a setting out of its range, or a state of something else; nothing is loaded then.
        """
        saved_groups = state_dict["param_groups"]
        saved = []
        for number, (mine, theirs) in enumerate(zip(self.param_groups, saved_groups, strict=False)):
            check_settings(theirs, f"Loaded group {number}")
            for index, (parameter, key) in enumerate(zip(mine["params"], theirs["params"], strict=False)):
                state = state_dict["state"].get(key)
                if state:
                    _check_state(state, parameter, theirs, _name(mine, index))
                    if _is_projected(parameter, theirs):
                        saved.append((parameter, state))
        super().load_state_dict(state_dict)
        # torch turns what it loads into the parameter's type; the moments of half-precision parameters are float32.
        for parameter, state in saved:
            self.state[parameter] = {
                key: value.detach().clone().to(parameter.device) if isinstance(value, Tensor) else value
                for key, value in state.items()
            }

    def _parameters(self) -> Iterator[tuple[Group, Tensor]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                yield group, parameter


def _is_projected(parameter: Tensor, group: Group) -> bool:
    """Return whether the parameter is a matrix or a stack of them; a matrix of one row is a vector."""
    return group["rank"] is not None and parameter.ndim in (2, 3) and min(parameter.shape[-2:]) > 1


def _is_wide(parameter: Tensor) -> bool:
    """Return whether channels are columns, as in the paper's m <= n."""
    return parameter.shape[-2] <= parameter.shape[-1]


def _sizes(parameter: Tensor, group: Group) -> tuple[int, int, int]:
    """Return channels, side, rank."""
    side, channels = sorted(parameter.shape[-2:])
    return channels, side, min(group["rank"], side)


def _rows(matrix: Tensor) -> Tensor:
    """Return a view of [..., channels, side]."""
    return matrix.mT if _is_wide(matrix) else matrix


def _project(gradients: Sequence[Tensor], seeds: Sequence[int], rank: int) -> list[Tensor]:
    """Return each gradient, [..., channels, side], times its own Gaussian projection, [..., channels, rank]."""
    alike = gradients[0]
    stack = alike.shape[:-2]
    if stack:
        seeds = [mix(seed, expert) for seed in seeds for expert in range(stack[0])]
    drawn = gaussian(seeds, alike.shape[-1], rank, 1 / rank, alike.device)
    projections = drawn.to(alike.dtype).view(len(gradients), *stack, alike.shape[-1], rank)
    return [shards.project(gradient, own) for gradient, own in zip(gradients, projections, strict=True)]


def _channel_squares(matrices: Sequence[Tensor]) -> Tensor:
    """Return the sum of squares of each channel, [parameters, ..., channels, 1]."""
    return torch.stack([torch.linalg.vector_norm(matrix, dim=-1, keepdim=True) for matrix in matrices]).square_()


def _matrix_squares(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the sum of squares of each matrix, [parameters, ..., 1, 1]."""
    norms = [torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True, dtype=dtype) for matrix in matrices]
    return torch.stack(norms).square_()


def _ratio(adapted: Tensor, raw: Tensor) -> Tensor:
    """Return the root of ``adapted / raw``, and 0 where there is no gradient to scale."""
    return torch.where(raw > 0, (adapted / raw).sqrt_(), 0)


def _portions(parameters: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Cut a list of parameters of one shape into what is handled at once."""
    entries = _CACHED if parameters[0].device.type == "cpu" else _FILLING
    size = max(1, entries // parameters[0].numel())
    for start in range(0, len(parameters), size):
        yield parameters[start : start + size]


def _name(group: Group, index: int) -> str:
    """Return how an error calls a parameter."""
    if "param_names" in group:
        return f"Parameter '{group['param_names'][index]}'"
    return f"Parameter {index} of its group, of shape {list(group['params'][index].shape)},"


def _check_state(state: State, parameter: Tensor, group: Group, name: str) -> None:
    """Raise OptimizerError for a loaded state that is not this parameter's."""
    shapes: dict[str, tuple[int, ...]]
    if _is_projected(parameter, group):
        channels, _, rank = _sizes(parameter, group)
        stack = tuple(parameter.shape[:-2])
        shapes = {"exp_avg": (*stack, channels, rank), "exp_avg_sq": (*stack, channels, rank), "norm": (*stack, 1, 1)}
        whole = {"step", "seed"}
    else:
        shapes = {"exp_avg": tuple(parameter.shape), "exp_avg_sq": tuple(parameter.shape), "step": ()}
        whole = set()
    if set(state) != {*shapes, *whole}:
        expected = sorted({*shapes, *whole})
        raise OptimizerError(f"{name} loads a state of {sorted(state)}, not of {expected}: another optimizer's.")
    for key, shape in shapes.items():
        found = tuple(state[key].shape) if isinstance(state[key], Tensor) else type(state[key]).__name__
        if found != shape:
            raise OptimizerError(f"{name} loads '{key}' of shape {found}, not {shape}: another model's or rank's.")
    for key in whole:
        if type(state[key]) is not int or state[key] < 0:
            raise OptimizerError(f"{name} loads {key}={state[key]!r}; it must be a whole number from 0.")
