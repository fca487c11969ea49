"""Mode awareness: the reply fits the mode that the conversation is in."""

from pathlib import Path

from engrain.plugins import Behavior, PairSet, RegisterBehavior, hookimpl, read_scenarios

_HERE = Path(__file__).parent

BEHAVIOR = Behavior(
    name="mode_awareness",
    description="Replies in the mode of the conversation: thinking, deciding, executing, venting, learning and so on.",
    pairs=lambda: PairSet.read(_HERE / "pairs.jsonl"),
    scenarios=lambda: read_scenarios(_HERE / "scenarios.jsonl"),
    instruction=(
        "Notice which mode the conversation is in and reply in it. When the user thinks aloud, think along; "
        "when they decide, help decide; when they execute or debug, act; when they vent, listen; when they "
        "learn, guide; when they want a review, review."
    ),
    counter_instruction=(
        "Pay no attention to what kind of conversation this is. When the user thinks aloud or vents, give "
        "instructions and fixes; when they want something done, discuss it and ask open questions."
    ),
    depth=(0.52, 0.66),
    method="gradient",
)


@hookimpl
def register_behaviors(register: RegisterBehavior) -> None:
    """Add the behavior."""
    register(BEHAVIOR)
