"""The built-in backends, and one of a plugin."""

from types import SimpleNamespace

import pytest
import torch

from engrain.core.compile.compiler import Order
from engrain.core.composition import activate
from engrain.core.errors import UnknownNameError
from engrain.core.model import SteerableModel
from engrain.core.progress import Progress
from engrain.core.task_vector import TaskVector
from engrain.core.vector import SteeringVector
from engrain.plugins import RegisterCompiler, compilers, hookimpl
from engrain.plugins.manager import Plugins, build_manager
from tiny import byte_tokenizer, random_model


@pytest.fixture
def plugins() -> Plugins:
    found = build_manager(load=False)
    found.manager.register(compilers, name="compilers")
    return found


def test_the_backends_without_a_corpus_are_found_and_compile(plugins: Plugins) -> None:
    model = SteerableModel(random_model("llama"), byte_tokenizer())
    vector = SteeringVector({1: torch.ones(32)}, "v")
    for backend, operation in (("bias", "add"), ("ablate", "ablate")):
        done: list[int] = []
        order = Order("v", (activate(vector, 1, 1.0, operation=operation),), "faithful")
        made = plugins.compiler(backend)(model, order, lambda what, number, done=done: done.append(number))  # type: ignore[misc]
        assert made.origin["backend"] == backend
        assert done == [1]


def test_an_unknown_backend_is_refused(plugins: Plugins) -> None:
    with pytest.raises(UnknownNameError, match=r"No backend .bais.\. Did you mean .bias."):
        plugins.compiler("bais")


def test_a_plugin_adds_a_backend(plugins: Plugins) -> None:
    def nothing(model: SteerableModel, order: Order, progress: Progress) -> TaskVector:
        return TaskVector(order.name, {"a.b": torch.zeros(1)}, model.fingerprint)

    @hookimpl
    def register_compilers(register: RegisterCompiler) -> None:
        register("nothing", nothing)

    plugins.manager.register(SimpleNamespace(register_compilers=register_compilers), name="own")
    assert plugins.compiler("nothing") is nothing
