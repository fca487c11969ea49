"""How anything is added to engrain; this is what a plugin imports."""

from engrain.core.brief import Brief
from engrain.core.budget import Budget
from engrain.core.contrast import SPLITS, ContrastPair, Message, PairSet
from engrain.plugins.behavior import Behavior, Scenario, read_scenarios
from engrain.plugins.export import Export
from engrain.plugins.manager import build_manager
from engrain.plugins.source import ModelFiles
from engrain.plugins.spec import (
    RegisterBehavior,
    RegisterCommand,
    RegisterCompiler,
    RegisterEstimator,
    RegisterExporter,
    RegisterImporter,
    RegisterJudge,
    RegisterModelSource,
    RegisterRemote,
    RegisterScorer,
    hookimpl,
)

__all__ = [
    "SPLITS",
    "Behavior",
    "Brief",
    "Budget",
    "ContrastPair",
    "Export",
    "Message",
    "ModelFiles",
    "PairSet",
    "RegisterBehavior",
    "RegisterCommand",
    "RegisterCompiler",
    "RegisterEstimator",
    "RegisterExporter",
    "RegisterImporter",
    "RegisterJudge",
    "RegisterModelSource",
    "RegisterRemote",
    "RegisterScorer",
    "Scenario",
    "build_manager",
    "hookimpl",
    "read_scenarios",
]
