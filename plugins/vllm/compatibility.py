"""What vLLM has to be for the plugin to be right: a range of versions, places that it changes, features that are off.

Whatever is missing stops the server with the reason; it never starts unsteered.
"""

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

from engrain.core.errors import InputError
from engrain.plugins.vllm.settings import VARIABLE

SUPPORTED = "0.32"


@dataclass(frozen=True)
class PatchPoint:
    """A function of vLLM that the plugin wraps.

    Attributes:
        module: where it is.
        name: with its class, if it has one.
        parameters: that it is called with and must have.
    """

    module: str
    name: str
    parameters: tuple[str, ...]

    def holder(self) -> Any:
        """Return the class or the module that the function is an attribute of."""
        found = importlib.import_module(self.module)
        return getattr(found, self.name.partition(".")[0]) if "." in self.name else found

    @property
    def attribute(self) -> str:
        """Name of the function within its holder."""
        return self.name.rpartition(".")[2]

    def check(self) -> None:
        """Check that it is there and is called as known.

        Raises:
            InputError: it is not.
        """
        try:
            function = getattr(self.holder(), self.attribute)
        except (ImportError, AttributeError) as error:
            raise InputError(f"This vLLM has no {self.module}.{self.name} ({error}); {_MEND}") from error
        missing = [name for name in self.parameters if name not in inspect.signature(function).parameters]
        if missing:
            raise InputError(f"{self.module}.{self.name} of this vLLM takes no {', '.join(missing)}; {_MEND}")


_MEND = f"engrain steers vLLM {SUPPORTED}.*; install that version, or start without {VARIABLE}."

CONFIGURE = PatchPoint("vllm.engine.arg_utils", "EngineArgs.create_engine_config", ("self",))
ADMIT = PatchPoint("vllm.v1.engine.input_processor", "InputProcessor.process_inputs", ("self", "params"))
HASH = PatchPoint(
    "vllm.v1.core.kv_cache_utils",
    "generate_block_hash_extra_keys",
    ("request", "start_token_idx", "end_token_idx", "start_mm_idx"),
)
# Not its __init__: in a process of its own, that is what loads the plugins.
START = PatchPoint("vllm.v1.engine.core", "EngineCore._initialize_kv_caches", ("self", "vllm_config"))
LOAD = PatchPoint("vllm.v1.worker.gpu_worker", "Worker.load_model", ("self",))
PREPARE = PatchPoint(
    "vllm.v1.worker.gpu_model_runner", "GPUModelRunner._prepare_inputs", ("scheduler_output", "num_scheduled_tokens")
)
EXECUTE = PatchPoint("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.execute_model", ("scheduler_output",))
POINTS = (CONFIGURE, ADMIT, HASH, START, LOAD, PREPARE, EXECUTE)


def check_vllm() -> None:
    """Check the version of vLLM, and every place that is changed.

    Raises:
        InputError: another version, or a place that is not as known.
    """
    from vllm.version import __version__

    if __version__.split(".")[:2] != SUPPORTED.split("."):
        raise InputError(f"This is vLLM {__version__}; {_MEND}")
    for point in POINTS:
        point.check()


def check_config(config: Any) -> None:
    """Check that a server's configuration leaves every forward pass as the plugin knows it.

    Args:
        config: VllmConfig.

    Raises:
        InputError: a feature under which tokens would be steered wrongly, or nobody has tested that they are not.
    """
    parallel = config.parallel_config
    refused = {
        "speculative decoding": config.speculative_config is not None,
        "dual batch overlap (--enable-dbo)": parallel.enable_dbo,
        "prefill context parallelism": parallel.prefill_context_parallel_size > 1,
        "several API servers (--api-server-count)": parallel._api_process_count > 1,
        "model runner V2 (set VLLM_USE_V2_MODEL_RUNNER=0)": bool(config.use_v2_model_runner),
    }
    for feature, on in refused.items():
        if on:
            raise InputError(f"engrain does not steer under {feature}; turn it off.")
