"""The page of all results: docs/benchmarks.md, the plots of how cost grows and of what a dose costs.

python -m benchmarks.page
"""

import ast
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter

from benchmarks.measure import RESULTS

# Without a clock and a random salt, so that the same results are the same bytes.
mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "engrain"

DOCS = Path(__file__).parents[1] / "docs"
PLOT, DOSE = "benchmarks-growth.svg", "dose.svg"
CURVES = {"bias": "steering vector", "rank1": "compiled, rank1", "distill, apollo": "compiled, distill"}
# Entries of a list that stand on the page; of longer ones their number does.
SHOWN = 3
HEAD = """# Benchmarks

Written by `python -m benchmarks.page` from `benchmarks/results/`; `make bench` measures all of it again. Where three
numbers stand they are the median, the least and the most. What they mean, and what holds back those that are lost:
[speed](speed.md), [compile](compile.md), [vLLM](vllm.md).
"""

LEFT_OUT = """## Not measured

| peer | why |
|---|---|
| hotwire-vllm 0.1.2 | its operator is a Triton kernel and has no implementation on a CPU |
| hidden-directions 0.1.6 | takes system prompts, not pairs of replies; one pass a text, as the literal loop |
| pyvene 0.1.8, pyreft 0.1.0 | learn interventions by gradients; nothing to compare with a mean |
| saklas 5.3.0 | a terminal application with an engine of its own, AGPL-3.0; not tried |
| vllm-lens, EasySteer, AISteer360, IBM's activation-steering | no distribution of that name on PyPI |
"""


def cells(result: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield every number of a result with the path that leads to it."""
    for key, value in result.items():
        path = (*above, str(key))
        if isinstance(value, dict) and value.keys() == {"median", "min", "max"}:
            yield ", ".join(path), f"{number(value['median'])} ({number(value['min'])} to {number(value['max'])})"
        elif isinstance(value, dict):
            yield from cells(value, path)
        elif isinstance(value, list) and 1 <= len(value) <= SHOWN and all(isinstance(one, dict) for one in value):
            numbered = {str(place): one for place, one in enumerate(value, 1)}
            yield from cells(numbered if len(value) > 1 else value[0], path)
        elif isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value):
            yield ", ".join(path), f"{len(value)} entries"
        elif isinstance(value, list):
            yield ", ".join(path), ", ".join(map(number, value)) or "none"
        else:
            yield ", ".join(path), number(value)


def number(value: Any) -> str:
    """Return a value as the page shows it: four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def about(command: str) -> str:
    """Return the first line of what a benchmark says of itself."""
    module = shlex.split(command)[2].rpartition(".")[2]
    text = ast.get_docstring(ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")))
    return (text or "").splitlines()[0]


def section(name: str, result: dict[str, Any]) -> str:
    """Return one result in Markdown."""
    machine, command = result.pop("machine"), result.pop("command")
    where = ", ".join(f"{key} {value}" for key, value in machine.items())
    rows = "\n".join(f"| {path.replace('_', ' ')} | {value} |" for path, value in cells(result))
    plot = f"\n![seconds against the size of the work]({PLOT})\n" if name == "growth" else ""
    return f"## {name}\n\n{about(command)}\n\n`{command}`; {where}\n{plot}\n| what | measured |\n|---|---|\n{rows}\n"


def draw(growth: Mapping[str, Any]) -> None:
    """Draw seconds against the size of the work, a panel each, both axes logarithmic."""
    figure, panels = pyplot.subplots(2, -(-len(growth["parts"]) // 2), figsize=(10, 5.5), layout="constrained")
    for panel, (part, found) in zip(panels.flat, growth["parts"].items(), strict=False):
        sizes = [int(size) for size in found["seconds"]]
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        taken = list(found["seconds"].values())
        for which, style in (("median", "o-"), ("min", "_"), ("max", "_")):
            panel.loglog([sizes[place] for place in order], [taken[place][which] for place in order], style, color="C0")
        # At least two decades, so that what is level looks level.
        middle = taken[len(taken) // 2]["median"]
        panel.set_ylim(
            min(middle / 10, *(one["min"] / 2 for one in taken)), max(middle * 10, *(one["max"] * 2 for one in taken))
        )
        panel.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
        panel.set_xticks(sizes, map(str, sizes), fontsize=8)
        panel.minorticks_off()
        panel.set_title(f"{part}: slope {found['slope']:.2f}")
        panel.set_ylabel("seconds")
    figure.savefig(DOCS / PLOT, metadata={"Date": None})


def draw_dose(compiled: Mapping[str, Any]) -> None:
    """Draw effect against neutral KL, a curve over the dose for the vector and for what it is compiled into."""
    figure, panel = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for side, label in CURVES.items():
        curve = compiled["runs"][side][0]["curve"]
        x, y = ([point[what] for point in curve] for what in ("kl_mean", "effect"))
        (line,) = panel.plot(x, y, "o-", markersize=4, label=label)
        low, high = ([(point["ci95"] or (0, 0))[end] for point in curve] for end in (0, 1))
        panel.fill_between(x, low, high, alpha=0.12)
        one = next(point for point in curve if point["scale"] == 1)
        panel.plot(one["kl_mean"], one["effect"], "o", markersize=9, color=line.get_color())
    panel.set_xlabel("side effect: KL on neutral text, nats")
    panel.set_ylabel(f"{compiled['behavior']}: effect, nats a token")
    panel.set_title("0, half, one (large) and one and a half doses, unseen conversations", fontsize=9)
    panel.legend(frameon=False)
    figure.savefig(DOCS / DOSE, metadata={"Date": None})


def main() -> None:
    """Write the page."""
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}
    if "growth" in results:
        draw(results["growth"])
    if "compile-listening" in results:
        draw_dose(results["compile-listening"])
    page = "\n".join([HEAD, *(section(name, result) for name, result in results.items()), LEFT_OUT])
    (DOCS / "benchmarks.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
