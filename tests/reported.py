"""A verdict as ``engrain verify listening --json`` printed it, with its vector's origin, and the same under attack."""

import json
from pathlib import Path
from typing import Any

from engrain.core.budget import Budget
from engrain.report.verdict import verdict_page

# What a model or a judge might say.
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    '" onmouseover="window.hacked = 1" style="position: fixed',
    "' autofocus onfocus='window.hacked = 1",
    "</p></section></main><iframe src=javascript:window.hacked=1></iframe>",
    "</text></svg><svg onload='window.hacked = 1'>",
    "</style><style>* { display: none }</style>",
    "<!-- ]]> {{ 7 * 7 }} {% raw %} &lt;b&gt; &#60;",
    "$\\frac{1}{$ \u202e backwards",
)


def recorded() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the verdict and the origin; only the origin's ``joint`` has numbers that are made up."""
    text = (Path(__file__).parent / "engrain" / "data" / "verdict.json").read_text(encoding="utf-8")
    found = json.loads(text)
    return found["verdict"], found["origin"]


def build(verdict: dict[str, Any], origin: dict[str, Any], name: str = "listening") -> bytes:
    """Return the report."""
    return verdict_page(name, verdict, origin=origin, budget=Budget(), about="Does it.", footer=["seed 0"]).to_html()


def hostile(verdict: dict[str, Any], origin: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both with hostile text in every place that a model, a judge or a plugin fills."""
    first, second, third = HOSTILE[:3]
    gates = [gate | {"faults": list(HOSTILE)} for gate in verdict["gates"]]
    attacked = verdict | {
        "gates": gates,
        "advice": list(HOSTILE),
        "controls": dict.fromkeys(HOSTILE, 0.01),
        "best_control": HOSTILE[5],
        "scores": {text: {"base": 0.0, "edited": 1.0, "effect": 1.0, "ci95": None, "n": 9} for text in HOSTILE},
        "judged": {"judge": first, "unit": second, "base": 0.0, "edited": 1.0, "effect": 1.0, "ci95": None, "n": 9},
        "replies": [{"prompt": text, "base": f"{text}{third}", "edited": f"{first}{text}"} for text in HOSTILE],
    }
    matrix = {text: dict.fromkeys(HOSTILE, 0.01) for text in HOSTILE}
    numbers = dict.fromkeys(HOSTILE, 1.0)
    joint = {"interference": matrix, "strengths": numbers, "alone": numbers, "together": numbers}
    return attacked, origin | {"joint": joint}
