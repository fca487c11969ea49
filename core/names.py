"""What may be called how: behaviors, vectors, aliases."""

import re

from engrain.core.errors import InputError

# In the folder of a task vector, and how one is known.
MANIFEST = "manifest.json"
NAME = re.compile(r"[a-z][a-z0-9_-]{0,127}")


def check_name(name: str, what: str) -> str:
    """Return ``name`` when it matches ``[a-z][a-z0-9_-]{0,127}``.

    Raises:
        InputError: it does not; ``what`` says what was to be named.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot name a {what}: lower-case letters, digits, '_' and '-', a letter first, at most 128."
        )
    return name
