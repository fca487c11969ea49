"""Discovery of plugins, one by one, so that a broken one takes none of the others down."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from engrain.core.errors import PluginError, UnknownNameError
from engrain.plugins import spec
from engrain.plugins.behavior import Behavior

if TYPE_CHECKING:
    from engrain.core.compile.compiler import Compiler, Spec
    from engrain.core.scorer import Scorer
    from engrain.registry.remote import Remote

OWN = "engrain"


@dataclass(frozen=True)
class Origin:
    """The distribution that something comes from."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded.

    Attributes:
        name: its entry point.
        origin: the distribution it comes from.
        reason: what went wrong, one line.
    """

    name: str
    origin: Origin
    reason: str

    def __str__(self) -> str:
        return f"Plugin '{self.name}' of {self.origin} cannot be loaded: {self.reason}"


@dataclass
class Plugins:
    """The plugins of one process, and what they registered.

    Attributes:
        manager: pluggy's own, for anything that is not covered here.
        broken: plugins that could not be loaded or that failed while registering.
    """

    manager: pluggy.PluginManager
    broken: list[Broken] = field(default_factory=list)
    _origins: dict[str, Origin] = field(default_factory=dict)

    def origin(self, plugin: str) -> Origin:
        """Return the distribution that a plugin comes from."""
        return self._origins.get(plugin, Origin(plugin, ""))

    def behaviors(self) -> dict[str, tuple[Behavior, Origin]]:
        """Return the behaviors by name, sorted, each with where it comes from.

        Raises:
            PluginError: two plugins register the same name.
        """
        return self._collect("register_behaviors", lambda behavior: (behavior.name, behavior))

    @property
    def why_missing(self) -> str:
        """Why a behavior may not be found: plugins that are broken, or else one that is not installed yet."""
        return (
            " ".join(map(str, self.broken)) or "One of your own is found once it is installed: pip install -e FOLDER."
        )

    def behavior(self, name: str) -> Behavior:
        """Return one behavior.

        Raises:
            UnknownNameError: there is none of that name; the nearest is offered, and broken plugins are named.
        """
        known = self.behaviors()
        if name not in known:
            raise UnknownNameError("behavior", name, known, self.why_missing)
        return known[name][0]

    def estimator(self, name: str) -> spec.MakeEstimator:
        """Return one estimator.

        Raises:
            UnknownNameError: there is none of that name.
        """
        found: spec.MakeEstimator = self._one("estimator", "register_estimators", name)
        return found

    def scorer(self, name: str) -> "Scorer":
        """Return one scorer.

        Raises:
            UnknownNameError: there is none of that name.
        """
        found: Scorer = self._one("scorer", "register_scorers", name)
        return found

    def judge(self, name: str) -> spec.MakeJudge:
        """Return what makes one judge.

        Raises:
            UnknownNameError: there is none of that name.
        """
        found: spec.MakeJudge = self._one("judge", "register_judges", name)
        return found

    def compiler(self, name: str) -> "Compiler":
        """Return one backend of compiling.

        Raises:
            UnknownNameError: there is none of that name.
        """
        return self._backend(name)[0]

    def spec_of(self, name: str) -> "Spec":
        """Return the spec that a backend compiles where none is asked for.

        Raises:
            UnknownNameError: there is no backend of that name.
        """
        return self._backend(name)[1]

    def _backend(self, name: str) -> "tuple[Compiler, Spec]":
        known = self._collect("register_compilers", lambda name, compile, spec: (name, (compile, spec)))
        found: tuple[Compiler, Spec] = self._find("backend", known, name)
        return found

    def model_sources(self) -> list[spec.FindModel]:
        """Return the model sources, in the order in which they are asked."""
        ranked = self._collect("register_model_sources", lambda name, find, rank: (name, (rank, find)))
        return [find for (_, find), _ in sorted(ranked.values(), key=lambda found: found[0][0])]

    def exporter(self, name: str) -> tuple[spec.WriteExport, tuple[str, ...]]:
        """Return what writes one format, and the kinds of artifact that the format can hold.

        Raises:
            UnknownNameError: there is none of that name.
        """
        known = self._collect("register_exporters", lambda name, write, kinds: (name, (write, tuple(kinds))))
        found: tuple[spec.WriteExport, tuple[str, ...]] = self._find("format", known, name)
        return found

    def importer(self, suffix: str) -> spec.ReadImport:
        """Return what reads files whose names end in ``suffix``.

        Raises:
            UnknownNameError: nothing does.
        """
        found: spec.ReadImport = self._one("importer of files that end in", "register_importers", suffix)
        return found

    def remote(self, where: str) -> "Remote":
        """Open a remote of the registry: ``SCHEME://...``, else a folder.

        Raises:
            UnknownNameError: nothing opens that scheme.
            InputError: it cannot be opened.
        """
        scheme = where.partition("://")[0] if "://" in where else "folder"
        opener: spec.OpenRemote = self._one("kind of remote", "register_remotes", scheme)
        return opener(where)

    def commands(self) -> dict[str, tuple[spec.LoadCommand, Origin]]:
        """Return what loads each command, by the command's name."""
        return self._collect("register_commands", lambda name, load: (name, load))

    def check(self) -> None:
        """Call every hook, so that a plugin that fails while registering is known as broken.

        Raises:
            PluginError: two plugins register the same name.
        """
        for hook in (name for name, one in vars(spec).items() if hasattr(one, f"{spec.PROJECT}_spec")):
            self._collect(hook, lambda first, *rest: (getattr(first, "name", first), first))

    def _one(self, what: str, hook: str, name: str) -> Any:
        return self._find(what, self._collect(hook, lambda name, value: (name, value)), name)

    def _find(self, what: str, known: dict[str, tuple[Any, Origin]], name: str) -> Any:
        if name not in known:
            raise UnknownNameError(what, name, known, " ".join(map(str, self.broken)))
        return known[name][0]

    def _collect(self, hook: str, read: Callable[..., tuple[str, Any]]) -> dict[str, tuple[Any, Origin]]:
        found: dict[str, tuple[Any, Origin]] = {}
        signature = _register(hook)
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            origin = self.origin(implementation.plugin_name)
            own: dict[str, Any] = {}

            def register(*args: Any, own: dict[str, Any] = own, **kwargs: Any) -> None:
                given = signature.bind(*args, **kwargs)
                given.apply_defaults()
                name, value = read(*given.args)
                if name in own:
                    raise PluginError(f"'{name}' is registered twice")
                own[name] = value

            try:
                implementation.function(register)
            except Exception as error:
                self._note(Broken(implementation.plugin_name, origin, f"{hook}: {_line(error)}"))
                continue
            for name, value in own.items():
                if name in found:
                    raise PluginError(
                        f"'{name}' is registered by {found[name][1]} and by {origin}; uninstall one, or keep one out "
                        f"with ENGRAIN_PLUGINS (a comma-separated list of the plugins to load)."
                    )
                found[name] = (value, origin)
        return dict(sorted(found.items()))

    def _note(self, broken: Broken) -> None:
        if broken not in self.broken:
            self.broken.append(broken)


