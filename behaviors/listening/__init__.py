"""Listening: the user gives a direction, and the reply takes it and starts on it as given."""

from pathlib import Path

from engrain.plugins import Behavior, PairSet, RegisterBehavior, hookimpl, read_scenarios

_HERE = Path(__file__).parent

BEHAVIOR = Behavior(
    name="listening",
    description="Takes the direction the user gives and starts on it as given.",
    pairs=lambda: PairSet.read(_HERE / "pairs.jsonl"),
    scenarios=lambda: read_scenarios(_HERE / "scenarios.jsonl"),
    instruction=(
        "Listen to the user. Take the direction they give exactly as they give it, in their own terms, and "
        "start on it at once. Do not substitute your own idea, do not offer alternatives they did not ask "
        "for, and do not argue."
    ),
    counter_instruction=(
        "You know better than the user. When they give a direction, put your own idea in its place: offer the "
        "alternative you prefer, change the order or the goal, and explain why your way is better."
    ),
)


@hookimpl
def register_behaviors(register: RegisterBehavior) -> None:
    """Add the behavior."""
    register(BEHAVIOR)
