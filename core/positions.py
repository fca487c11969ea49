"""Which tokens are steered, and what is done to their hidden state."""

from typing import Literal, get_args

from torch import Tensor

from engrain.core.errors import InputError, UnknownNameError
from engrain.core.number import whole

Operation = Literal["add", "ablate", "clamp"]
OPERATIONS: tuple[str, ...] = get_args(Operation)
_NAMED = ("all", "prompt", "generated")


def check_positions(positions: str) -> str:
    """Return ``positions`` when it is all, prompt, generated, or from:N (from the N-th token on, counted from 0).

    Raises:
        UnknownNameError: anything else.
        InputError: N has more than 9 digits.
    """
    start = positions.removeprefix("from:")
    if positions in _NAMED or (start != positions and whole(start)):
        return positions
    if start != positions and start.isascii() and start.isdigit():
        raise InputError(f"'{positions[:24]}...' is past every context; N of from:N has at most 9 digits.")
    raise UnknownNameError("positions", positions, [*_NAMED, "from:N"])


def check_operation(operation: str) -> str:
    """Return ``operation`` when it is add, ablate or clamp.

    Raises:
        UnknownNameError: anything else.
    """
    if operation not in OPERATIONS:
        raise UnknownNameError("operation", operation, OPERATIONS)
    return operation


def position_mask(positions: str, index: Tensor, generated: Tensor) -> Tensor:
    """Return which tokens are meant.

    Args:
        positions: prompt, generated or from:N.
        index: place of each token in its own sequence, padding not counted and itself below 0, [batch, seq].
        generated: whether each token is past the prompt, [batch, seq].

    Returns:
        Booleans, [batch, seq].
    """
    if positions == "prompt":
        return ~generated & (index >= 0)
    if positions == "generated":
        return generated & (index >= 0)
    if positions.startswith("from:"):
        return index >= int(positions.removeprefix("from:"))
    raise InputError(f"'{positions}' selects every token and needs no mask.")
