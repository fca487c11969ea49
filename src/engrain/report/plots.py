"""Plots as inline SVG: matplotlib draws them, the page's style sheet colors them, light or dark."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from engrain.core.budget import Budget

# matplotlib knows no CSS. What is drawn in one of these colors gets the variable of the same name on the page.
_COLORS = {
    "ink": "#0a0f01",
    "soft": "#0a0f02",
    "line": "#0a0f03",
    "accent": "#0a0f04",
    "bad": "#0a0f05",
    "card": "#0a0f06",
}
INK, SOFT, LINE, ACCENT, BAD, CARD = _COLORS.values()
# Inches. Narrow, so that the letters are still read on a phone; on a wide screen two plots stand side by side.
_WIDTH = 3.9
_STYLE = {
    "svg.fonttype": "none",
    # Names inside of the SVG are drawn from this instead of at random: the same numbers are the same bytes.
    "svg.hashsalt": "engrain",
    # A name with dollar signs is no formula.
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 8.5,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.titlecolor": SOFT,
    "axes.titlelocation": "left",
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Plot:
    """A drawing with its words.

    Attributes:
        name: what kind of plot it is.
        caption: what it shows; also what is read out in its place. Empty where the text around says it.
        svg: the drawing.
    """

    name: str
    caption: str
    svg: Markup


def interval(gate: Mapping[str, Any]) -> Plot:
    """Draw a gate: its value, its interval where it has one, and its bound."""
    value, bound, ci95 = gate["value"], gate["bound"], gate["ci95"]
    with _drawing(0.3, width=1.9) as (figure, axes):
        color = ACCENT if gate["passed"] else BAD
        axes.axvline(bound, color=SOFT, linewidth=1.2, linestyle=(0, (2, 1.5)))
        axes.hlines(0, *(ci95 or (0, value)), color=color, linewidth=5, alpha=0.35, capstyle="round")
        axes.plot([value], [0], "o", color=color, markersize=6)
        low, high = _span([value, bound, 0.0, *(ci95 or ())], 0.12)
        axes.set(xlim=(low, high), ylim=(-1, 1))
        axes.set_axis_off()
        return _plot("interval", "", figure, f"{gate['name']}: {value:+.3f}, bound {bound:g}")


def controls(
    name: str,
    effect: Mapping[str, Any],
    rivals: Mapping[str, float],
    best: str,
    prompt: Mapping[str, Any] | None = None,
) -> Plot:
    """Draw a behavior's effect above those of its control directions and of a system prompt.

    Args:
        name: of the behavior.
        effect: ``value`` and ``ci95``, nats per token.
        rivals: the effect of every control direction; those called ``random-N`` share a row.
        best: the name of the strongest of them.
        prompt: as ``effect``, of a system prompt that asks for the behavior.
    """
    rows: list[tuple[str, list[float]]] = [(name, [effect["value"]])]
    if prompt is not None:
        rows.append(("system prompt", [prompt["value"]]))
    drawn = [value for rival, value in rivals.items() if rival.startswith("random-")]
    rows += [(rival, [value]) for rival, value in rivals.items() if not rival.startswith("random-")]
    if drawn:
        rows.append((f"{len(drawn)} random", drawn))
    with _drawing(0.55 + 0.3 * len(rows)) as (figure, axes):
        axes.axvline(0, color=LINE, linewidth=1)
        axes.axvline(rivals[best], color=SOFT, linewidth=1, linestyle=(0, (2, 2)))
        for row, (label, values) in enumerate(rows):
            own = label == name
            axes.plot(
                values,
                [row] * len(values),
                "o",
                color=ACCENT if own else INK,
                alpha=1 if own else 0.4,
                markersize=8 if own else 6,
                markeredgewidth=0,
            )
        for row, found in enumerate((effect, prompt)):
            if found is not None and found["ci95"] is not None:
                color = ACCENT if found is effect else INK
                axes.hlines(row, *found["ci95"], color=color, linewidth=5, alpha=0.3, capstyle="round")
        axes.set_yticks(range(len(rows)), [_label(label) for label, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("effect, nats per token")
        caption = (
            f"Each dot is one direction of the same length, the bars are 95 % intervals. {name}: "
            f"{effect['value']:+.3f}. Dashed: the best control, {best}, {rivals[best]:+.3f}."
        )
        return _plot("controls", caption, figure)


def dose_response(doses: Sequence[Mapping[str, Any]], strength: float, budget: Budget) -> Plot:
    """Draw effect and side effects of one layer against the strength, with what the budget allows.

    Args:
        doses: of that layer, as ``Dose.to_json`` gives them.
        strength: the one that was chosen.
        budget: of side effects.
    """
    doses = sorted(doses, key=lambda dose: float(dose["strength"]))
    x = [dose["strength"] for dose in doses]
    with _drawing(4.0, heights=(3, 2, 2)) as (figure, _):
        effect, divergence, perplexity = figure.axes
        effect.axhline(0, color=LINE, linewidth=1)
        effects = [dose["effect"] for dose in doses]
        effect.fill_between(x, [dose["effect_low"] for dose in doses], effects, color=ACCENT, alpha=0.16, linewidth=0)
        _curve(effect, x, effects, doses, ACCENT)
        for key, bound, said, color in (
            ("kl_p95", budget.kl_p95, "95 %", SOFT),
            ("kl_mean", budget.kl_mean, "mean", INK),
        ):
            _curve(divergence, x, [dose[key] for dose in doses], doses, color)
            divergence.annotate(
                said, (x[-1], doses[-1][key]), (6, 0), textcoords="offset points", va="center", color=color, fontsize=7
            )
            _bound(divergence, bound)
        _curve(perplexity, x, [dose["perplexity_ratio"] for dose in doses], doses, INK)
        _bound(perplexity, budget.perplexity)
        over = [dose["strength"] for dose in doses if not dose["within"]]
        for axes, title in (
            (effect, "effect and its lower 95 % bound, nats per token"),
            (divergence, "neutral text: KL, mean and 95th percentile, nats"),
            (perplexity, "neutral text: perplexity ratio"),
        ):
            axes.set_title(title)
            axes.axvline(strength, color=ACCENT, linewidth=1)
            if over:
                axes.axvspan(min(over), max(x), color=BAD, alpha=0.07, linewidth=0)
            axes.tick_params(labelbottom=axes is perplexity)
        perplexity.set_xlabel("strength")
        caption = (
            f"Layer {doses[0]['layer']}. The line is the chosen strength, {strength:.3g}; dotted, the budget of side "
            f"effects; hollow and shaded, doses that break it."
        )
        return _plot("dose-response", caption, figure)


def layer_map(doses: Sequence[Mapping[str, Any]], layer: int, strength: float) -> Plot:
    """Draw the effect of every dose that was tried, a row for each layer, strengths rising to the right.

    Args:
        doses: as ``Dose.to_json`` gives them.
        layer: the one that was chosen.
        strength: the one that was chosen there.
    """
    rows: dict[int, list[Mapping[str, Any]]] = {}
    for dose in sorted(doses, key=lambda dose: (dose["layer"], dose["strength"])):
        rows.setdefault(dose["layer"], []).append(dose)
    with _drawing(0.45 + 0.42 * len(rows)) as (figure, axes):
        most = max(abs(dose["effect"]) for dose in doses) or 1.0
        for place, row in enumerate(rows.values()):
            for number, dose in enumerate(row):
                at, width = number / len(row), 1 / len(row)
                chosen = (dose["layer"], dose["strength"]) == (layer, strength)
                _cell(axes, at, place, width, dose["effect"] / most, chosen=chosen)
                # More than this and the numbers would run into one another.
                if len(row) <= 7:
                    middle, over = at + width / 2, "" if dose["within"] else " over"
                    axes.text(middle, place + 0.32, f"{dose['effect']:+.3f}", ha="center", va="top")
                    said = f"{dose['strength']:.3g}{over}"
                    axes.text(middle, place - 0.32, said, ha="center", va="bottom", fontsize=6.5, alpha=0.75)
        axes.set(xlim=(0, 1), ylim=(-0.5, len(rows) - 0.5), xticks=[])
        axes.set_yticks(range(len(rows)), [f"layer {one}" for one in rows])
        axes.get_yticklabels()[list(rows).index(layer)].set(color=ACCENT, fontweight="bold")
        _frameless(axes)
        caption = (
            "Effect in nats per token on the calibration pairs, below it the strength; 'over' breaks the budget of "
            "side effects. Framed: the chosen dose, along whose layer the whole curve was measured."
        )
        return _plot("layer-map", caption, figure)


def interference(matrix: Mapping[str, Mapping[str, float]]) -> Plot:
    """Draw the effect of each behavior by itself (rows) on the pairs of every one (columns)."""
    names = list(matrix)
    with _drawing(0.8 + 0.5 * len(names)) as (figure, axes):
        most = max(abs(value) for row in matrix.values() for value in row.values()) or 1.0
        for place, row in enumerate(names):
            for number, column in enumerate(names):
                value = matrix[row][column]
                _cell(axes, number, place, 1, value / most)
                weight = "bold" if row == column else "normal"
                axes.text(number + 0.5, place, f"{value:+.3f}", ha="center", va="center", fontweight=weight)
        axes.set(xlim=(0, len(names)), ylim=(len(names) - 0.5, -0.5))
        axes.set_xticks([number + 0.5 for number in range(len(names))], [_label(name) for name in names])
        axes.set_yticks(range(len(names)), [_label(name) for name in names])
        axes.xaxis.set_ticks_position("top")
        if len(names) * max(len(_label(name)) for name in names) > 36:
            axes.tick_params(axis="x", rotation=25)
        _frameless(axes)
        caption = (
            "Rows: what is on, by itself, at its strength beside the others. Columns: whose pairs. Nats per token; off "
            "the diagonal, near 0 is good."
        )
        return _plot("interference", caption, figure)


def recovery_against_drift(found: Sequence[Mapping[str, Any]]) -> Plot:
    """Draw compiled weights: how much of the vector's effect they have, against their side effects over the vector's.

    Args:
        found: ``backend``, ``recovered`` and ``drift_ratio`` of each.
    """
    with _drawing(2.6) as (figure, axes):
        axes.axhline(1, color=LINE, linewidth=1)
        axes.axvline(1, color=LINE, linewidth=1)
        for one in found:
            axes.plot([one["drift_ratio"]], [one["recovered"]], "o", color=ACCENT, markersize=7)
            axes.annotate(
                _label(one["backend"]), (one["drift_ratio"], one["recovered"]), (6, 5), textcoords="offset points"
            )
        axes.set_xlim(_span([0, 1, *(one["drift_ratio"] for one in found)], 0.1))
        axes.set_ylim(_span([0, 1, *(one["recovered"] for one in found)], 0.1))
        axes.set_title("share of the vector's effect that the weights have")
        axes.set_xlabel("their side effects over the vector's")
        caption = "Up and to the left is better; the lines are the vector itself."
        return _plot("recovery-against-drift", caption, figure)


def training_curve(steps: Sequence[Mapping[str, float]]) -> Plot:
    """Draw everything that was noted at each ``step``, ``loss`` foremost."""
    names = [name for name in steps[0] if name != "step"]
    with _drawing(2.4) as (figure, axes):
        for number, name in enumerate(names):
            color, dashes = (ACCENT, "-") if name == "loss" else (INK, (0, (1 + number, 1 + number / 2)))
            axes.plot(
                [one["step"] for one in steps], [one[name] for one in steps], color=color, ls=dashes, label=_label(name)
            )
        axes.legend(labelcolor=SOFT)
        axes.set_xlabel("step")
        return _plot("training-curve", f"By step: {', '.join(names)}.", figure)


def scale_curve(found: Sequence[Mapping[str, float]]) -> Plot:
    """Draw the effect and the divergence of compiled weights at each ``scale``: ``effect`` and ``kl_mean``, nats."""
    found = sorted(found, key=lambda one: one["scale"])
    x = [one["scale"] for one in found]
    with _drawing(3.0, heights=(3, 2)) as (figure, _):
        effect, divergence = figure.axes
        effect.axhline(0, color=LINE, linewidth=1)
        effect.plot(x, [one["effect"] for one in found], "o-", color=ACCENT)
        divergence.plot(x, [one["kl_mean"] for one in found], "o-", color=INK)
        effect.set_title("effect, nats per token")
        effect.tick_params(labelbottom=False)
        divergence.set_title("neutral text: mean KL, nats")
        divergence.set_xlabel("scale")
        for axes in figure.axes:
            axes.axvline(1, color=LINE, linewidth=1)
        return _plot("scale-curve", "The task vector, scaled; 1 is as compiled.", figure)


@contextmanager
def _drawing(height: float, *, width: float = _WIDTH, heights: Sequence[float] = (1,)) -> Iterator[tuple[Figure, Axes]]:
    """Yield a figure and its first axes; it has one above the other for each of ``heights``, with one x axis."""
    with warnings.catch_warnings(), style.context(_STYLE, after_reset=True):
        # The page's fonts have letters that matplotlib's own does not.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
        yield figure, axes[0, 0]


def _plot(name: str, caption: str, figure: Figure, read_out: str = "") -> Plot:
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    for variable, color in _COLORS.items():
        text = text.replace(color, f"var(--{variable})")
    # Several drawings share the page. Its style sheet says for all of them what matplotlib says in each, and only
    # names that something refers to are kept; those are digests.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.DOTALL)
    referred = set(re.findall(r"#(\w+)", text))
    text = re.sub(r'(<\w+) id="([^"]*)"', lambda tag: tag[0] if tag[2] in referred else tag[1], text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    label = escape(read_out or caption)
    return Plot(name, caption, Markup(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)))


def _curve(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    doses: Sequence[Mapping[str, Any]],
    color: str,
) -> None:
    axes.plot(x, y, color=color)
    for at, value, dose in zip(x, y, doses, strict=True):
        axes.plot([at], [value], "o", color=color, markerfacecolor=color if dose["within"] else CARD)


def _bound(axes: Axes, bound: float) -> None:
    # The words above the line stay below the title.
    axes.margins(y=0.22)
    axes.axhline(bound, color=BAD, linewidth=1, linestyle=(0, (1, 2)))
    axes.annotate(
        f"budget {bound:g}", (0, bound), (4, 2), ("axes fraction", "data"), "offset points", color=BAD, fontsize=7
    )


def _cell(axes: Axes, x: float, row: int, width: float, share: float, *, chosen: bool = False) -> None:
    """Color a cell by ``share``, -1 to 1; never so strongly that the number in it is hard to read."""
    color, alpha = (ACCENT if share >= 0 else BAD), 0.05 + 0.45 * abs(share)
    axes.add_patch(Rectangle((x, row - 0.46), width, 0.92, facecolor=color, alpha=alpha, linewidth=0))
    # A seam between neighbors, or a frame above it.
    edge, order = (ACCENT, 3) if chosen else (CARD, 2)
    frame = Rectangle((x, row - 0.46), width, 0.92, facecolor="none", edgecolor=edge, linewidth=2, zorder=order)
    axes.add_patch(frame).set_clip_on(False)


def _frameless(axes: Axes) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)


def _span(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Return limits that leave a share of the whole free on both sides."""
    free = (max(values) - min(values) or 1.0) * margin
    return min(values) - free, max(values) + free


def _label(text: str) -> str:
    """Return a name short and plain enough to stand in a plot; it may be anybody's."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    return plain if len(plain) <= 18 else f"{plain[:17]}…"
