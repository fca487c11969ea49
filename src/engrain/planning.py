"""The work behind ``engrain compile --plan``: a model's configuration, without its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from engrain.core.compile.distill import ABOVE, BELOW
from engrain.core.compile.passes import PACK_TOKENS
from engrain.core.compile.plan import Plan, plan
from engrain.core.compile.recipe import Recipe
from engrain.core.compile.target import WRITERS
from engrain.core.errors import ModelError
from engrain.core.files import parse_object
from engrain.core.quiet import quiet_transformers
from engrain.plugins.manager import Plugins
from engrain.plugins.sources import find_folder, find_on_hub

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class CompilePlan:
    """What compiling a model would take.

    Attributes:
        plan: the memory.
        layers: the blocks that would be trained.
        target: the matrices in them.
        optimizer: what would train them.
        dtype: of the base.
    """

    plan: Plan
    layers: tuple[int, ...]
    target: str
    optimizer: str
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """Return bytes by what they hold, and what they are for."""
        how = {"layers": list(self.layers), "target": self.target, "optimizer": self.optimizer, "dtype": self.dtype}
        return {**self.plan.to_json(), **how}


def plan_compile(
    config: PreTrainedConfig,
    *,
    target: str | None = None,
    layers: Sequence[int] | None = None,
    optimizer: str = "apollo",
) -> CompilePlan:
    """Return what compiling a model would take.

    Args:
        config: of the model, as ``read_config`` returns it.
        target: which matrices; by default what writes the residual stream.
        layers: which blocks, counted from 0; by default those that distill trains, around the middle one.
        optimizer: apollo, apollo-mini or adamw.

    Raises:
        ModelError: it is not of a decoder-only language model.
        LayerError, UnknownNameError: a block or a matrix that it does not have.
    """
    # Which block will be steered is not known yet.
    blocks = count_blocks(config)
    chosen = range(max(0, blocks // 2 - BELOW), min(blocks, blocks // 2 + ABOVE + 1)) if layers is None else layers
    stored = str(config.dtype).removeprefix("torch.")
    dtype = stored if stored in _DTYPES else "bfloat16"
    target = target or WRITERS
    with quiet_transformers():
        found = plan(
            config,
            target=target,
            layers=chosen,
            optimizer=optimizer,
            rank=Recipe.rank,
            dtype=dtype,
            sequences=1,
            length=PACK_TOKENS,
            checkpointing=Recipe.checkpointing,
        )
    return CompilePlan(found, tuple(chosen), target, optimizer, dtype)


def count_blocks(config: PreTrainedConfig) -> int:
    """Return how many decoder blocks a configuration says there are; 0 where it says nothing of blocks."""
    return int(getattr(config.get_text_config(decoder=True), "num_hidden_layers", None) or 0)


def read_config(plugins: Plugins, name: str) -> PreTrainedConfig:
    """Return the configuration of a model; of one on the hub nothing else is fetched.

    Args:
        plugins: whose model sources are asked.
        name: of a model, as ``load`` takes it, or the file of a configuration.

    Raises:
        ModelError: there is none, or it is of no family that transformers knows.
    """
    path = Path(name)
    if not path.is_file() or name.endswith(".gguf"):
        folder = _find_folder(plugins, name)
        path = path if folder is None else folder / "config.json"
    if path.is_file():
        fields = parse_object(path.read_bytes(), path, None)
        family = fields.get("model_type")
        if not isinstance(family, str) or family not in CONFIG_MAPPING:
            raise ModelError(f"'{path}' is no configuration of a model that transformers knows: model_type {family!r}.")
        try:
            with quiet_transformers():
                found: PreTrainedConfig = CONFIG_MAPPING[family].from_dict(fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"'{path}' cannot be read: {' '.join(str(error).split())[:300]}") from error
        return found
    if path.name == "config.json" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"There is no configuration '{path}'.")
    try:
        with quiet_transformers():
            remote: PreTrainedConfig = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(f"No configuration '{name}': {' '.join(str(error).split())[:200]}") from error
    return remote


def _find_folder(plugins: Plugins, name: str) -> Path | None:
    """Return the folder of a model, by the sources in their order, or None where only the hub may know it."""
    for source in plugins.model_sources():
        # Of a folder no weights are needed, and of the hub only the configuration is fetched, when nothing else has it.
        if source is find_folder and Path(name).is_dir():
            return Path(name)
        if source not in (find_folder, find_on_hub) and (found := source(name)) is not None:
            return found.folder
    return None
