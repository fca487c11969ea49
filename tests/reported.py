"""A verdict as ``engrain verify listening --json`` printed it, with its vector's origin, and the same under attack."""

import json
from pathlib import Path
from typing import Any

from engrain.core.budget import Budget
from engrain.core.change import Change
from engrain.core.compile.proof import Depth, Drift, Fidelity, Point, Proof, Share
from engrain.core.scoring import Divergence
from engrain.report.compiled import Compiled
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


def build(
    verdict: dict[str, Any], origin: dict[str, Any], name: str = "listening", compiled: Compiled | None = None
) -> bytes:
    """Return the report."""
    return verdict_page(
        name, verdict, origin=origin, budget=Budget(), about="Does it.", footer=["seed 0"], compiled=compiled
    ).to_html()


def proved(name: str = "distill") -> Compiled:
    """Return a proof with numbers that are made up, and what its task vector says of its making."""
    drift = {
        "raw": Drift(Divergence(0.01, 0.05, 0.02, 1.01, 900), Divergence(0.12, 0.6, 0.2, 1.1, 900)),
        "chat": Drift(Divergence(0.008, 0.04, 0.02, 1.0, 700), Divergence(0.1, 0.5, 0.2, 1.1, 700)),
    }
    proof = Proof(
        Change(-0.5, 0.1, 0.6, (0.5, 0.7), 40),
        Fidelity(Share(0.963, (0.91, 1.02), 40), Share(0.978, (0.97, 0.985), 20), drift),
        Fidelity(Share(0.961, None, 40), Share(0.975, None, 20), drift),
        (Depth(16, 0.12, 0.94, 0.97), Depth(23, 0.1, 0.95, 0.98), Depth(29, 0.08, 0.96, 0.99)),
        tuple(Point(scale, 0.58 * scale, None, 0.01 * scale**2) for scale in (0.0, 0.5, 1.0, 1.5)),
        Change(-0.5, -0.49, 0.01, (-0.02, 0.04), 40),
        0,
        {"base": 0.121, "steered": 0.157, "compiled": 0.149},
    )
    curve = [{"step": n, "loss": 1 / (n + 1), "kl_recovered": n / 4, "drift": 0.1, "note": name} for n in range(4)]
    others = [{"backend": other, "recovered": 0.9, "drift": 0.5} for other in (name, "rank1", "bias")]
    return Compiled(proof, {"backend": name, "curve": curve, "backends": others})


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
