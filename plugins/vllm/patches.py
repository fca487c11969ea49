"""Where vLLM is changed: seven functions wrapped, each to do its own work and a little more."""

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

from engrain.core.blocks import outermost_blocks
from engrain.core.errors import EngrainError, InputError
from engrain.plugins.vllm import compatibility as points
from engrain.plugins.vllm.admission import KEY, POSITIONS, Admission, refusal
from engrain.plugins.vllm.bank import Bank, Scheduled
from engrain.plugins.vllm.combination import block_keys
from engrain.plugins.vllm.frontend import FrontEnd, open_front_end
from engrain.plugins.vllm.metrics import count
from engrain.plugins.vllm.operator import NAME, arm, set_plan
from engrain.plugins.vllm.settings import VARIABLE, Settings
from engrain.plugins.vllm.weights import Weights, WireEdit

_ATTRIBUTE = "_engrain"
# Modules that hold the hash function under a name of their own.
_HASHERS = ("vllm.v1.core.kv_cache_utils", "vllm.v1.core.block_pool", "vllm.v1.simple_kv_offload.manager")


def install() -> None:
    """Wrap every function; once for a process, however often vLLM loads its plugins.

    An engine is steered when the settings stand in the environment while it is configured; what is wrapped leaves
    every other engine of the process alone.

    Raises:
        InputError: this vLLM is not as the plugin knows it.
    """
    points.check_vllm()
    if hasattr(points.LOAD.holder(), "engrain_layers"):
        return
    _wrap(points.CONFIGURE, _configure)
    _wrap(points.ADMIT, _admit)
    _wrap(points.START, _start)
    _wrap(points.LOAD, _load)
    _wrap(points.PREPARE, _prepare)
    _wrap(points.EXECUTE, _execute)
    original = points.HASH.holder().generate_block_hash_extra_keys
    hashed = functools.wraps(original)(functools.partial(_hash, original))
    for module in _HASHERS:
        setattr(import_module(module), points.HASH.attribute, hashed)
    worker = points.LOAD.holder()
    worker.engrain_layers, worker.engrain_edits, worker.engrain_set_edits = _armed_layers, _edits, _set_edits


def layers_of(config: Any) -> list[int] | None:
    """Return the decoder blocks that an engine arms, or None when it is not steered."""
    found = config.additional_config.get(KEY) if isinstance(config.additional_config, dict) else None
    return None if found is None else list(found["layers"])


def admission_of(input_processor: Any) -> Admission | None:
    """Return the front end's part of a steered engine, made when it is first asked for; None when it is not steered."""
    layers = layers_of(input_processor.vllm_config)
    if layers is None:
        return None
    found = getattr(input_processor, _ATTRIBUTE, None)
    if found is None:
        found = front_end_of(input_processor.vllm_config).admission(layers)
        setattr(input_processor, _ATTRIBUTE, found)
    assert isinstance(found, Admission)
    return found


def front_end_of(config: Any) -> FrontEnd:
    """Return an engine's settings against its model."""
    model = config.model_config
    return open_front_end(Settings.from_environment() or Settings(), model.model, model.hf_config)


def _wrap(point: points.PatchPoint, around: Callable[..., Any]) -> None:
    original = getattr(point.holder(), point.attribute)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(functools.partial(original, self), self, *args, **kwargs)

    setattr(point.holder(), point.attribute, wrapped)


def _configure(original: Callable[..., Any], engine: Any, *args: Any, **kwargs: Any) -> Any:
    """Name the layers in the configuration, which every process gets and which salts the cache of compiled graphs."""
    settings = Settings.from_environment()
    if settings is None:
        return original(*args, **kwargs)
    model = engine.create_model_config()
    front = open_front_end(settings, model.model, model.hf_config)
    engine.additional_config = {**engine.additional_config, KEY: {"layers": front.armed, "operator": 1}}
    config = original(*args, **kwargs)
    points.check_config(config)
    _keep_out_of_graphs(config.compilation_config)
    return config


def _keep_out_of_graphs(compilation: Any) -> None:
    """Have CUDA graphs split at the operator, as they are at attention: what it does is decided when it runs."""
    from vllm.config import CUDAGraphMode

    if compilation.cudagraph_mode in (None, CUDAGraphMode.NONE):
        return
    if not compilation.splitting_ops:
        raise InputError("engrain needs piecewise CUDA graphs; pass --enforce-eager, or leave splitting_ops alone.")
    compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
    if NAME not in compilation.splitting_ops:
        compilation.splitting_ops.append(NAME)


