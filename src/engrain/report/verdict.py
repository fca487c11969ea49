"""The page of a verdict, from its JSON and from what the vector says of its calibration."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engrain.core.budget import Budget
from engrain.core.number import checked
from engrain.report import plots
from engrain.report.compiled import Compiled
from engrain.report.numbers import between
from engrain.report.page import Badge, Fact, Page, Reply, Section, Table

_DOSE = ("layer", "strength", "effect", "effect_low", "kl_mean", "kl_p95", "perplexity_ratio", "within")
_SAID = {
    "effect": ("effect", "nats above 0"),
    "controls": ("above the best control", "nats above 0"),
    "side_effects": ("side effects", "nats of KL on neutral text"),
    "boundary": ("boundary pairs", "nats"),
}
_RELATIONS = {"side_effects": "at most", "boundary": "not surely below"}


def verdict_page(
    name: str,
    verdict: Mapping[str, Any],
    *,
    about: str = "",
    origin: Mapping[str, Any],
    budget: Budget,
    footer: Sequence[str] = (),
    compiled: Compiled | None = None,
) -> Page:
    """Return the page of a verdict.

    Args:
        name: of the behavior.
        verdict: as ``Verdict.to_json`` gives it.
        about: the behavior in a sentence.
        origin: the vector's; its calibration is shown where it is recorded there.
        budget: of side effects, that the verdict and the calibration were held to.
        footer: where it comes from, a phrase each.
        compiled: the weights that it is on; None for a vector.
    """
    outcome = Badge("passed", True) if verdict["passed"] else Badge("did not pass", False)
    sections = [_gates(verdict), *_advice(verdict), *(() if compiled is None else compiled.sections())]
    sections += [_controls(name, verdict), *_calibration(verdict, origin, budget), *_joint(origin)]
    sections += [_beside(verdict), *_replies(verdict)]
    headline, facts = _headline(verdict, compiled), _facts(verdict, compiled)
    return Page(name, about, outcome, headline, facts, sections, footer)


def _headline(verdict: Mapping[str, Any], compiled: Compiled | None) -> str:
    effect = verdict["effect"]["value"]
    if compiled is not None:
        found = compiled.headline(effect)
    else:
        found = (
            f"Steered at layer {verdict['layer']} with strength {verdict['strength']:.3g}, the model prefers the "
            f"replies with the behavior by {effect:+.3f} nats per token more than before."
        )
    failed = [_SAID.get(gate["name"], (gate["name"],))[0] for gate in verdict["gates"] if not gate["passed"]]
    proved = f"It did not prove itself: {', '.join(failed)}." if failed else "It has proved itself on unseen pairs."
    return f"{found} {proved}"


def _facts(verdict: Mapping[str, Any], compiled: Compiled | None) -> list[Fact]:
    effect, neutral, replies = verdict["effect"], verdict["neutral"], verdict["degeneration"]
    best = verdict["controls"][verdict["best_control"]]
    shown = [
        Fact("best control", f"{best:+.3f}", f"of {len(verdict['controls'])} directions"),
        Fact("neutral KL", f"{neutral['kl_mean']:.3f}", "nats on average"),
        Fact("perplexity", f"\N{MULTIPLICATION SIGN} {neutral['perplexity_ratio']:.2f}", "on neutral text"),
    ]
    return [
        Fact("effect", f"{effect['value']:+.3f}", between(effect["ci95"]) or "nats per token"),
        *(shown if compiled is None else compiled.facts()),
        Fact("incoherent", str(replies["incoherent"]), f"of {replies['replies']} free replies"),
    ]


def _gates(verdict: Mapping[str, Any]) -> Section:
    rows = []
    for gate in verdict["gates"]:
        said, unit = _SAID.get(gate["name"], (gate["name"], ""))
        relation = _RELATIONS.get(gate["name"], "above")
        rows.append(
            (
                said,
                Badge("passed", True) if gate["passed"] else Badge("failed", False),
                plots.interval(gate),
                f"{gate['value']:+.3f}",
                between(gate["ci95"]),
                f"{relation} {gate['bound']:g} {unit.removesuffix(' above 0')}",
            )
        )
    faults = [
        f"{_SAID.get(gate['name'], (gate['name'],))[0]}: {fault}"
        for gate in verdict["gates"]
        for fault in gate["faults"]
    ]
    head = ("gate", "outcome", "against its bound", "value", "95 % interval", "needed")
    sentence = "All of them must pass. Intervals are bootstraps over scenarios that the vector has not seen."
    return Section("Gates", sentence, tables=[Table(head, rows)], points=faults)


def _advice(verdict: Mapping[str, Any]) -> Iterator[Section]:
    if verdict["advice"]:
        yield Section("What to try", "From the numbers of this run.", points=verdict["advice"])


def _controls(name: str, verdict: Mapping[str, Any]) -> Section:
    drawn = plots.controls(name, verdict["effect"], verdict["controls"], verdict["best_control"], verdict["prompt"])
    sentence = "Directions that should do nothing. What the behavior has more than the luckiest of them is its own."
    return Section("Controls", sentence, plots=[drawn])


def _calibration(verdict: Mapping[str, Any], origin: Mapping[str, Any], budget: Budget) -> Iterator[Section]:
    doses = checked(origin.get("calibration_doses"), _DOSE)
    here = [dose for dose in doses if dose["layer"] == verdict["layer"]]
    if here:
        yield Section(
            "Dose",
            "What more strength gains and what it costs, on the calibration pairs; and the same at other layers.",
            plots=[
                plots.dose_response(here, verdict["strength"], budget),
                plots.layer_map(doses, verdict["layer"], verdict["strength"]),
            ],
        )


def _joint(origin: Mapping[str, Any]) -> Iterator[Section]:
    joint = origin.get("joint")
    if not isinstance(joint, dict) or not isinstance(joint.get("interference"), dict):
        return
    names = list(joint["interference"])
    every: list[Any] = [joint.get(key) for key in ("strengths", "alone", "together")]
    if not names or not checked([*joint["interference"].values(), *every], names):
        return
    strengths, alone, together = every
    rows = [(one, f"{strengths[one]:.3g}", f"{alone[one]:+.3f}", f"{together[one]:+.3f}") for one in names]
    yield Section(
        "Together",
        "Strengths of behaviors that are on at once, within one budget, and what each does to the others' pairs.",
        plots=[plots.interference(joint["interference"])],
        tables=[Table(("behavior", "strength", "effect alone", "effect together"), rows)],
    )


def _beside(verdict: Mapping[str, Any]) -> Section:
    """Return what was measured and is no gate."""
    judged, known = verdict["judged"], verdict["capability"]
    boundary = None if any(gate["name"] == "boundary" for gate in verdict["gates"]) else verdict["boundary"]
    changes = {**verdict["scores"]}
    if judged is not None:
        changes[f"free replies, judge {judged['judge']}, {judged['unit']}"] = judged
    rows: list[tuple[str, str, str, str]] = [
        (what, f"{one['base']:.3f} → {one['edited']:.3f}", f"{one['effect']:+.3f}", between(one["ci95"]))
        for what, one in changes.items()
    ]
    for what, found in (
        ("a system prompt that asks for it", verdict["prompt"]),
        ("boundary pairs", boundary),
    ):
        if found is not None:
            rows.append((what, "", f"{found['value']:+.3f}", between(found["ci95"])))
    rows.append(("scenarios moved the wrong way", "", f"{verdict['anti_steered']:.0%}", ""))
    if known["questions"]:
        change = f"{known['base']:.0%} → {known['edited']:.0%}"
        rows.append((f"{known['questions']} questions answered right", change, "", ""))
    points = (
        ["Overcorrection: the behavior is pushed where it is wrong."] if boundary and boundary["overcorrection"] else []
    )
    head = ("measure", "base → edited", "change", "95 % interval")
    return Section("Beside the gates", "Measured too; nothing fails by it.", tables=[Table(head, rows)], points=points)


def _replies(verdict: Mapping[str, Any]) -> Iterator[Section]:
    found = [Reply(one["prompt"], one["base"], one["edited"]) for one in verdict["replies"]]
    if found:
        yield Section("Replies", "The most probable words of both, to unseen prompts. Not selected.", replies=found)
