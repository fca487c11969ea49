"""A model and what is to be active on it, from the options that commands share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engrain.core.composition import Active
from engrain.core.edit import Applied
from engrain.core.errors import InputError
from engrain.core.generate import Sampling, generate
from engrain.core.model import Conversation, SteerableModel
from engrain.loading import load
from engrain.plugins.manager import Plugins
from engrain.registry.store import Store
from engrain.registry.task_vectors import read_edits, read_profile_edits
from engrain.registry.vectors import activate_profile, activate_steering


@dataclass
class InUse:
    """What is on a model, by name; changed while a conversation goes on.

    Attributes:
        vectors: steering vectors.
        edits: task vectors, on the weights.
    """

    vectors: dict[str, Active] = field(default_factory=dict)
    edits: dict[str, Applied] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.vectors or self.edits)

    @contextmanager
    def on(self, model: SteerableModel) -> Iterator[None]:
        """Have all of it on the model inside a ``with`` block."""
        with model.edited(self.edits), model.steer(*self.vectors.values()):
            yield

    def side_by_side(self, model: SteerableModel, conversation: Conversation, sampling: Sampling) -> tuple[str, str]:
        """Return the base model's reply, and the one under all of it."""
        if not self.edits:
            # One batch, steered by row: both replies for little more than the time of one.
            with model.steer(rows=[[], list(self.vectors.values())]):
                base, edited = generate(model, [conversation, conversation], sampling)
            return base, edited
        with model.edited({}):
            (base,) = generate(model, [conversation], sampling)
        with self.on(model):
            (edited,) = generate(model, [conversation], sampling)
        return base, edited

    def off(self, name: str) -> None:
        """Take what is called so off the set.

        Raises:
            InputError: nothing is.
        """
        if name not in self.vectors and name not in self.edits:
            raise InputError(f"'{name}' is not on; on is: {', '.join([*self.vectors, *self.edits]) or 'nothing'}.")
        self.vectors.pop(name, None)
        self.edits.pop(name, None)

    def to_json(self) -> list[dict[str, Any]]:
        """Return one object for each, vectors first."""
        found: list[dict[str, Any]] = [{"name": name, **one.to_json()} for name, one in self.vectors.items()]
        for name, edit in self.edits.items():
            found.append({"name": name, "layers": list(edit.task_vector.layers), "scale": edit.scale})
        return found

    def __str__(self) -> str:
        doses = {name: one.strength for name, one in self.vectors.items()}
        doses |= {name: one.scale for name, one in self.edits.items()}
        return ", ".join(f"{name} {dose:.3g}" for name, dose in doses.items())


def open_steering(
    plugins: Plugins,
    model_name: str,
    profile_file: Path | None,
    overrides: Sequence[str] = (),
    steer: str | None = None,
    task_vectors: str | None = None,
) -> tuple[SteerableModel, InUse]:
    """Load the model and resolve what a profile, ``--steer`` and ``--task-vector`` put on it.

    Args:
        plugins: where models are found.
        model_name: the model, unless the profile names another.
        profile_file: an inference configuration, or None.
        overrides: ``key=value`` for it.
        steer: ``REF=STRENGTH,...`` besides, or None.
        task_vectors: ``REF=SCALE,...`` besides, or None.

    Returns:
        The unedited model, and what is to be on it.
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
    found = InUse()
    if profile is not None:
        found = InUse(activate_profile(model, store, profile), read_profile_edits(model, store, profile))
    if steer is not None:
        found.vectors |= activate_steering(model, store, steer)
    if task_vectors is not None:
        found.edits |= read_edits(model, store, task_vectors)
    return model, found
