"""The entry points that vLLM calls. Imports are inside: vLLM only logs it when loading a plugin fails."""

from typing import Any


def register() -> None:
    """Make this process steer, when it was configured to (``vllm.general_plugins``).

    Raises:
        InputError: this vLLM is not one that can be steered, or the settings are broken.
    """
    from engrain.plugins.vllm.settings import Settings

    if Settings.from_environment() is not None:
        from engrain.plugins.vllm.patches import install

        install()


def endpoints() -> Any:
    """Return the HTTP routes (``vllm.endpoint_plugins``)."""
    from engrain.plugins.vllm.routes import Endpoints

    return Endpoints()
