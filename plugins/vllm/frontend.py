"""A server's settings against its model: the profile, the layers to arm, and what admits requests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engrain.core.profile import Profile
from engrain.plugins.vllm.admission import Admission
from engrain.plugins.vllm.deployment import resolve_edits
from engrain.plugins.vllm.served import ServedModel
from engrain.plugins.vllm.settings import Settings
from engrain.plugins.vllm.weights import WireEdit
from engrain.registry.store import Store
from engrain.registry.vectors import read_vector


@dataclass(frozen=True)
class FrontEnd:
    """What is known before anything is loaded.

    Attributes:
        profile: what requests get by default.
        model: what is served.
        layers: the decoder blocks asked for besides those of the profile; None for all.
    """

    profile: Profile
    model: ServedModel
    layers: tuple[int, ...] | None

    @property
    def armed(self) -> list[int]:
        """The decoder blocks to arm."""
        if self.layers is None:
            return list(range(self.model.layers))
        store = Store()
        needed = set(self.layers)
        for entry in self.profile.behaviors.values():
            if entry.vector is not None:
                needed.update(self.model.activate(read_vector(store, entry.vector), entry).layers)
        return sorted(needed)

    @property
    def edits(self) -> list[WireEdit]:
        """What the profile puts on the weights, each reference pinned to a version."""
        return resolve_edits(Store(), self.model, self.profile.behaviors)

    def admission(self, layers: Sequence[int]) -> Admission:
        """Return what admits requests, on these armed layers."""
        return Admission(self.profile, Store(), self.model.activate, layers)


def open_front_end(settings: Settings, model: str, config: Any) -> FrontEnd:
    """Read the profile and find out what the model is.

    Args:
        settings: of the server.
        model: folder or hub id.
        config: of transformers.

    Raises:
        ProfileError: the profile cannot be followed.
        LayerError: a layer that the model does not have.
    """
    profile = Profile()
    if settings.profile is not None:
        profile = Profile.read(settings.profile, settings.overrides)
    return FrontEnd(profile, ServedModel.of_config(model, config), settings.layers)
