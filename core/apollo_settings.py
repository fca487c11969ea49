"""The settings that Apollo takes, each with its rule."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from engrain.core.errors import OptimizerError


def _number(value: object, least: float, below: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < below


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _pair(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(_number(beta, 0, 1) for beta in value)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (lambda value: _number(value, 0), "a finite number from 0"),
    "rank": (lambda value: value is None or _whole(value, 1), "a whole number from 1, or None for AdamW"),
    "scale_type": (lambda value: value in ("channel", "tensor"), "'channel' or 'tensor'"),
    "scale": (lambda value: value is None or (_number(value, 0) and value > 0), "a finite number above 0, or None"),
    "update_proj_gap": (lambda value: _whole(value, 1), "a whole number from 1"),
    "norm_growth": (lambda value: value == math.inf or _number(value, 1), "a number from 1, or infinity for no bound"),
    "betas": (_pair, "two numbers from 0 to below 1"),
    "eps": (lambda value: _number(value, 0), "a finite number from 0"),
    "weight_decay": (lambda value: _number(value, 0), "a finite number from 0"),
    "seed": (lambda value: _whole(value, 0), "a whole number from 0"),
}


def check_settings(group: Mapping[str, Any], where: str) -> None:
    """Raise OptimizerError for the first setting of a parameter group that is missing or breaks its rule."""
    for name, (holds, rule) in _RULES.items():
        if name not in group:
            raise OptimizerError(f"{where} of Apollo has no '{name}'; it must be {rule}.")
        if not holds(group[name]):
            raise OptimizerError(f"{where} of Apollo has {name}={group[name]!r}; it must be {rule}.")
