"""The HTML report: the same bytes for the same numbers, nothing from outside, nobody's text but as text."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engrain.report import plots
from engrain.report.compiled import Compiled
from engrain.report.page import Badge, Page, Reply, Section, Table
from reported import HOSTILE, build, hostile, proved, recorded


class Parsed(HTMLParser):
    """What a browser would make elements of, and the text between them."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[str]]] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [name for name, _ in attributes]))
        self.links += [value or "" for name, value in attributes if name in ("href", "xlink:href", "src", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_same_numbers_are_the_same_bytes_whatever_the_user_likes_of_matplotlib(tmp_path: Path) -> None:
    page = build(*recorded())
    assert build(*recorded()) == page
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nsvg.fonttype: path\naxes.facecolor: red\n")
    code = "import sys; from reported import build, recorded; sys.stdout.buffer.write(build(*recorded()))"
    tests = Path(__file__).parents[1]
    search = os.pathsep.join(map(str, (tests, tests.parent / "src")))
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path), "PYTHONHASHSEED": "7", "PYTHONPATH": search}
    again = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert again.stdout == page


def test_the_page_asks_for_nothing_from_outside() -> None:
    page = build(*recorded())
    parsed = Parsed(page)
    assert all(link.startswith("#") for link in parsed.links)
    assert {"script", "link", "img", "iframe", "object", "base", "form"}.isdisjoint(tag for tag, _ in parsed.tags)
    text = page.decode().replace("http://www.w3.org/", "")
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("url(") == text.count("url(#")
    assert "@import" not in text


def test_the_page_shows_every_part_of_the_verdict() -> None:
    verdict, origin = recorded()
    page = build(verdict, origin)
    text = Parsed(page).text
    for plot in ("controls", "dose-response", "layer-map", "interference"):
        assert f'data-plot="{plot}"' in page.decode()
    for part in ("Gates", "Controls", "Dose", "Together", "Beside the gates", "Replies"):
        assert part in text
    for reply in verdict["replies"]:
        assert all(said in text for said in (reply["prompt"], reply["base"], reply["edited"]))
    assert ("did not pass" in text) == (not verdict["passed"])


def test_text_of_models_and_judges_stays_text() -> None:
    verdict, origin = recorded()
    plain = Parsed(build(verdict | {"advice": ["Add pairs."]}, origin))
    attacked = Parsed(build(*hostile(verdict, origin), name=HOSTILE[0]))
    assert {tag for tag, _ in attacked.tags} == {tag for tag, _ in plain.tags}
    attributes = {name for _, names in attacked.tags for name in names}
    assert attributes == {name for _, names in plain.tags for name in names}
    assert all(link.startswith("#") for link in attacked.links)
    for text in HOSTILE:
        assert text in attacked.text


@given(st.text())
def test_no_text_makes_an_element(text: str) -> None:
    def page(words: str) -> Parsed:
        section = Section(
            words, words, (), [Table((words, words), [(words, words)])], [words], [Reply(words, words, words)]
        )
        return Parsed(Page(words, words, Badge(words, True), words, (), [section], [words]).to_html())

    assert page(f"x{text}").tags == page("x").tags


@pytest.mark.parametrize(
    "origin",
    [
        {},
        {"calibration_doses": "many", "joint": "two"},
        {"calibration_doses": [{"layer": 16}], "joint": {"interference": {"a": {"a": "<b>"}}}},
        {"calibration_doses": [None], "joint": {"interference": {"a": {"b": 1.0}}}},
        {"calibration_doses": [], "joint": {"interference": {}}},
        {"joint": {"interference": {"a": {"a": float("nan")}}, "strengths": {"a": 1}}},
        {"joint": {"interference": {"a": {"a": 10**400}}, "strengths": {"a": 1}}},
    ],
)
def test_an_origin_of_another_shape_is_left_out(origin: dict[str, Any]) -> None:
    page = build(recorded()[0], origin).decode()
    assert 'data-plot="controls"' in page
    assert 'data-plot="dose-response"' not in page
    assert 'data-plot="interference"' not in page


def test_a_verdict_with_the_least_in_it_is_a_page() -> None:
    verdict, _ = recorded()
    nothing: dict[str, Any] = {"prompt": None, "boundary": None, "judged": None, "scores": {}, "replies": []}
    nothing["capability"] = {"questions": 0, "base": None, "edited": None}
    text = Parsed(build(verdict | nothing, {})).text
    assert "Replies" not in text
    assert "questions answered right" not in text


