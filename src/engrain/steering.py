"""A model and what is to be active on it, from the options that commands share."""

from collections.abc import Sequence
from pathlib import Path

from engrain.core.composition import Active
from engrain.core.errors import InputError
from engrain.core.model import SteerableModel
from engrain.loading import load
from engrain.plugins.manager import Plugins
from engrain.registry.store import Store
from engrain.registry.vectors import activate_profile, activate_steering


def open_steering(
    plugins: Plugins,
    model_name: str,
    profile_file: Path | None,
    overrides: Sequence[str] = (),
    steer: str | None = None,
) -> tuple[SteerableModel, dict[str, Active]]:
    """Load the model and resolve what a profile and ``--steer`` put on it.

    Args:
        plugins: where models are found.
        model_name: the model, unless the profile names another.
        profile_file: an inference configuration, or None.
        overrides: ``key=value`` for it.
        steer: ``REF=STRENGTH,...`` besides, or None.

    Returns:
        The unsteered model and the active vectors by name.
    """
    if overrides and profile_file is None:
        raise InputError("--set overrides keys of a profile; give --profile FILE.")
    profile = None
    if profile_file is not None:
        # OmegaConf takes a quarter of a second to import, which a prompt without a profile need not wait for.
        from engrain.core.profile import Profile

        profile = Profile.read(profile_file, overrides)
    model = load(profile.model if profile is not None and model_name == "demo" else model_name, plugins=plugins)
    store = Store()
    active: dict[str, Active] = {}
    if profile is not None:
        active |= activate_profile(model, store, profile)
    if steer is not None:
        active |= activate_steering(model, store, steer)
    return model, active
