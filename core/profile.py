"""A profile: which behaviors are on in an inference configuration, the same for transformers and vLLM."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engrain.core.errors import InputError, ProfileError
from engrain.core.names import check_name
from engrain.core.number import finite
from engrain.core.positions import check_operation, check_positions

# A key of the file, as ${model}. What else holds ${ may be a resolver, which reads the environment, or put one together
# out of other keys.
_REFERENCE = re.compile(r"\$\{[A-Za-z_][\w.-]*\}")
_MAX_BYTES = 1 << 20


@dataclass
class Entry:
    """One behavior of a profile; exactly one of ``vector`` and ``task_vector`` is given.

    Attributes:
        vector: a reference or a file.
        task_vector: a reference or a folder.
        strength: of the vector; by default its calibration's.
        scale: of the task vector.
        enabled: whether it is on.
        layer: decoder block; by default the calibration's.
        positions: all, prompt, generated or from:N; by default the calibration's.
        operation: add, ablate or clamp; by default the calibration's.
    """

    vector: str | None = None
    task_vector: str | None = None
    strength: float | None = None
    scale: float | None = None
    enabled: bool = True
    layer: int | None = None
    positions: str | None = None
    operation: str | None = None


@dataclass
class Profile:
    """The inference configuration.

    Attributes:
        model: what to load.
        behaviors: by name, in the order of the file.
    """

    model: str = "demo"
    behaviors: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | str, overrides: Sequence[str] = ()) -> Self:
        """Read a profile file.

        Args:
            path: YAML.
            overrides: ``key=value`` with dotted keys, as ``behaviors.listening.strength=0.5``.

        Raises:
            ProfileError: a key that the schema does not know (the nearest is named), a value of the wrong type, an
                entry that is not whole, a resolver, or a file that is not YAML.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ProfileError(f"'{path}' cannot be read ({error.strerror or error}).") from error
        if len(data) > _MAX_BYTES:
            raise ProfileError(f"'{path}' has {len(data)} bytes; a profile has a few hundred.")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ProfileError(f"'{path}' is not UTF-8 at byte {error.start}.") from error
        return cls.parse(text, overrides, source=str(path))

    @classmethod
    def parse(
        cls, text: str, overrides: Sequence[str] = (), *, source: str = "profile", references: bool = True
    ) -> Self:
        """Read a profile from its text; other arguments and errors as ``read``.

        Args:
            text: YAML.
            overrides: as for ``read``.
            source: what to call the text in messages.
            references: whether a value may refer to another key; a stranger's need not.
        """
        try:
            loaded = OmegaConf.create(text)
            if not isinstance(loaded, DictConfig):
                raise ProfileError(f"{source}: a profile is a mapping with the keys model and behaviors.")
            changes = OmegaConf.from_dotlist(list(overrides))
            # As parsed, where no escape hides anything, and before merging, which resolves.
            for part in (loaded, changes):
                _check_references(OmegaConf.to_container(part), source, references)
            merged = OmegaConf.merge(OmegaConf.structured(cls), loaded, changes)
            profile: Any = OmegaConf.to_object(merged)
        except OmegaConfBaseException as error:
            raise ProfileError(f"{source}: {_said(error)}") from error
        except OverflowError as error:
            raise ProfileError(f"{source}: a strength or scale is too large; it must be a finite number.") from error
        except (AssertionError, AttributeError, RecursionError, TypeError, ValueError) as error:
            # OmegaConf asserts that text holds a mapping or a list.
            reason = " ".join(str(error).split())[:300] or "a profile is a mapping with the keys model and behaviors"
            raise ProfileError(f"{source}: {reason}") from error
        except Exception as error:
            # A YAML error is no subclass of ValueError; whatever the parser says of hostile text is the user's line.
            if type(error).__module__.startswith("yaml"):
                raise ProfileError(f"{source}: not YAML ({' '.join(str(error).split())[:300]}).") from error
            raise
        for name, entry in profile.behaviors.items():
            _check(name, entry, source)
        return profile  # type: ignore[no-any-return]

    @property
    def enabled(self) -> dict[str, Entry]:
        """The entries that are on."""
        return {name: entry for name, entry in self.behaviors.items() if entry.enabled}


def _check_references(tree: Any, source: str, references: bool) -> None:
    for text in _strings(tree):
        if "${" in text and not references:
            raise ProfileError(f"{source}: '{_line(text)[:80]}' refers to another key; write the value itself.")
        if "${" in _REFERENCE.sub("", text):
            raise ProfileError(
                f"{source}: '{_line(text)[:80]}' may call a resolver; a profile may refer to its own keys only, "
                f"as ${{model}}."
            )


def _strings(tree: Any) -> Iterator[str]:
    """Yield every text in a tree, the keys among them."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _strings(key)
            yield from _strings(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _strings(value)


def _said(error: OmegaConfBaseException) -> str:
    """Return what is wrong and at which key; the other lines of OmegaConf's message tell of its own types."""
    reason = _line(str(error).split("\n", 1)[0])
    return f"{reason.rstrip('.')} (at {_line(str(error.full_key))})." if error.full_key else reason


def _line(text: str) -> str:
    """Return a text on one line: a key may have several."""
    return " ".join(text.split())


def _check(name: str, entry: Entry, source: str) -> None:
    def wrong(problem: str) -> ProfileError:
        return ProfileError(f"{source}: behaviors.{_line(name)}: {problem}")

    try:
        check_name(name, "behavior")
        if entry.positions is not None:
            check_positions(entry.positions)
        if entry.operation is not None:
            check_operation(entry.operation)
    except InputError as error:
        raise wrong(str(error)) from error
    if (entry.vector is None) == (entry.task_vector is None):
        raise wrong("give exactly one of 'vector' and 'task_vector'.")
    for key in ("strength", "scale"):
        value = getattr(entry, key)
        if value is not None and not finite(value):
            raise wrong(f"'{key}' is {value}; it must be a finite number.")
    if entry.layer is not None and entry.layer < 0:
        raise wrong("'layer' is negative; decoder blocks are counted from 0.")
    misplaced = ("scale",) if entry.vector is not None else ("strength", "layer", "positions", "operation")
    for key in misplaced:
        if getattr(entry, key) is not None:
            raise wrong(f"'{key}' goes with a {'task_vector' if entry.vector is not None else 'vector'}; take it out.")
