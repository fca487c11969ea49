"""The built-in formats to export to and to import from."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engrain.plugins.export import Export
from engrain.plugins.spec import RegisterExporter, RegisterImporter, hookimpl

if TYPE_CHECKING:
    from engrain.core.vector import SteeringVector


@hookimpl
def register_exporters(register: RegisterExporter) -> None:
    """A whole model, a LoRA adapter, a control vector of llama.cpp, engrain's own files."""
    register("hf", export_hf, kinds=["task-vector"])
    register("peft", export_peft, kinds=["task-vector"])
    register("gguf", export_gguf, kinds=["vector"])
    register("safetensors", export_safetensors, kinds=["vector", "task-vector"])


@hookimpl
def register_importers(register: RegisterImporter) -> None:
    """Control vectors of repeng and llama.cpp, and engrain's own files."""
    register(".gguf", import_gguf)
    register(".safetensors", import_safetensors)


# What these do is imported when they are called: the command line starts without torch.


def export_hf(export: Export) -> Mapping[str, Any]:
    """Write a folder that ``from_pretrained`` loads."""
    from engrain.core.task_vector import TaskVector
    from engrain.plugins.checkpoint import write_checkpoint

    assert isinstance(export.artifact, TaskVector)
    return write_checkpoint(export.artifact, export.open_model(), export.out, force=export.force)


def export_peft(export: Export) -> Mapping[str, Any]:
    """Write a LoRA adapter, where no rank is given of the smallest that keeps what the weights do for the pairs."""
    from engrain.core.task_vector import TaskVector
    from engrain.plugins.adapter import rank_for_pairs, write_adapter

    task_vector, model, rank = export.artifact, export.open_model(), export.rank
    assert isinstance(task_vector, TaskVector)
    chosen = rank_for_pairs(task_vector, model, export.pairs) if rank is None and export.pairs else None
    if chosen is None:
        return write_adapter(task_vector, model, export.out, rank=rank, force=export.force)
    rank, kept = chosen
    return {**write_adapter(task_vector, model, export.out, rank=rank, force=export.force), "kept": kept}


def export_gguf(export: Export) -> Mapping[str, Any]:
    """Write a control vector for llama.cpp."""
    from engrain.core.vector import SteeringVector
    from engrain.plugins.control_vector import write_control_vector

    assert isinstance(export.artifact, SteeringVector)
    return write_control_vector(export.artifact, export.out, force=export.force)


def export_safetensors(export: Export) -> Mapping[str, Any]:
    """Write the file of a vector with its manifest, or the folder of a task vector."""
    export.artifact.save(export.out, force=export.force)
    return {}


def import_gguf(path: Path, name: str) -> "SteeringVector":
    """Read a control vector."""
    from engrain.plugins.control_vector import read_control_vector

    return read_control_vector(path, name)


def import_safetensors(path: Path, name: str) -> "SteeringVector":
    """Read a vector that ``engrain extract --out`` wrote."""
    from dataclasses import replace

    from engrain.core.vector import SteeringVector

    return replace(SteeringVector.load(path), name=name)
