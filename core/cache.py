"""What a model's forward calls its cache of keys and values: ``past_key_values``, in newer transformers ``cache``."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

_NAMES = ("cache", "past_key_values")


def cache_argument(module: nn.Module) -> str:
    """Return the name under which a module's forward takes the cache."""
    known = inspect.signature(module.forward).parameters
    return next((name for name in _NAMES if name in known), _NAMES[-1])


def given_cache(kwargs: Mapping[str, Any]) -> Any:
    """Return the cache among the arguments of a forward pass, or None."""
    return next((kwargs[name] for name in _NAMES if kwargs.get(name) is not None), None)