def build_manager(*, load: bool = True) -> Plugins:
    """Find and load the plugins.

    ``ENGRAIN_PLUGINS`` says which besides engrain's own: unset all, empty none, else a comma-separated list of
    entry-point names.

    Args:
        load: whether to load installed plugins at all; without it the manager is empty.
    """
    manager = pluggy.PluginManager(spec.PROJECT)
    manager.add_hookspecs(spec)
    plugins = Plugins(manager)
    if not load:
        return plugins
    wanted = os.environ.get("ENGRAIN_PLUGINS")
    names = None if wanted is None else {name.strip() for name in wanted.split(",")}
    for entry in sorted(entry_points(group="engrain"), key=lambda entry: entry.name):
        origin = _origin(entry)
        if names is None or origin.distribution == OWN or entry.name in names:
            _load(plugins, entry, origin)
    return plugins


def _register(hook: str) -> inspect.Signature:
    """Return what the specification of a hook promises of its ``register``: names, order and defaults."""
    protocol = inspect.signature(getattr(spec, hook)).parameters["register"].annotation
    promised = inspect.signature(protocol.__call__)
    return promised.replace(parameters=[one for name, one in promised.parameters.items() if name != "self"])


def _load(plugins: Plugins, entry: EntryPoint, origin: Origin) -> None:
    # pluggy's own load_setuptools_entrypoints stops at the first plugin that fails.
    try:
        plugins.manager.register(entry.load(), name=entry.name)
        plugins.manager.check_pending()
    except Exception as error:
        if plugins.manager.has_plugin(entry.name):
            plugins.manager.unregister(name=entry.name)
        plugins._note(Broken(entry.name, origin, _line(error)))
    else:
        plugins._origins[entry.name] = origin


def _origin(entry: EntryPoint) -> Origin:
    return Origin(entry.dist.name, entry.dist.version) if entry.dist is not None else Origin("unknown", "")


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
