"""What long work calls while it goes on, so that somebody sees how far it is."""

from collections.abc import Callable

# Called with how much was done since the last call.
Count = Callable[[int], None]
# Called with what was done, by name, and how much of it since the last call.
Progress = Callable[[str, int], None]
