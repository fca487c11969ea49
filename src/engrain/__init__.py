"""A behavior compiler for language models.

Prototype a behavior as a steering vector, test it, find its dose; once it has proved itself, engrain it in the weights.
Names are imported when first used: ``import engrain`` loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engrain.version import __version__

if TYPE_CHECKING:
    from engrain.core.apollo import Apollo
    from engrain.core.composition import Active
    from engrain.core.contrast import ContrastPair, Message, PairSet
    from engrain.core.errors import EngrainError
    from engrain.core.extract import extract
    from engrain.core.model import SteerableModel
    from engrain.core.profile import Profile
    from engrain.core.task_vector import TaskVector
    from engrain.core.vector import Calibration, SteeringVector
    from engrain.loading import load
    from engrain.plugins.behavior import Behavior
    from engrain.plugins.spec import hookimpl
    from engrain.registry.store import Store

_PLACES = {
    "Active": "engrain.core.composition",
    "Apollo": "engrain.core.apollo",
    "Behavior": "engrain.plugins.behavior",
    "Calibration": "engrain.core.vector",
    "ContrastPair": "engrain.core.contrast",
    "EngrainError": "engrain.core.errors",
    "Message": "engrain.core.contrast",
    "PairSet": "engrain.core.contrast",
    "Profile": "engrain.core.profile",
    "SteerableModel": "engrain.core.model",
    "SteeringVector": "engrain.core.vector",
    "Store": "engrain.registry.store",
    "TaskVector": "engrain.core.task_vector",
    "extract": "engrain.core.extract",
    "hookimpl": "engrain.plugins.spec",
    "load": "engrain.loading",
}

__all__ = [
    "Active",
    "Apollo",
    "Behavior",
    "Calibration",
    "ContrastPair",
    "EngrainError",
    "Message",
    "PairSet",
    "Profile",
    "SteerableModel",
    "SteeringVector",
    "Store",
    "TaskVector",
    "__version__",
    "extract",
    "hookimpl",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'engrain' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value  # asked for once, found at once from then on
    return value


def __dir__() -> list[str]:
    return __all__
