"""The HTML report in Chromium: drawn, quiet, offline, readable in light and dark, on a desk and on a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reported import HOSTILE, build, hostile, proved, recorded

pytestmark = pytest.mark.browser

# What sticks out of its card, or has no size: as (element, what is wrong).
BROKEN = """() => {
    const found = [];
    for (const svg of document.querySelectorAll("svg")) {
        const box = svg.getBoundingClientRect();
        if (!svg.checkVisibility() || box.width < 50 || box.height < 10) found.push([svg.ariaLabel, "is not drawn"]);
        if (!svg.querySelector("path")) found.push([svg.ariaLabel, "is empty"]);
    }
    for (const card of document.querySelectorAll("section, .facts")) {
        const edge = card.getBoundingClientRect();
        for (const inner of card.querySelectorAll(":not(thead, thead *)")) {
            const box = inner.getBoundingClientRect();
            if (!box.width && !box.height) continue;
            const out = box.right > edge.right + 0.5 || box.left < edge.left - 0.5;
            if (out) found.push([inner.outerHTML.slice(0, 80), "sticks out"]);
        }
    }
    return found;
}"""
# The least contrast of text with what is behind it (WCAG 2: 4.5 is readable), and of which text.
CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const mix = (colors) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((byte) => {
            const share = byte / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
    };
    const light = ([red, green, blue]) => 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
    let least = [99, ""];
    const written = "h1, h2, h3, p, dt, dd, th, td, li, figcaption, summary, .badge, svg text, footer";
    for (const element of document.querySelectorAll(written)) {
        const behind = [];
        for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
        const style = getComputedStyle(element);
        const back = mix(behind), front = mix([...behind, element.closest("svg") ? style.fill : style.color]);
        const [high, low] = [light(back), light(front)].sort((a, b) => b - a);
        if (high / low < least[0]) least = [high / low, element.textContent.trim().slice(0, 60)];
    }
    return least;
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Chromium, headless, driven over its own protocol."""
    from playwright.sync_api import sync_playwright

    where = shutil.which("chromium")
    assert where, "chromium is not on the PATH; Debian has it: apt-get install chromium"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=where, args=["--disable-gpu"])
        yield browser
        browser.close()


class Visit:
    """A page that was opened, with everything that it said and asked for."""

    def __init__(self, browser: Any, file: Path, width: int, scheme: str) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports as files: of the recorded verdict, one that failed, one that is full of hostile text, one of weights."""
    verdict, origin = recorded()
    failed = verdict | {"passed": False, "advice": ["Add pairs."]}
    pages = {
        "recorded": build(verdict, origin),
        "failed": build(failed, origin),
        "hostile": build(*hostile(verdict, origin), name=HOSTILE[0]),
        "compiled": build(verdict, origin, compiled=proved()),
    }
    folder = tmp_path_factory.mktemp("reports")
    for kind, page in pages.items():
        (folder / f"{kind}.html").write_bytes(page)
    return {kind: folder / f"{kind}.html" for kind in pages}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("kind", ["recorded", "hostile"])
def test_everything_is_drawn_in_its_place_and_the_console_is_clean(
    chromium: Any, reports: dict[str, Path], kind: str, width: int, scheme: str
) -> None:
    file = reports[kind]
    visit = Visit(chromium, file, width, scheme)
    drawn = visit.page.eval_on_selector_all("[data-plot]:has(svg)", "all => all.map((one) => one.dataset.plot)")
    assert drawn == ["controls", "dose-response", "layer-map", "interference"]
    assert visit.page.locator("td svg").count() == 3
    assert visit.page.evaluate(BROKEN) == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.said == []
    assert visit.asked == [file.as_uri()]
    visit.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_readable_on_what_is_behind_it(chromium: Any, reports: dict[str, Path], scheme: str) -> None:
    visit = Visit(chromium, reports["failed"], 1280, scheme)
    least, text = visit.page.evaluate(CONTRAST)
    assert least >= 4.5, f"{text!r}: {least:.2f}"
    dark = visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 18, 22)"
    assert dark == (scheme == "dark")
    visit.page.close()


def test_hostile_text_is_shown_and_does_nothing(chromium: Any, reports: dict[str, Path]) -> None:
    file = reports["hostile"]
    visit = Visit(chromium, file, 1280, "light")
    for element in visit.page.locator(".reply, li, [data-plot=interference]").all():
        element.hover()
    assert visit.page.evaluate("window.hacked") is None
    assert (
        visit.page.locator("script, img, iframe, object, [onload], [onerror], [onmouseover], [autofocus]").count() == 0
    )
    assert visit.page.locator("style").count() == 1
    shown = visit.page.evaluate("document.body.textContent")
    assert all(text in shown for text in HOSTILE)
    assert (visit.said, visit.asked) == ([], [file.as_uri()])
    visit.page.close()


def test_the_policy_of_the_page_would_stop_what_got_through(
    chromium: Any, reports: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    attack = (
        b"<script>window.hacked = 1</script><img src='https://example.org/x.png' onerror='window.hacked = 1'></main>"
    )
    file.write_bytes(reports["recorded"].read_bytes().replace(b"</main>", attack))
    visit = Visit(chromium, file, 1280, "light")
    assert visit.page.evaluate("window.hacked") is None
    assert len(visit.said) >= 2
    assert all("Content Security Policy" in text for text in visit.said)
    visit.page.close()
