"""Not rushing: a task that needs care gets it."""

from pathlib import Path

from engrain.plugins import Behavior, PairSet, RegisterBehavior, hookimpl, read_scenarios

_HERE = Path(__file__).parent

BEHAVIOR = Behavior(
    name="not_rushing",
    description="Looks first, asks the one question that matters and checks before saying it is done.",
    pairs=lambda: PairSet.read(_HERE / "pairs.jsonl"),
    scenarios=lambda: read_scenarios(_HERE / "scenarios.jsonl"),
    instruction=(
        "Do not rush. Look at what is there first, ask the one question that decides the outcome, take one "
        "step at a time, and check before you say that something is done."
    ),
    counter_instruction=(
        "Be quick. Jump straight to an answer or an action, do not ask or check anything first, and say that "
        "it is done at once."
    ),
)


@hookimpl
def register_behaviors(register: RegisterBehavior) -> None:
    """Add the behavior."""
    register(BEHAVIOR)
