"""The task vector as what is trained: float32 deltas on frozen weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engrain.core.compile.target import Matrix
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector


class TrainableDelta:
    """A delta for each chosen matrix, multiplied as ``(W.float() + delta).to(W.dtype)``.

    What an optimizer steps is ``W_compiled - W_base`` itself, in float32 whatever the base's dtype: no small step is
    lost in a large weight, and the base stays as it is. Law: inside of ``active`` the model is to the bit what it is
    with ``task_vector`` applied.

    Args:
        model: the base.
        matrices: linear modules by name.
        start: where the deltas start; zeros where it has no tensor. What it changes besides the matrices is left out.

    Attributes:
        parameters: by the name of the base's parameter, float32, of its shape.
    """

    def __init__(self, model: SteerableModel, matrices: Mapping[str, Matrix], start: TaskVector | None = None) -> None:
        self._model = model
        self._matrices = {f"{name}.weight": module for name, module in matrices.items()}
        self.parameters: dict[str, nn.Parameter] = {}
        for name, module in self._matrices.items():
            delta = torch.zeros(module.weight.shape, dtype=torch.float32, device=module.weight.device)
            if start is not None and name in start.tensors:
                delta.copy_(start.tensors[name])
            self.parameters[name] = nn.Parameter(delta)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have the deltas on the model inside of the block, with gradients where these are on."""
        with ExitStack() as stack:
            for name, module in self._matrices.items():
                stack.callback(module.__dict__.pop, "forward", None)
                module.forward = _forward(module, self.parameters[name])  # type: ignore[method-assign]
            yield

    def task_vector(self, name: str, origin: Mapping[str, Any]) -> TaskVector:
        """Return a copy of the deltas as they are now."""
        tensors = {path: delta.detach().clone() for path, delta in self.parameters.items()}
        return TaskVector(name, tensors, self._model.fingerprint, origin)


def _forward(module: Matrix, delta: nn.Parameter) -> Callable[[Tensor], Tensor]:
    def linear(inputs: Tensor) -> Tensor:
        weight = (module.weight.to(delta.dtype) + delta).to(module.weight.dtype)
        # Conv1D holds its matrix transposed.
        return functional.linear(inputs, weight if isinstance(module, nn.Linear) else weight.T, module.bias)

    return linear


@contextmanager
def frozen(model: SteerableModel) -> Iterator[None]:
    """Have no gradient computed for the model's own parameters inside of the block."""
    learning = [parameter for parameter in model.hf.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
