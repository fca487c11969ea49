"""What the plugin is told: one environment variable, which every process of a server inherits."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self

from engrain.core.errors import InputError

VARIABLE = "ENGRAIN_VLLM"
NAME = "engrain"


@dataclass(frozen=True)
class Settings:
    """How a server is to be steered.

    Attributes:
        profile: file of the profile that requests get unless they say otherwise, or None.
        overrides: ``key=value`` for it.
        layers: the decoder blocks that requests may steer, besides those of the profile; None for all of them.
    """

    profile: str | None = None
    overrides: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self | None:
        """Return the settings, or None when the plugin was not asked for.

        Raises:
            InputError: the variable does not hold what ``to_json`` wrote.
        """
        text = (os.environ if environment is None else environment).get(VARIABLE, "")
        if not text:
            return None
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise InputError(f"{VARIABLE} is not JSON ({error}); unset it, or start with `engrain serve`.") from error
        known = set(cls.__dataclass_fields__)
        if not isinstance(fields, dict) or not fields.keys() <= known:
            raise InputError(f"{VARIABLE} is not an object with the keys {', '.join(sorted(known))}.")
        profile, overrides, layers = fields.get("profile"), fields.get("overrides", []), fields.get("layers", [])
        if not (profile is None or isinstance(profile, str)):
            raise InputError(f"{VARIABLE}: 'profile' is {profile!r}; it must be the path of a file.")
        if not isinstance(overrides, list) or not all(isinstance(one, str) for one in overrides):
            raise InputError(f"{VARIABLE}: 'overrides' is {overrides!r}; it must be a list of key=value.")
        if layers is not None and (not isinstance(layers, list) or not all(type(one) is int for one in layers)):
            raise InputError(
                f"{VARIABLE}: 'layers' is {layers!r}; it must be a list of block numbers, or null for all."
            )
        return cls(profile, tuple(overrides), None if layers is None else tuple(layers))

    def to_json(self) -> str:
        """Return the text for the variable; ``from_environment`` of it is these settings."""
        return json.dumps(asdict(self), sort_keys=True)
