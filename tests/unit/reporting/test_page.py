"""The page, in a real browser too. All numbers are MADE UP."""

import html.parser
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_sparsity.reporting.plot import plot
from llm_sparsity.reporting.tables import COLUMNS
from tests.once import once
from tests.tables import CLAIMS, write_tables

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


NOTES = {"magnitude": "The smallest weights. Han et al. 2015", "gradual": "Zhu & Gupta 2017"}


class Page(html.parser.HTMLParser):
    """What a browser would have to fetch, the images without a text for those who do not see them, and the ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.silent = 0
        self.ids: list[str] = []
        self.links: list[str] = []
        self.files: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.text += "" if self.lasttag in ("style", "script") else data

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        for key in ("src", "href"):
            if (value := values.get(key)) and not value.startswith(("data:", "#")):
                (self.files if tag == "a" else self.fetched).append(value)
        self.silent += tag == "img" and not values.get("alt")
        self.ids += [values["id"] or ""] if "id" in values else []
        if (target := values.get("href")) and target.startswith("#"):
            self.links.append(target[1:])


pytestmark = pytest.mark.slow  # all draw the figures of a study, and most open them in a browser


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with what a page can have: models, methods, seeds, recipes, perplexity, claims."""
    return once("page", tmp_path_factory, _make) / "report.html"


def _make(folder: Path) -> None:
    models = ["roberta-base", "gpt2"]
    recipes = ("kept", "released", "gradual")
    config = write_tables(folder / "tables", models, ["magnitude", "uniform"], 2, recipes=recipes, judged=True)
    plot(folder / "tables", folder, config=config, methods=NOTES, claims=CLAIMS)


def test_the_page_is_one_file_that_says_what_it_shows(page: Path) -> None:
    parsed = Page(page.read_text())
    assert parsed.fetched == []
    assert {file for file in parsed.files if "tables/" in file} == {f"tables/{name}.csv" for name in COLUMNS}
    assert all((page.parent / path).is_file() for path in parsed.files)
    assert parsed.silent == 0
    assert set(parsed.links) <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))
    text = html.unescape(page.read_text())
    assert "Removing 50 % costs some accuracy" in text
    assert "+/-" not in text
    assert "87 steps on MRPC" in text  # said where the earlier study's numbers are compared
    assert "Han et al. 2015" in text
    assert "Zhu & Gupta 2017" in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_a_browser_shows_the_page(page: Path, browser: Any, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    shown, said, asked = context.new_page(), [], []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(page.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing to scroll sideways"
    shown.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nor with everything unfolded"
    for image in shown.locator("img").all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") > 0
    light = shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")
    for colour in ("body", ".soft", ".verdict", "a"):
        assert _contrast(shown, colour) >= 4.5, f"{colour}: too faint to read (WCAG 2.2, 1.4.3)"
    context.close()


def _contrast(shown: Any, selector: str) -> float:
    """The contrast of a text to the page, as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])

    ink = shown.evaluate(f"getComputedStyle(document.querySelector('{selector}')).color")
    ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    dark, light = sorted((luminance(ink), luminance(ground)))
    return (light + 0.05) / (dark + 0.05)


def test_tables_are_sorted_by_keyboard(page: Path, browser: Any) -> None:
    shown = browser.new_page()
    shown.goto(page.as_uri())
    shown.locator("summary", has_text="all rows").press("Enter")  # opens
    shown.locator("summary", has_text="sizes").press("Enter")
    table = shown.locator("table.sortable", has=shown.locator("th", has_text="dense_bytes"))
    head = table.locator("th", has_text="measured_sparsity")
    column = head.evaluate("(head) => head.cellIndex")

    def values() -> list[float]:
        return [float(text) for text in table.locator(f"tbody td:nth-child({column + 1})").all_text_contents()]

    before = values()
    head.locator("button").press("Enter")
    assert values() == sorted(before)
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")
    assert values() == sorted(before, reverse=True)
    texts = ("12,345.6", "238.3", "diverged")
    cells = table.locator(f"tbody td:nth-child({column + 1})")
    for number, text in enumerate(texts):
        cells.nth(number).evaluate("(cell, text) => { cell.textContent = text; }", text)
    head.locator("button").press("Enter")
    assert [text for text in cells.all_text_contents() if text in texts] == ["238.3", "12,345.6", "diverged"]
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.tagName") == "BUTTON"
    shown.close()


def test_the_page_fits_on_paper(page: Path, browser: Any, tmp_path: Path) -> None:
    shown = browser.new_page()
    shown.goto(page.as_uri())
    shown.emulate_media(media="print")
    assert not shown.locator("nav").is_visible()
    shown.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert shown.locator("details:not([open]):not(.raw)").count() == 0, "paper cannot be unfolded"
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert len(shown.pdf(path=tmp_path / "report.pdf", format="A4")) > 10_000
    shown.close()


def test_points_of_the_chart_explain_themselves(page: Path, browser: Any) -> None:
    shown = browser.new_page()
    shown.goto(page.as_uri())
    point = shown.locator(".point").nth(1)
    note = point.locator(".note")
    assert not note.is_visible()
    point.focus()
    assert note.is_visible()
    for word in ("perplexity", "of the dense bytes", "results/"):
        assert word in note.inner_text()
    other = shown.locator(".chart").first.locator(".point").last  # on top of those at the same place
    other.locator(".dot").hover()
    assert other.locator(".note").is_visible()
    box, plot_box = note.bounding_box(), shown.locator(".plot").first.bounding_box()
    assert box["y"] > plot_box["y"] + plot_box["height"], "a note covers no point"
    shown.close()


def test_a_link_to_a_folded_question_unfolds_it(page: Path, browser: Any) -> None:
    shown = browser.new_page()
    shown.goto(page.as_uri())
    assert not shown.locator("#numbers table").first.is_visible()
    shown.locator("nav a", has_text="Numbers").click()
    assert shown.locator("#numbers table").first.is_visible()
    shown.close()


def test_the_answer_comes_first(page: Path, browser: Any) -> None:
    """The title and the first decision are on the first screen of a phone."""
    shown = browser.new_page(viewport={"width": 360, "height": 800})
    shown.goto(page.as_uri())
    assert shown.locator("h1").inner_text() == shown.title()
    assert shown.locator(".decide .take").first.bounding_box()["y"] < 800
    shown.close()
