"""The built-in scorers of pairs and judges of free replies."""

from engrain.plugins.spec import RegisterJudge, RegisterScorer, hookimpl


@hookimpl
def register_scorers(register: RegisterScorer) -> None:
    """Preference margin, win rate, multiple choice."""
    # Imported when a model is scored: the command line starts without torch.
    from engrain.core.choice import propensities
    from engrain.core.scorer import wins
    from engrain.core.scoring import margins

    register("margin", margins)
    register("win-rate", wins)
    register("choice", propensities)


@hookimpl
def register_judges(register: RegisterJudge) -> None:
    """The model itself, and a served one."""
    from engrain.core.judge import contrastive
    from engrain.core.llm_judge import llm

    register("contrastive", contrastive)
    register("llm", llm)
