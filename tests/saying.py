"""A behavior with little data, for the tiny model."""

from types import SimpleNamespace

import pytest
from rich.progress import Progress

from engrain.core.budget import Budget
from engrain.core.capability import read_questions
from engrain.core.contrast import ContrastPair, Message, PairSet
from engrain.plugins import Behavior, RegisterBehavior, Scenario, hookimpl
from engrain.plugins.manager import Plugins, build_manager

# Loose: a random model is moved far by any direction.
ANY = Budget(kl_mean=50, kl_p95=50, perplexity=1e9)


def pairs(count: int = 60, word: str = "aaa", other: str = "zzz") -> PairSet:
    """Pairs whose positive reply says one word and whose negative the other; every eighth a boundary pair."""
    return PairSet(
        tuple(
            ContrastPair(
                (Message("user", f"Say {word} {i}."),),
                f"{word} {i} {word}",
                f"{other} {i} {other}",
                scenario=f"{word}{i}",
                id=f"{word}{i}",
                boundary=i % 8 == 7,
            )
            for i in range(count)
        )
    )


def behavior(name: str = "saying", word: str = "aaa", scenarios: int = 12) -> Behavior:
    """A behavior that is declared by code."""
    return Behavior(
        name,
        f"Says {word}.",
        lambda: pairs(word=word),
        lambda: [Scenario(f"{word}{i}", f"Tell me of {word} number {i}.") for i in range(scenarios)],
        f"Say {word}.",
        "Say zzz.",
        depth=(0.3, 0.9),
        budget=ANY,
    )


def plugins_with(*behaviors: Behavior) -> Plugins:
    """The installed plugins, and one with these behaviors."""

    @hookimpl
    def register_behaviors(register: RegisterBehavior) -> None:
        for one in behaviors:
            register(one)

    found = build_manager()
    found.manager.register(SimpleNamespace(register_behaviors=register_behaviors), name="made")
    return found


def no_bar() -> Progress:
    """A bar that shows nothing."""
    return Progress(disable=True)


def hurry(monkeypatch: pytest.MonkeyPatch, plugins: Plugins) -> None:
    """Give the command line these plugins and little to do; its replies are all unlikely."""
    monkeypatch.setattr("engrain.core.compile.trajectories._SURPRISE", float("inf"))
    monkeypatch.setattr("engrain.gathering._CONVERSATIONS", {"train": 8, "calibration": 4})
    monkeypatch.setattr("engrain.core.compile.prove.REPLY_TOKENS", 8)
    monkeypatch.setattr("engrain.core.replies.REPLY_TOKENS", 8)
    few = read_questions()[:2]
    monkeypatch.setattr("engrain.verifying.read_questions", lambda: few)
    monkeypatch.setattr("engrain.cli.main.build_manager", lambda: plugins)
