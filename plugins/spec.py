"""The hooks of engrain. Each is one function, handed a ``register`` callable; the order of plugins decides nothing.

A plugin is a module (or object) in the entry-point group ``engrain`` that implements any of them with ``hookimpl``.
What engrain ships comes in through the same hooks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    import click

    from engrain.core.brief import Brief
    from engrain.core.compile.compiler import Compiler, Spec
    from engrain.core.extract import Estimator
    from engrain.core.judge import Judge
    from engrain.core.model import SteerableModel
    from engrain.core.scorer import Scorer
    from engrain.core.vector import SteeringVector
    from engrain.plugins.behavior import Behavior
    from engrain.plugins.export import Export
    from engrain.plugins.source import ModelFiles
    from engrain.registry.remote import Remote

PROJECT = "engrain"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class RegisterBehavior(Protocol):
    """Takes in a behavior."""

    def __call__(self, behavior: "Behavior") -> None: ...


class MakeEstimator(Protocol):
    """Makes the running estimate for one layer of width ``d_model``."""

    def __call__(self, d_model: int, /) -> "Estimator": ...


class RegisterEstimator(Protocol):
    """Takes in an estimator under the name that ``--method`` gives."""

    def __call__(self, name: str, estimator: MakeEstimator) -> None: ...


class RegisterScorer(Protocol):
    """Takes in a scorer under the name that ``--score`` gives."""

    def __call__(self, name: str, scorer: "Scorer") -> None: ...


class MakeJudge(Protocol):
    """Makes a judge of one behavior; ``argument`` is what stands behind the colon in ``--judge NAME:ARGUMENT``."""

    def __call__(self, model: "SteerableModel", brief: "Brief", argument: str, /) -> "Judge": ...


class RegisterJudge(Protocol):
    """Takes in a judge under the name that ``--judge`` gives."""

    def __call__(self, name: str, judge: MakeJudge) -> None: ...


class RegisterCompiler(Protocol):
    """Takes in a backend of compiling under its name, and the spec that it compiles where none is asked for."""

    def __call__(self, name: str, compile: "Compiler", spec: "Spec" = "selective") -> None: ...


class FindModel(Protocol):
    """Returns where the model called ``name`` lies, or None when this source does not know it."""

    def __call__(self, name: str, /) -> "ModelFiles | None": ...


class RegisterModelSource(Protocol):
    """Takes in a source; sources are asked in the order of ``rank``, lowest first."""

    def __call__(self, name: str, find: FindModel, rank: int = 50) -> None: ...


class WriteExport(Protocol):
    """Writes what is exported to ``export.out``, and returns what there is to say of it; plain JSON."""

    def __call__(self, export: "Export", /) -> Mapping[str, Any]: ...


class RegisterExporter(Protocol):
    """Takes in a format under the name that ``--format`` gives, and the kinds of artifact that it can hold."""

    def __call__(self, name: str, write: WriteExport, kinds: Sequence[str]) -> None: ...


class ReadImport(Protocol):
    """Reads a file of another program as a vector called ``name``."""

    def __call__(self, path: Path, name: str, /) -> "SteeringVector": ...


class RegisterImporter(Protocol):
    """Takes in a kind of file, by how its name ends."""

    def __call__(self, suffix: str, read: ReadImport) -> None: ...


class LoadCommand(Protocol):
    """Imports and returns a command, only when it is used or helped with."""

    def __call__(self) -> "click.Command": ...


class RegisterCommand(Protocol):
    """Takes in a command of ``engrain``."""

    def __call__(self, name: str, load: LoadCommand) -> None: ...


class OpenRemote(Protocol):
    """Returns the remote that ``where`` names, as a person wrote it."""

    def __call__(self, where: str, /) -> "Remote": ...


class RegisterRemote(Protocol):
    """Takes in what opens the remotes ``SCHEME://...``; the scheme ``folder`` is what has none."""

    def __call__(self, scheme: str, open_remote: OpenRemote) -> None: ...


@hookspec
def register_behaviors(register: RegisterBehavior) -> None:
    """Add behaviors; called when behaviors are listed or looked up."""


@hookspec
def register_estimators(register: RegisterEstimator) -> None:
    """Add estimators of a direction; called when a vector is extracted."""


@hookspec
def register_scorers(register: RegisterScorer) -> None:
    """Add scores on pairs; called when a model is evaluated or verified."""


@hookspec
def register_judges(register: RegisterJudge) -> None:
    """Add judges of free replies; called when a model is evaluated or verified."""


@hookspec
def register_compilers(register: RegisterCompiler) -> None:
    """Add backends of compiling; called when a backend is looked up."""


@hookspec
def register_model_sources(register: RegisterModelSource) -> None:
    """Add places where models are found; called when a model is loaded."""


@hookspec
def register_exporters(register: RegisterExporter) -> None:
    """Add formats to export to; called when something is exported."""


@hookspec
def register_importers(register: RegisterImporter) -> None:
    """Add kinds of files to import from; called when something is imported."""


@hookspec
def register_remotes(register: RegisterRemote) -> None:
    """Add remotes of the registry; called when something is pushed, pulled or repaired."""


@hookspec
def register_commands(register: RegisterCommand) -> None:
    """Add commands; called when the command line starts."""
