"""Live: what an alias points at, on a model that runs; it follows the alias, between generations, to the bit."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Self

from engrain.core.composition import Active, check_fits
from engrain.core.edit import Applied
from engrain.core.errors import InputError, IntegrityError, UnknownNameError
from engrain.core.fingerprint import tensor_digest
from engrain.core.model import SteerableModel
from engrain.core.steering import SteeringHandle
from engrain.core.task_vector import TaskVector
from engrain.registry.lease import lease
from engrain.registry.mark import Ref, Target, aliases
from engrain.registry.reference import Reference
from engrain.registry.store import Store, Version
from engrain.registry.task_vectors import read_task_vector
from engrain.registry.vectors import read_vector

Health = Callable[[SteerableModel], object]
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Switch:
    """A switch that took place.

    Attributes:
        before: what was on, or None at the start.
        after: what is on.
        seconds: how long generations were held up, the health check included.
    """

    before: Version | None
    after: Version
    seconds: float


@dataclass(frozen=True)
class _Loaded:
    version: Version
    content: TaskVector | Active
    held: ExitStack = field(repr=False)


class Deployment:
    """One alias of a vector or a task vector, on one model, as a context: on inside of it, off after it.

    Whoever serves wraps each generation in `generation` and either calls `update` between them or has the alias watched
    by a thread (`watching`). A version is loaded and checked beside what runs; the switch itself waits for the running
    generations, holds up the next ones, and takes milliseconds. What cannot be loaded, does not fit, or fails the
    health check leaves on what was on. The one before stays loaded, so that a roll back reads nothing.

    It is a `Live` too: ``roll_back(store, alias, live=deployment)`` moves the alias only if the switch here succeeds.

    Laws: the weights under a version are those of a fresh model with it applied, and after the context those that the
    model had, to the bit; the digests of the base's tensors are compared at each switch.

    Args:
        store: where the alias is.
        model: what it acts on; nothing else may change its weights meanwhile.
        alias: of a vector, which has to be calibrated, or of a task vector.
        health: is called with the model after each switch, before any generation, and raises to say no. It calls the
            model itself, not `generation`.

    Raises:
        InputError: no alias, or that of something else.
    """

    def __init__(self, store: Store, model: SteerableModel, alias: Reference, *, health: Health | None = None) -> None:
        if alias.alias is None or alias.kind not in ("vector", "task-vector"):
            example = "task-vector/listening:stable"
            raise InputError(f"'{alias}' cannot be followed; name an alias of a vector or task vector, as {example}.")
        self._store, self._model, self._alias, self._health = store, model, alias, health
        self._loaded: dict[int, _Loaded] = {}  # by number: two versions may have the same content
        self._on: _Loaded | None = None
        self._handle: SteeringHandle | None = None
        self._base: dict[str, str | None] = {}
        self._last: Switch | None = None
        self._problem: str | None = None
        self._turn = threading.RLock()
        self._gate = threading.Condition()
        self._generating: list[int] = []
        self._switching = False

    def __enter__(self) -> Self:
        """Put on what the alias points at; raises as `update` does."""
        self.update()
        return self

    def __exit__(self, *error: object) -> None:
        """Take it off, and check that the base is what it was."""
        self.close()

    @property
    def version(self) -> Version | None:
        """What is on."""
        return None if self._on is None else self._on.version

    @property
    def problem(self) -> str | None:
        """Why what the alias points at is not on, in one line; None when it is on."""
        return self._problem

    @contextmanager
    def generation(self) -> Iterator[Version | None]:
        """Stay on one version from the first token to the last; yields which. Several may run at once."""
        with self._gate:
            self._gate.wait_for(lambda: not self._switching)
            self._generating.append(threading.get_ident())
        try:
            yield self.version
        finally:
            with self._gate:
                self._generating.remove(threading.get_ident())
                self._gate.notify_all()

    def update(self) -> Switch | None:
        """Look at the alias, and switch to what it points at; None when that is on already. Not inside `generation`.

        Raises:
            UnknownNameError: there is no such alias, or its version was deleted.
            IntegrityError: the alias, the version's files or the base's tensors are damaged.
            FingerprintError, VectorError: it was made for another model, or does not fit.
            LayerError, StrengthError: a vector that was not calibrated.
            Exception: whatever the health check raises. After any of them, what was on is on.
        """
        with self._turn:
            try:
                ref = self._ref()
                if self._is_on(ref.target):
                    self._problem = None
                    return None
                version = self._store.resolve(Reference(self._alias.kind, self._alias.name, ref.target.number))
                if version.digest != ref.target.digest:
                    raise IntegrityError(f"'{self._alias}' points at another '{version.reference}' than there is.")
                self.prepare(version)
                self.switch(version)
            except Exception as error:
                self._problem = self._refusal(error)
                raise
            return self._last

    @contextmanager
    def watching(self, interval: float = 0.05, tell: Tell | None = None) -> Iterator[None]:
        """Follow the alias in a thread while the context lasts.

        Args:
            interval: seconds between two looks; each reads one small file.
            tell: is called, in that thread, with a line on each switch, and on what could not be followed: once, and
                then not tried again until the alias moves, or `update` is called.
        """
        stop = threading.Event()
        thread = threading.Thread(target=self._follow, args=(stop, interval, tell), name=str(self._alias), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def prepare(self, version: Version) -> None:
        """Load a version beside what runs, and check that it fits; raises as `update` does."""
        with self._turn:
            if version.number in self._loaded:
                return
            with ExitStack() as held:
                with suppress(InputError):  # a registry that may only be read: what is in memory needs no file
                    held.enter_context(lease(self._store, version))
                content = self._load(version)
                self._loaded[version.number] = _Loaded(version, content, held.pop_all())

    def switch(self, version: Version) -> None:
        """Put on what was prepared; raises as `update` does, and then what was on is on."""
        with self._turn:
            if self._is_on(version):
                return
            self.prepare(version)  # again, should a watching thread have refused it meanwhile
            wanted, before = self._loaded[version.number], self._on
            with self._pause():
                start = time.perf_counter()
                try:
                    self._put_on(wanted)
                    if self._health is not None:
                        self._health(self._model)
                except BaseException:
                    self._put_on(before)
                    self._drop(version.number)
                    raise
                seconds = time.perf_counter() - start
            kept = {version.number} | (set() if before is None else {before.version.number})
            for number in self._loaded.keys() - kept:
                self._drop(number)
            self._last = Switch(None if before is None else before.version, version, seconds)
            self._problem = None

    def confirm(self, version: Version) -> None:
        """Do nothing: the health check is part of `switch`, so that no generation runs on what did not pass it."""

    def close(self) -> None:
        """Take off what is on, and let go of it.

        Raises:
            IntegrityError: a tensor of the base is not what it was: something else changed the weights meanwhile.
        """
        with self._turn, self._pause():
            try:
                self._put_on(None)
                self._check_base(self._base)
            finally:
                for number in list(self._loaded):
                    self._drop(number)
                self._base.clear()

    def _ref(self) -> Ref:
        ref = self._store.ref(self._alias)
        if ref is None:
            known = [str(one) for one in aliases(self._store.root, self._alias.kind, self._alias.name)]
            raise UnknownNameError("alias", str(self._alias), known)
        return ref

    def _is_on(self, wanted: Target | Version) -> bool:
        on = self.version
        return on is not None and (on.number, on.digest) == (wanted.number, wanted.digest)

    def _follow(self, stop: threading.Event, interval: float, tell: Tell | None) -> None:
        refused: Ref | None = None
        said = None
        while not stop.wait(interval):
            try:
                if (ref := self._ref()) == refused:
                    continue
                refused = ref
                switch = self.update()
                refused = None
                line = None if switch is None else self._describe(switch)
            except Exception as error:
                line = self._problem = self._refusal(error)
            if tell is not None and line is not None and line != said:
                tell(line)
            said = line

    def _refusal(self, error: Exception) -> str:
        on = "nothing" if self._on is None else self._on.version.reference
        return f"'{self._alias}' was not followed, {on} stays on: {error}"

    def _describe(self, switch: Switch) -> str:
        origin = "nothing" if switch.before is None else f"@{switch.before.number}"
        return f"{self._alias}: {origin} -> @{switch.after.number} is on, {switch.seconds * 1000:.0f} ms"

    def _load(self, version: Version) -> TaskVector | Active:
        if version.kind == "vector":
            active = self._model.activate(read_vector(self._store, version.reference))
            check_fits(active, len(self._model.blocks), self._model.width)
            return active
        task_vector = read_task_vector(self._store, version.reference)
        self._model.check_task_vector(task_vector)
        for name in task_vector.tensors:
            digest = self._digest(name)
            if self._base.setdefault(name, digest) != digest:
                raise self._changed(name)
        return task_vector

    def _put_on(self, wanted: _Loaded | None) -> None:
        content = None if wanted is None else wanted.content
        if self._alias.kind == "vector":
            # The new one first: the old one stays when it does not fit.
            handle = self._model.steering.add(content) if isinstance(content, Active) else None
            if self._handle is not None:
                self._handle.remove()
            self._handle = handle
        else:
            applied = self._model.edits.applied
            applied.pop(str(self._alias), None)
            if isinstance(content, TaskVector):
                applied[str(self._alias)] = Applied(content)
            self._model.edits.set(applied)
            self._check_base(_tensors(self._on) - _tensors(wanted))
        self._on = wanted

    def _check_base(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            if self._digest(name) != self._base[name]:
                raise self._changed(name)

    def _digest(self, name: str) -> str | None:
        base = self._model.edits.base(name)
        return None if base is None else tensor_digest(base)

    def _changed(self, name: str) -> IntegrityError:
        return IntegrityError(
            f"'{name}' of '{self._model.source}' is not the base's tensor any more: something else changed the weights "
            f"while '{self._alias}' was followed. Load the model again."
        )

    def _drop(self, number: int) -> None:
        self._loaded.pop(number).held.close()

    @contextmanager
    def _pause(self) -> Iterator[None]:
        with self._gate:
            if threading.get_ident() in self._generating:
                raise InputError(f"'{self._alias}' cannot be switched inside of generation(), which it would wait for.")
            self._switching = True
            self._gate.wait_for(lambda: not self._generating)
        try:
            yield
        finally:
            with self._gate:
                self._switching = False
                self._gate.notify_all()


def _tensors(loaded: _Loaded | None) -> set[str]:
    """Return the parameters that what was loaded changes; none for a vector."""
    return set(loaded.content.tensors) if loaded is not None and isinstance(loaded.content, TaskVector) else set()
