"""Every exception that engrain raises on purpose.

::

    EngrainError                  anything engrain says no to
    ├── InputError                the caller's mistake: the message says what, where and the mend (exit code 2)
    │   ├── DataError             a pairs, scenarios or neutral file, with file and line
    │   ├── VectorError           a file of a vector or task vector, or one that does not fit
    │   │   ├── WidthError        made for another model width
    │   │   └── FingerprintError  made on another model
    │   ├── LayerError            a layer the model or the vector does not have
    │   ├── StrengthError         not a finite number
    │   ├── ModelError            a model that cannot be loaded or is not a decoder-only language model
    │   ├── ProfileError          a profile, its keys or its overrides
    │   ├── PluginError           a plugin that is broken or registers something twice
    │   ├── JudgeError            a judge that does not answer, or not as asked
    │   ├── OptimizerError        a setting, a gradient or a saved state that Apollo cannot use
    │   ├── ConflictError         somebody else changed it meanwhile; nothing was done
    │   ├── UnknownNameError      a behavior, estimator or reference that is not there; nearest name offered
    │   └── OutputExistsError     an output that would be overwritten
    └── CheckError                a check that was asked for and failed (exit code 1)
        ├── IntegrityError        stored bytes that are not what their digest says
        └── PolicyError           a protected alias and a version without a passing verdict
"""

import difflib
from collections.abc import Iterable


class EngrainError(Exception):
    """Root of the tree."""


class InputError(EngrainError):
    """The caller's mistake, in one line that says how to mend it."""


class DataError(InputError):
    """A data file that does not hold what it should.

    Attributes:
        path: the file, or a name for data that has none.
        line: line number counted from 1, or None when the whole file is meant.
    """

    def __init__(self, path: object, line: int | None, problem: str) -> None:
        self.path = str(path)
        self.line = line
        super().__init__(f"{self.path}, line {line}: {problem}" if line is not None else f"{self.path}: {problem}")


class VectorError(InputError):
    """A file of a vector or task vector that cannot be read, or one that cannot be used."""


class WidthError(VectorError):
    """A vector whose width is not the model's."""


class FingerprintError(VectorError):
    """A vector or task vector that was made on another model."""


class LayerError(InputError):
    """A layer outside of the model or the vector."""


class StrengthError(InputError):
    """A strength that is not a finite number."""


class ModelError(InputError):
    """A model that cannot be loaded or steered."""


class ProfileError(InputError):
    """A profile that does not follow the schema."""


class PluginError(InputError):
    """A plugin that is broken."""


class JudgeError(InputError):
    """A judge that gives no score; nothing is scored in its place."""


class OptimizerError(InputError):
    """A setting, a gradient or a saved state that the optimizer cannot use."""


class ConflictError(InputError):
    """A compare-and-swap that lost: what was to be changed is not what was expected; nothing was changed."""


class UnknownNameError(InputError):
    """A name that nothing answers to.

    Attributes:
        name: what was asked for.
        known: what there is.
    """

    def __init__(self, what: str, name: str, known: Iterable[str], mend: str = "") -> None:
        self.name = name
        self.known = sorted(known)
        near = difflib.get_close_matches(name, self.known, n=1)
        if near:
            hint = f" Did you mean '{near[0]}'?"
        elif self.known:
            hint = f" There is: {', '.join(self.known[:12])}{', ...' if len(self.known) > 12 else ''}."
        else:
            hint = " There is none."
        super().__init__(f"No {what} '{name}'.{hint}{' ' + mend if mend else ''}")


class OutputExistsError(InputError):
    """An output path that is taken."""

    def __init__(self, path: object) -> None:
        super().__init__(f"'{path}' exists and is left alone; choose another path or pass --force to overwrite it.")


class CheckError(EngrainError):
    """A check that was asked for and did not pass."""


class IntegrityError(CheckError):
    """Stored bytes that do not match their digest."""


class PolicyError(CheckError):
    """A version that an alias does not take."""
