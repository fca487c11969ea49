"""Task vectors on the weights of a model: summed before rounding, and taken off by putting back what stood there."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engrain.core.errors import ModelError, StrengthError, UnknownNameError, VectorError
from engrain.core.number import finite
from engrain.core.shards import split_as
from engrain.core.task_vector import TaskVector

# Makes a context in which a model is edited: steered, its weights changed, or both.
Edit = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Applied:
    """A task vector in use.

    Attributes:
        task_vector: the task vector.
        scale: factor on it; 1 is the change as it was compiled, negative the opposite.

    Raises:
        StrengthError: the scale is not finite.
    """

    task_vector: TaskVector
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not finite(self.scale):
            raise StrengthError(
                f"The scale of '{self.task_vector.name}' is {self.scale!r}; it must be a finite number."
            )


def edited(base: Tensor, added: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Return a weight with changes added, summed before they meet it and not yet rounded to its dtype.

    Args:
        base: the weight, floating point.
        added: scale and change, float32 of the same shape, in the order of the task vectors' names.

    Returns:
        A new tensor in float32, or in the weight's dtype where that is wider.
    """
    wide = torch.promote_types(base.dtype, torch.float32)
    total = torch.zeros_like(base, dtype=wide)
    for scale, delta in added:
        total += scale * split_as(base, delta.to(base.device, wide))
    return total.add_(base)


class WeightEdits:
    """The task vectors on one model.

    A weight that is touched is ``(W.float() + sum of scale * delta).to(W.dtype)``, written into the tensor that the
    model has, so that tied weights stay tied. The base's own numbers are kept beside it as long as anything is on, and
    copied back: subtracting what was added would not give them, since rounding is not undone.

    Laws: the order of task vectors changes nothing, to the bit; scale 0 is the base; after ``set({})`` every tensor is
    the base's, to the bit, and a bias that was attached is gone.
    """

    def __init__(self, hf: PreTrainedModel, source: str) -> None:
        self._hf = hf
        self._source = source
        self._applied: dict[str, Applied] = {}
        self._base: dict[str, Tensor] = {}
        self._attached: set[str] = set()

    @property
    def applied(self) -> dict[str, Applied]:
        """What is on the model, by name."""
        return dict(self._applied)

    def base(self, name: str) -> Tensor | None:
        """Return the base's own numbers of a parameter, whatever is on it now; None for a bias that the base lacks."""
        parameters = dict(self._hf.named_parameters(remove_duplicate=False))
        parameter = parameters.get(name)
        if parameter is None or name in self._attached:
            return None
        # A tied parameter is kept under the first of its names.
        kept = (numbers for first, numbers in self._base.items() if parameters[first] is parameter)
        return next(kept, parameter.detach())

    def set(self, applied: Mapping[str, Applied]) -> None:
        """Put exactly these task vectors on the model; the weights stay as they were when one is refused.

        Raises:
            UnknownNameError: a tensor that the model has no parameter for; the nearest is offered.
            VectorError: a tensor of another shape than the parameter, or two for one tied parameter.
            ModelError: quantised weights, or weights that are not loaded.
        """
        if applied.keys() == self._applied.keys() and all(one is self._applied[name] for name, one in applied.items()):
            return
        deltas = self._collect(applied)
        try:
            self._write(deltas)
        except BaseException:
            self._write(self._collect(self._applied))
            raise
        self._applied = dict(applied)

    def _collect(self, applied: Mapping[str, Applied]) -> dict[str, list[tuple[float, Tensor]]]:
        """Return for each parameter what is added to it; the first name of a tied parameter stands for all."""
        parameters = dict(self._hf.named_parameters(remove_duplicate=False))
        first: dict[nn.Parameter, str] = {}
        for name, parameter in parameters.items():
            first.setdefault(parameter, name)
        deltas: dict[str, list[tuple[float, Tensor]]] = defaultdict(list)
        for _, one in sorted(applied.items()):
            self._check(one.task_vector, parameters)
            for name, delta in one.task_vector.tensors.items():
                if one.scale != 0:
                    deltas[first[parameters[name]] if name in parameters else name].append((one.scale, delta))
        return dict(deltas)

    def check_floating(self) -> None:
        """Check that a change of the weights would not be lost in their rounding.

        Raises:
            ModelError: they are quantised.
        """
        quantization = getattr(self._hf.config, "quantization_config", None)
        # What transformers reads from a GGUF file it has turned into floating point, and says gguf all the same.
        if getattr(quantization, "quant_method", quantization) not in (None, "gguf"):
            raise ModelError(
                f"'{self._source}' is quantised, and a change of its weights would be lost in their rounding. "
                f"Load it unquantised, or export the task vector as LoRA and serve that: engrain export --format peft."
            )

    def _check(self, task_vector: TaskVector, parameters: Mapping[str, nn.Parameter]) -> None:
        what = f"Task vector '{task_vector.name}'"
        self.check_floating()
        seen: dict[nn.Parameter, str] = {}
        for name, delta in task_vector.tensors.items():
            parameter = parameters.get(name)
            if parameter is None:
                width = self._lacking_bias(name)
                if width is None:
                    raise UnknownNameError(f"parameter of '{self._source}' called", name, parameters)
                shape: tuple[int, ...] = (width,)
            elif parameter in seen:
                raise VectorError(f"{what} changes '{name}' and '{seen[parameter]}', one tensor here; name it once.")
            elif parameter.device.type == "meta" or not parameter.is_floating_point():
                raise ModelError(
                    f"'{name}' of '{self._source}' is {parameter.dtype} on {parameter.device}; "
                    f"a task vector needs floating-point weights that are loaded."
                )
            else:
                shape = tuple(parameter.shape)
                seen[parameter] = name
            if tuple(delta.shape) != shape:
                raise VectorError(
                    f"{what} changes '{name}' as {list(delta.shape)}, which is {list(shape)} in '{self._source}'."
                )

    def _lacking_bias(self, name: str) -> int | None:
        """Return the width of the bias that ``name`` would be, or None when no linear module lacks such a one."""
        path, _, leaf = name.rpartition(".")
        module = dict(self._hf.named_modules()).get(path)
        lacks = leaf == "bias" and isinstance(module, nn.Linear) and module.bias is None
        return module.out_features if lacks and isinstance(module, nn.Linear) else None

    @torch.no_grad()
    def _write(self, deltas: Mapping[str, list[tuple[float, Tensor]]]) -> None:
        for name in (self._base.keys() | self._attached) - deltas.keys():
            self._restore(name)
        for name, added in deltas.items():
            parameter = self._parameter(name)
            if name not in self._base:
                self._base[name] = parameter.detach().clone()
            parameter.copy_(edited(self._base[name], added))

    def _parameter(self, name: str) -> nn.Parameter:
        path, _, leaf = name.rpartition(".")
        module = self._hf.get_submodule(path)
        if getattr(module, leaf) is None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            module.bias = nn.Parameter(
                torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device), weight.requires_grad
            )
            self._attached.add(name)
        found = getattr(module, leaf)
        assert isinstance(found, nn.Parameter)
        return found

    def _restore(self, name: str) -> None:
        base = self._base.pop(name, None)
        if name in self._attached:
            self._attached.remove(name)
            # The entry stays, empty, as nn.Linear(bias=False) makes it.
            self._hf.get_submodule(name.rpartition(".")[0]).register_parameter("bias", None)
        elif base is not None:
            self._parameter(name).copy_(base)
