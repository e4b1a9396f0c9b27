"""The page in a real browser: what is drawn at two widths, pointing, keyboard, colours, and that nothing leaves it.

Needs Debian's `chromium`, which `deploy/setup test` installs. RAE_NODE_SHOTS=DIR keeps the pictures.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import weeks

from supervisor.tools.history.timeline.html import page as drawn
from supervisor.tools.history.timeline.reader import load
from supervisor.tools.history.timeline.svg import LOOKS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e .[test])")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"),
]
DEADLINE_MS = 30_000
QUIET = (
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A week that has a power cut, a pause, a dead link and all states."""
    path = tmp_path_factory.mktemp("page") / "week.html"
    with weeks.zone():
        shown = load([weeks.lived("nobody", 10)], 10)
        days = shown.days()
        path.write_text(drawn(shown.between(days[1][0], days[9][0])))
    return path


@pytest.fixture(scope="module")
def browser(file: Path) -> Iterator[Any]:
    """After `file`: playwright runs a loop of its own in this thread, where the week wants to live."""
    with playwright.sync_playwright() as p:
        as_root = ["--no-sandbox"] if os.getuid() == 0 else []
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *as_root])
        yield chromium
        chromium.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Open]:
    """Opens the page; afterwards nothing was said on the console and nothing but the page was asked for."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_it(width: int = 1280, scheme: str = "light", **more: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **more)
        context.set_default_timeout(DEADLINE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not said
    assert set(asked) == {file.as_uri()}


def shot(page: Any, name: str) -> None:
    if folder := os.environ.get("RAE_NODE_SHOTS"):
        page.screenshot(path=str(Path(folder) / name), full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_screen_and_shows_its_bands(opened: Open, width: int, scheme: str) -> None:
    page = opened(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("svg.day").count() == 8
    for n in range(8):
        box = page.locator("svg.day").nth(n).bounding_box()
        assert box["width"] > width * 0.9
    assert page.locator(".chart canvas").count() == 3
    inks = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    assert inks == {
        "light": ["rgb(255, 255, 255)", "rgb(31, 35, 40)"],
        "dark": ["rgb(13, 17, 23)", "rgb(230, 237, 243)"],
    }[scheme]
    painted = page.evaluate(
        "[...document.querySelectorAll('.chart canvas')].map(c => new Set(c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data).size)"
    )
    assert min(painted) > 10
    shot(page, f"week-{width}-{scheme}.png")


def test_text_is_large_enough_on_a_phone(opened: Open) -> None:
    page = opened(400)
    sizes = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, p, dd, dt, li, button, summary')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 13
    assert all(h >= 30 for h in page.evaluate("[...document.querySelectorAll('button')].map(b => b.offsetHeight)"))


def test_pointing_at_a_part_says_why(opened: Open) -> None:
    page = opened()
    part = page.locator('.seg[aria-label^="READY, "][aria-label*="no link to the control node"]').first
    part.scroll_into_view_if_needed()
    part.locator(".body").hover()
    words = page.locator("#tip").inner_text()
    assert re.match(r"READY, \d\d:\d\d to \d\d:\d\d \(", words)
    assert "because safe: nobody is there and the machine is free" in words
    assert "no link to the control node" in words
    gap = page.locator('.seg[aria-label*="went off without notice"]')
    gap.locator(".body").hover()
    assert "no record" in page.locator("#tip").inner_text()
    shot(page, "week-hover.png")
    page.mouse.move(2, 2)
    page.wait_for_selector("#tip", state="hidden")


def test_a_tap_on_a_phone_says_why(opened: Open) -> None:
    page = opened(400, has_touch=True)
    page.locator(".seg").first.locator(".body").tap()
    page.wait_for_selector("#tip", state="visible")
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 400


def test_everything_is_reached_by_keyboard(opened: Open) -> None:
    page = opened()
    focused = "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
    lane = "document.activeElement.closest('.lane')?.getAttribute('aria-label')"
    stops = []
    for _ in range(60):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.tagName.toLowerCase()"))
        if stops[-1] == "summary" and "Tasks that did not" in page.evaluate("document.activeElement.textContent"):
            break
    assert stops.count("g") == 8  # one stop a day
    assert stops.count("button") == 8 + 5
    assert stops.count("div") == 3
    page.locator(".seg").first.focus()
    first = page.evaluate(focused)
    assert page.locator("#tip").inner_text() == first == page.locator("#live").text_content()
    page.keyboard.press("ArrowRight")
    second = page.evaluate(focused)
    assert second != first
    page.keyboard.press("ArrowDown")
    assert page.evaluate(lane) == "tasks"
    page.keyboard.press("ArrowUp")
    assert page.evaluate(lane) == "states"
    page.keyboard.press("End")
    last = page.evaluate(focused)
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == last
    page.keyboard.press("Home")
    assert page.evaluate(focused) == first
    width = page.evaluate("getComputedStyle(document.activeElement.querySelector('.body')).strokeWidth")
    assert width == "3px"  # it is seen where one is
    page.keyboard.press("Escape")
    page.wait_for_selector("#tip", state="hidden")


def test_the_readings_zoom_and_speak(opened: Open) -> None:
    page = opened()
    page.get_by_role("button", name=re.compile("Readings of Thu 8 Oct")).click()
    assert page.evaluate("document.activeElement.id") == "chart-cpu"
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    shown = page.locator("#live").text_content()
    assert re.match(r"Thu 8 \d\d:\d\d: CPU [\d.]+ %, limit 80 %", shown)
    assert "Thu 8" in page.locator("#chart-vram .u-value").first.inner_text()  # the three move together
    labels = "[...document.querySelectorAll('#chart-cpu .u-value')].map(e => e.textContent)"
    before = page.evaluate(labels)
    page.keyboard.press("Shift+ArrowRight")
    assert page.evaluate(labels) != before
    page.keyboard.press("+")
    page.keyboard.press("0")
    shot(page, "week-readings.png")


def test_it_is_told_apart_without_colours(opened: Open) -> None:
    """Every state has its own pattern, and its name or first letter where there is room."""
    page = opened()
    tiles = page.evaluate(
        "[...document.querySelectorAll('pattern')].filter(p => /^p-[A-Z]/.test(p.id))"
        ".map(p => p.querySelector('path').getAttribute('d'))"
    )
    assert len(set(tiles)) == len(tiles) - 1  # a gap has the cooldown's lines, in grey on white, and says "no record"
    names = set(page.evaluate("[...document.querySelectorAll('svg.day .name')].map(e => e.textContent)"))
    assert {"R", "C", "I", "Y", "READY", "DISABLED", "no record"} <= names
    lights = sorted(_light(look.fill) for look in LOOKS.values())
    assert lights[-1] - lights[0] > 0.3


def _light(colour: str) -> float:
    """Relative luminance (WCAG)."""
    parts = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_names_on_the_bands_can_be_read() -> None:
    """Black on every fill: at least 4.5 to 1 (WCAG AA)."""
    assert all((_light(look.fill) + 0.05) / 0.05 >= 4.5 for look in LOOKS.values())


def test_without_scripts_the_bands_and_their_words_are_there(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("svg.day title").count() > 100
    assert page.locator("svg.day").count() == 8
    context.close()


def test_why_it_did_not_work_is_answered_by_text_alone(opened: Open) -> None:
    """The newest day first and open, each day in words, and each cause with its hours, its setting and a command."""
    page = opened()
    days = page.locator("article h3").all_text_contents()
    assert len(days) == 8
    assert page.locator("article").first.locator("details").get_attribute("open") is not None
    told = [page.locator("article").nth(n).locator("li").all_text_contents() for n in range(8)]
    assert all(told)
    assert any("IDLE_WAIT, kept by the person" in line for lines in told for line in lines)
    rows = page.locator(".cards tbody tr").all_text_contents()
    assert any(row.startswith("the person") and "rae-node whatif --set safety.idle_required_minutes=" in row for row in rows)
    narrow = opened(400)
    shown = narrow.evaluate("getComputedStyle(document.querySelector('.cards tr')).display")
    assert shown == "block"
    assert narrow.evaluate("document.documentElement.scrollWidth") <= 400