def _admit(
    original: Callable[..., Any], processor: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import SamplingParams

    if not isinstance(params, SamplingParams):
        return original(request_id, prompt, params, *args, **kwargs)
    try:
        admission = admission_of(processor)
        if admission is None:
            if KEY in (params.extra_args or {}):
                raise InputError(f"This engine is not steered; set {VARIABLE} before it starts, or take '{KEY}' out.")
            return original(request_id, prompt, params, *args, **kwargs)
        combination = admission.admit(params.extra_args)
    except EngrainError as error:
        raise VLLMValidationError(refusal(error), parameter=KEY) from error
    request = original(request_id, prompt, params, *args, **kwargs)
    count(combination)
    # The parameters are the request's own copy here; the caller's are left as they are.
    rest = {key: value for key, value in (params.extra_args or {}).items() if key not in (KEY, POSITIONS)}
    if combination is not None:
        rest[KEY] = combination.wire
    request.sampling_params.extra_args = rest or None
    return request


def _hash(
    original: Callable[..., Any], request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
) -> Any:
    keys, next_mm = original(request, start_token_idx, end_token_idx, start_mm_idx)
    wire = _wire(request.sampling_params)
    if wire is None:
        return keys, next_mm
    own = block_keys(wire, start_token_idx, end_token_idx, request.num_prompt_tokens)
    return (tuple(keys or ()) + tuple(own)) or None, next_mm


def _start(original: Callable[..., Any], core: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    """Start an engine, and see that every worker of it is armed; one on another machine may lack the plugin."""
    found_caches = original(vllm_config, *args, **kwargs)
    wanted = layers_of(vllm_config)
    if wanted is None:
        return found_caches
    try:
        found = core.model_executor.collective_rpc("engrain_layers")
    except Exception as error:
        raise InputError(f"A worker does not steer: engrain or its settings are missing there ({error}).") from error
    staged = vllm_config.parallel_config.pipeline_parallel_size > 1
    # Each rank has all layers, unless the layers are what is divided.
    for armed in [sorted({layer for layers in found for layer in layers})] if staged else found:
        if armed != wanted:
            raise InputError(f"A worker armed the layers {armed}; {wanted} were to be.")
    edits = front_end_of(vllm_config).edits
    if edits:
        core.model_executor.collective_rpc("engrain_set_edits", args=(edits,))
    return found_caches


def _load(original: Callable[..., Any], worker: Any, *args: Any, **kwargs: Any) -> None:
    original(*args, **kwargs)
    layers, runner = layers_of(worker.vllm_config), worker.model_runner
    if layers is None:
        return
    model = runner.get_model()
    blocks = outermost_blocks(model, worker.vllm_config.model_config.hf_config, f"{type(model).__name__} of vLLM")
    armed = [layer for layer in layers if type(blocks[layer]).__name__ != "PPMissingLayer"]
    for layer in armed:
        arm(blocks[layer], layer)
    worker._engrain = Weights(worker)
    runner._engrain = Bank(worker.vllm_config.scheduler_config.max_num_seqs, armed, runner.device)


def _armed_layers(worker: Any) -> list[int]:
    """Return the decoder blocks that a worker has armed."""
    return list(worker.model_runner._engrain.layers)


def _edits(worker: Any) -> list[WireEdit]:
    """Return the task vectors on a worker's weights."""
    weights: Weights = worker._engrain
    return weights.edits


def _set_edits(worker: Any, edits: list[WireEdit]) -> None:
    """Put exactly these task vectors on a worker's weights."""
    weights: Weights = worker._engrain
    weights.put_on(edits)


def _prepare(original: Callable[..., Any], runner: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
    found = original(scheduler_output, num_scheduled_tokens)
    bank: Bank | None = getattr(runner, _ATTRIBUTE, None)
    if bank is None:
        return found
    batch = runner.input_batch
    set_plan(
        bank.plan(
            [
                Scheduled(
                    _wire(runner.requests[request_id].sampling_params),
                    int(batch.num_computed_tokens_cpu[place]),
                    int(num_scheduled_tokens[place]),
                    runner.requests[request_id].num_prompt_tokens,
                )
                for place, request_id in enumerate(batch.req_ids)
            ]
        )
    )
    return found


def _execute(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return original(*args, **kwargs)
    finally:
        # Warm-up and profiling passes go by without a plan.
        set_plan(None)


def _wire(params: Any) -> Any:
    """Return what a request is steered by, from its sampling parameters; pooling requests have none."""
    arguments = getattr(params, "extra_args", None)
    return None if not arguments else arguments.get(KEY)
