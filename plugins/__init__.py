"""How anything is added to engrain; this is what a plugin imports."""

from engrain.core.contrast import SPLITS, ContrastPair, Message, PairSet
from engrain.plugins.behavior import Behavior, Scenario, read_scenarios
from engrain.plugins.manager import build_manager
from engrain.plugins.source import ModelFiles
from engrain.plugins.spec import RegisterBehavior, hookimpl

__all__ = [
    "SPLITS",
    "Behavior",
    "ContrastPair",
    "Message",
    "ModelFiles",
    "PairSet",
    "RegisterBehavior",
    "Scenario",
    "build_manager",
    "hookimpl",
    "read_scenarios",
]
