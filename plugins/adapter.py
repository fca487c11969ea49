"""A task vector as a LoRA adapter that PEFT loads and vLLM serves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor, nn

from engrain.core.blocks import linear_modules
from engrain.core.contrast import ContrastPair
from engrain.core.errors import InputError, VectorError
from engrain.core.factors import Decomposition, decompose, smallest_rank
from engrain.core.files import folder_atomically
from engrain.core.model import SteerableModel
from engrain.core.scoring import margins
from engrain.core.task_vector import TaskVector

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def take_apart(
    task_vector: TaskVector, model: SteerableModel, moments: Mapping[str, Tensor] | None = None
) -> dict[str, Decomposition]:
    """Return the decomposition of each matrix, by the name of its tensor.

    Args:
        task_vector: matrices of linear modules and nothing else.
        model: its base.
        moments: by module, the second moments of its inputs, as ``second_moments`` gives them; None for plain ones.

    Raises:
        VectorError: a tensor that no LoRA adapter can hold, with the reason.
    """
    linear = linear_modules(model.hf, model.blocks)
    parts: dict[str, Decomposition] = {}
    for name, delta in task_vector.tensors.items():
        module_name, _, leaf = name.rpartition(".")
        if leaf == "bias":
            raise VectorError(
                f"Task vector '{task_vector.name}' changes the bias '{name}', which a LoRA adapter has no place for "
                f"(vLLM refuses adapters with biases). Export it as hf, or compile it as matrices: --backend rank1."
            )
        if leaf != "weight" or module_name not in linear:
            raise VectorError(
                f"Task vector '{task_vector.name}' changes '{name}', which is no linear module of a decoder block; "
                f"LoRA adapters change these alone. Export it as hf."
            )
        moment = None if moments is None else moments[module_name]
        module, _ = linear[module_name]
        parts[name] = decompose(delta, moment, transposed=not isinstance(module, nn.Linear))
    return parts


def rank_for_pairs(
    task_vector: TaskVector, model: SteerableModel, pairs: Sequence[ContrastPair]
) -> tuple[int, float] | None:
    """Return the smallest rank that keeps 97 % of what the task vector does to the pairs' margins, and what it keeps.

    Args:
        task_vector: matrices of linear modules and nothing else.
        model: its base, with nothing on it.
        pairs: contrast pairs that no verdict is on.

    Returns:
        The rank of all matrices and the share that is kept, or None where the margins do not rise: there is nothing to
        keep then.

    Raises:
        VectorError: a tensor that no LoRA adapter can hold, with the reason.
    """
    parts = take_apart(task_vector, model)
    base = margins(model, pairs)

    asked: list[float] = []

    def effect(candidate: TaskVector) -> float:
        with model.compiled(candidate):
            asked.append(float((margins(model, pairs) - base).mean()))
        return asked[-1]

    rank = smallest_rank(task_vector, parts, effect)
    whole, kept = asked[0], asked[-1]
    if whole <= 0:
        return None
    # The largest full rank is the change itself, and nothing is asked of it.
    return rank, 1.0 if rank == max(part.full for part in parts.values()) else kept / whole


def write_adapter(
    task_vector: TaskVector,
    model: SteerableModel,
    out: Path,
    *,
    rank: int | None = None,
    bound: float = 0.1,
    moments: Mapping[str, Tensor] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    ``lora_alpha`` is the rank of each matrix, so that the adapter's scale of 1 is the task vector's.

    Args:
        task_vector: matrices of linear modules and nothing else.
        model: its base; its weights are not changed.
        out: the folder.
        rank: of every matrix; by default each gets the smallest power of two at which no more than ``bound`` of its
            change is lost.
        bound: share of the change, as ``Decomposition.lost`` has it, 0 to 1.
        moments: as ``take_apart`` has them.
        force: replace an adapter that is there.

    Returns:
        ``rank``, the largest, and ``lost``, the largest share of the change of one matrix that the adapter leaves out.

    Raises:
        FingerprintError: the model is not the base.
        VectorError: a tensor that no LoRA adapter can hold, with the reason.
        InputError: a rank below 1.
        OutputExistsError: the folder exists and ``force`` is false.
    """
    if rank is not None and rank < 1:
        raise InputError(f"--rank {rank} is not a rank; give 1 or more.")
    model.check_task_vector(task_vector)
    parts = {name.removesuffix(".weight"): part for name, part in take_apart(task_vector, model, moments).items()}
    ranks = {name: min(rank or part.rank_within(bound), part.full) for name, part in parts.items()}
    largest = max(ranks.values())
    others = {name: own for name, own in ranks.items() if own != largest}
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        factors = part.at(ranks[name])
        tensors[f"base_model.model.{name}.lora_A.weight"] = factors.a.cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = factors.b.cpu().contiguous()
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=model.source,
        inference_mode=True,
        r=largest,
        lora_alpha=largest,
        target_modules=sorted(parts),
        rank_pattern=others,
        alpha_pattern=dict(others),
        fan_in_fan_out=any(part.transposed for part in parts.values()),
        bias="none",
    )
    with folder_atomically(out, CONFIG, force=force) as draft:
        config.save_pretrained(str(draft))
        save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})
        (draft / WEIGHTS).chmod(0o644)
    return {"rank": largest, "lost": max(part.lost(ranks[name]) for name, part in parts.items())}