def test_what_failed_is_said_with_what_to_try() -> None:
    verdict, origin = recorded()
    gate = verdict["gates"][1] | {"passed": False, "faults": ["not surely above the control 'random-3'"]}
    failed = verdict | {"passed": False, "gates": [verdict["gates"][0], gate], "advice": ["Add pairs."]}
    text = Parsed(build(failed, origin)).text
    for said in (
        "did not pass",
        "It did not prove itself: above the best control.",
        "random-3",
        "What to try",
        "Add pairs.",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("draw", "data", "said"),
    [
        (
            plots.recovery_against_drift,
            [
                {"backend": "distill", "recovered": 0.92, "drift_ratio": 0.8},
                {"backend": "bias $\\frac", "recovered": 1.0, "drift_ratio": 1.0},
            ],
            "bias $\\frac",
        ),
        (plots.training_curve, [{"step": 0, "loss": 2.0, "kl": 1.0}, {"step": 1, "loss": 1.0, "kl": 0.5}], "loss"),
        (plots.scale_curve, [{"scale": s, "effect": s / 10, "kl_mean": s * s / 9} for s in (1, 0, 0.5)], "scale"),
    ],
)
def test_compiled_weights_have_plots(draw: Callable[[Any], plots.Plot], data: Any, said: str) -> None:
    plot = draw(data)
    parsed = Parsed(plot.svg.encode())
    assert said in parsed.text
    assert parsed.tags[0][0] == "svg"


def compiled_verdict() -> dict[str, Any]:
    verdict, _ = recorded()
    boundary = {"name": "boundary", "passed": True, "value": 0.05, "bound": 0.0, "ci95": [-0.1, 0.2], "faults": []}
    return verdict | {"gates": [*verdict["gates"], boundary]}


def test_the_page_of_weights_shows_their_proof() -> None:
    page = build(compiled_verdict(), recorded()[1], compiled=proved())
    assert page == build(compiled_verdict(), recorded()[1], compiled=proved())
    for plot in ("recovery-against-drift", "scale-curve", "training-curve", "controls", "dose-response"):
        assert page.decode().count(f'data-plot="{plot}"') == 1
    text = " ".join(Parsed(page).text.split())
    for said in (
        "Compiled by distill and with the vector removed",
        "96% of what steering does, at 8% of its side effects",
        "96.3% 91.0% to 102.0% 96.1%",
        "KL recovered, 20 replies",
        "drift on raw text over the vector's 8.3%",
        "not surely below 0 nats",
        "A random direction of the same length, compiled likewise, moves the margin by +0.010",
        "block 23 0.100 0.950 0.980",
    ):
        # Between the cells of a table there is nothing.
        assert said.replace(" ", "") in text.replace(" ", "")
    for backend in ("distill", "rank1", "bias"):
        assert backend in text
    # The boundary is a gate of weights and is not said twice.
    assert text.count("boundary pairs") == 1


def test_a_page_without_a_training_has_no_curve_and_hostile_origins_stay_text() -> None:
    verdict, origin = recorded()
    plain = Parsed(build(verdict, origin, compiled=proved()))
    for made in (
        {},
        {"backend": HOSTILE[0], "curve": HOSTILE[1], "backends": [{"backend": HOSTILE[2]}]},
        {"backend": {"a": 1}, "curve": [{"step": 0, "loss": float("inf"), "kl_recovered": 0, "drift": 0}]},
        {"backends": [{"backend": text, "recovered": 1.0, "drift": 0.5} for text in HOSTILE], "curve": []},
    ):
        page = build(verdict, origin, compiled=Compiled(proved().proof, made))
        parsed = Parsed(page)
        assert 'data-plot="training-curve"' not in page.decode()
        assert 'data-plot="recovery-against-drift"' in page.decode()
        assert {tag for tag, _ in parsed.tags} <= {tag for tag, _ in plain.tags}
        assert all(link.startswith("#") for link in parsed.links)


def test_names_that_are_long_or_unprintable_are_drawn_short() -> None:
    names = ["a" * 200, "line\nbreak", "half \ud800", "\N{CJK UNIFIED IDEOGRAPH-8A9E}"]
    svg = plots.interference({one: dict.fromkeys(names, 0.1) for one in names}).svg
    assert "a" * 17 + "…" in svg
    assert "line?break" in svg
    assert svg.encode()


def test_the_recorded_verdict_is_one_that_verify_prints() -> None:
    verdict, origin = recorded()
    assert verdict["schema"] == "engrain.verdict/1"
    assert json.loads(json.dumps(origin, allow_nan=False)) == origin
