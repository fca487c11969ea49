"""vLLM engines in this process, and what transformers says of the same requests; for benchmarks and tests."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engrain.core.composition import Active
from engrain.core.model import SteerableModel
from engrain.plugins.vllm.settings import VARIABLE, Settings


def one_process() -> None:
    """Have vLLM run in this process and on one thread; two processes of two threads spin each other to a standstill."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)


@contextmanager
def engine(model: Path, *, settings: Settings | None = Settings(layers=None), **options: Any) -> Iterator[Any]:  # noqa: B008
    """Run an engine; without settings, one that the plugin leaves alone."""
    from vllm import LLM

    if settings is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = settings.to_json()
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 1 << 27,
        "block_size": 32,
        "disable_log_stats": True,
        "seed": 0,
    }
    llm = LLM(model=str(model), **(defaults | options))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def ask(llm: Any, prompts: Sequence[Sequence[int]], specs: Sequence[Any], tokens: int = 24, **more: Any) -> list[Any]:
    """Generate greedily, each prompt with its own extra arguments; all in one batch."""
    from vllm import SamplingParams

    params = [
        SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=5, extra_args=spec, **more)
        for spec in specs
    ]
    return list(llm.generate([{"prompt_token_ids": list(one)} for one in prompts], params, use_tqdm=False))


def logprobs(output: Any) -> list[dict[int, float]]:
    """Return the log-probabilities of the likeliest tokens, per step."""
    return [{token: one.logprob for token, one in step.items()} for step in output.outputs[0].logprobs]


def reference(model: SteerableModel, prompt: Sequence[int], reply: Sequence[int], actives: Sequence[Active]) -> Tensor:
    """Return what transformers gives for a reply, log-probabilities [reply, vocabulary], teacher-forced in one pass."""
    ids = torch.tensor([[*prompt, *reply]])
    layout = _layout(len(prompt), ids.shape[1])
    with model.steer(*actives), model.steering.layout(layout), torch.no_grad():
        logits = model.hf(ids).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.float(), dim=-1)


def _layout(prompt: int, length: int) -> Any:
    from engrain.core.composition import TokenLayout

    index = torch.arange(length)[None]
    return TokenLayout(index, index >= prompt)


def difference(
    model: SteerableModel, output: Any, prompt: Sequence[int], actives: Sequence[Active]
) -> tuple[float, int]:
    """Return the largest difference of a log-probability, and how many greedy tokens differ."""
    reply = output.outputs[0].token_ids
    wanted = reference(model, prompt, reply, actives)
    worst = max(
        abs(value - wanted[step, token].item())
        for step, known in enumerate(logprobs(output))
        for token, value in known.items()
    )
    return worst, sum(int(wanted[step].argmax()) != token for step, token in enumerate(reply))
