"""What tables say, and the page in a real browser. All numbers are MADE UP."""

import html.parser
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm_sparsity.reporting.answers import answers, results, versions
from llm_sparsity.reporting.claims import load
from llm_sparsity.reporting.page import summary
from llm_sparsity.reporting.plot import plot
from llm_sparsity.reporting.tables import COLUMNS, read
from llm_sparsity.reporting.wording import resolution, scope_name
from tests.tables import CLAIMS, write_tables

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


NOTES = {"magnitude": "The smallest weights. Han et al. 2015", "gradual": "Zhu & Gupta 2017"}


def summary_of(folder: Path) -> str:
    return summary(read(folder / "tables"), folder, load(CLAIMS))


def changed(folder: Path, table: str, where: dict[str, str], **values: Any) -> None:
    """Change values of some rows of a table on disk."""
    rows = pd.read_csv(folder / f"tables/{table}.csv", dtype=str, keep_default_na=False)
    chosen = (rows[list(where)] == list(where.values())).all(axis=1)
    assert chosen.any()
    for column, value in values.items():
        rows.loc[chosen, column] = str(value)
    rows.to_csv(folder / f"tables/{table}.csv", index=False)


def test_the_answer_is_made_from_the_tables(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], recipes=("kept", "released"))
    told = summary_of(tmp_path)
    dense, half = (f"{value:.3f}" for value in _accuracies(tmp_path, "kept")[:2])
    chance = "not decided by this study of 400 examples, one seed"
    assert f"on sst2 minilm is {chance} (at 50 % by magnitude, linear: {half}, dense {dense})" in told
    assert "on text nothing of minilm (at 50 % by magnitude, linear: 94.9, dense 30.0)" in told
    assert "1 % are left of the target 90 %" in told
    assert "takes 10 % of the dense model in the same file format" in told
    claims = "Claims of the study that began this one, judged by these results"
    assert f"{claims}: 1 do not hold, 4 are undecided." in told


def test_a_study_without_claims_says_nothing_of_them(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["roberta-base"], ["magnitude"])
    plot(tmp_path / "tables", tmp_path, config=config, methods={})
    shown = (tmp_path / "report.html").read_text()
    assert 'id="claims"' not in shown
    assert "#claims" not in shown
    assert "crosses" not in shown
    assert "Claims" not in (tmp_path / "summary.txt").read_text()


def test_the_method_matters_at_one_sparsity(tmp_path: Path) -> None:
    """The worst value at half of the weights is that of 2of4, which is another sparsity than 0.5."""
    write_tables(tmp_path / "tables", ["llama"], ["wanda", "uniform"], seeds=0, sparsities=("0.5", "2of4"))
    for method, sparsity, value in (
        ("wanda", "0.5", 68), ("uniform", "0.5", 100), ("wanda", "2of4", 1300), ("uniform", "2of4", 1595),
    ):  # fmt: skip
        where = {"method": method, "sparsity": sparsity, "metric": "perplexity"}
        changed(tmp_path, "metrics", where, value=value)
    told = summary_of(tmp_path)
    assert "How matters: with 50 % of llama removed, wanda leaves perplexity 68.0 on text, uniform 100.0." in told
    changed(tmp_path, "metrics", {"method": "uniform", "sparsity": "2of4", "metric": "perplexity"}, value=15950)
    told = summary_of(tmp_path)
    assert "How matters: with 2of4 in llama removed, wanda leaves perplexity 1,300.0 on text, uniform 15,950.0." in told


def test_a_pattern_has_a_column_of_its_own(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["llama"], ["wanda"], seeds=3, sparsities=("0.5", "2of4"), text=False)
    data = read(tmp_path / "tables")
    (table,) = (each for each in results(data) if each["metric"] == "accuracy")
    assert table["heads"][4:] == ["0 %", "50 %", "2of4"]
    (line,) = table["lines"]
    half, pattern = (float(cell.split()[0]) for cell in line[5:])
    rows = data["metrics"][data["metrics"].metric == "accuracy"]
    for value, sparsity in ((half, "0.5"), (pattern, "2of4")):
        assert value == pytest.approx(rows.value[rows.sparsity.map(str) == sparsity].mean(), abs=6e-4)


def test_the_highest_sparsity_that_costs_nothing_may_be_a_pattern(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["llama"], ["wanda"], seeds=0, sparsities=("0.5", "2of4"))
    changed(tmp_path, "metrics", {"sparsity": "0.5", "metric": "perplexity"}, value=31)
    assert "on text 50 % of llama (wanda, linear: 31.0, dense 30.0)" in summary_of(tmp_path)
    changed(tmp_path, "metrics", {"sparsity": "2of4", "metric": "perplexity"}, value=32)
    assert "on text 2of4 in llama (wanda, linear: 32.0, dense 30.0)" in summary_of(tmp_path)


def test_different_versions_are_said_in_one_line(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], speed=True)
    assert versions(read(tmp_path / "tables")) == ""
    changed(tmp_path, "metrics", {"sparsity": "0.9", "task": "sst2"}, torch="2.0")
    changed(tmp_path, "speed", {"sparsity": "0.9"}, torch="2.0")
    plot(tmp_path / "tables", tmp_path, config=config, methods={})
    line = (
        "Results come from different versions, so they may differ for that reason: torch 1.0 (7 runs), torch 2.0 "
        "(2 runs)."
    )  # 3 fine-tunings, 3 evaluations, 3 measurements
    assert line in (tmp_path / "summary.txt").read_text().splitlines()
    assert line in (tmp_path / "report.html").read_text()


def _accuracies(folder: Path, recipe: str) -> list[float]:
    rows = pd.read_csv(folder / "tables/metrics.csv")
    rows = rows[(rows.metric == "accuracy") & (rows.recipe == recipe) & rows.method.isin(["dense", "magnitude"])]
    return [float(value) for value in rows.sort_values("sparsity").value]


def accuracies_of(folder: Path, seeds: int, **values: float) -> str:
    """The first answer, where minilm has these accuracies with every seed of 20,000 examples; s90: at 90 %."""
    write_tables(folder / "tables", ["minilm"], ["magnitude"], seeds, text=False, sparsities=("0.3", "0.5", "0.9"))
    changed(folder, "runs", {"task": "sst2"}, validation_examples=20_000)
    metrics = pd.read_csv(folder / "tables/metrics.csv", dtype=str, keep_default_na=False)
    for name, value in values.items():
        metrics.loc[metrics.fraction.astype(float) == int(name[1:]) / 100, "value"] = str(value)
    metrics.to_csv(folder / "tables/metrics.csv", index=False)
    return answers(read(folder / "tables"))[0]


WITHIN = "What can go within 2 points of accuracy of dense: on sst2 "


def test_what_can_go_is_decided_by_the_interval_of_the_difference(tmp_path: Path) -> None:
    told = accuracies_of(tmp_path, 3, s0=0.9, s30=0.9, s50=0.895, s90=0.6)
    assert told == f"{WITHIN}50 % of minilm (magnitude, linear: 0.895, dense 0.900)."
    # 20,000 examples: the difference is known to ±0.6 points, so -1.7 may be more than two points, -1.3 is not
    told = accuracies_of(tmp_path, 3, s0=0.9, s30=0.887, s50=0.883, s90=0.6)
    assert told == f"{WITHIN}30 % of minilm (magnitude, linear: 0.887, dense 0.900)."


def test_what_the_interval_leaves_open_is_said_to_be_not_decided(tmp_path: Path) -> None:
    told = accuracies_of(tmp_path, 3, s0=0.9, s30=0.883, s50=0.5, s90=0.5)
    chance = "minilm is not decided by this study of 20000 examples, 3 seeds"
    assert told == f"{WITHIN}{chance} (at 30 % by magnitude, linear: 0.883, dense 0.900)."


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    told = accuracies_of(tmp_path, 1, s0=0.9, s30=0.9, s50=0.9, s90=0.6)
    chance = "minilm is not decided by this study of 20000 examples, one seed"
    assert told == f"{WITHIN}{chance} (at 50 % by magnitude, linear: 0.900, dense 0.900)."


def test_a_point_that_is_good_by_luck_does_not_win(tmp_path: Path) -> None:
    told = accuracies_of(tmp_path, 3, s0=0.9, s30=0.9, s50=0.8, s90=0.9)
    assert told == f"{WITHIN}30 % of minilm (magnitude, linear: 0.900, dense 0.900)."
    told = accuracies_of(tmp_path, 3, s0=0.9, s30=0.8, s50=0.8, s90=0.9)
    assert told == f"{WITHIN}nothing of minilm (at 30 % by magnitude, linear: 0.800, dense 0.900)."


def test_choosing_among_methods_is_corrected_for(tmp_path: Path) -> None:
    """-1.3 points ± 0.60 of one method alone are inside; of the best of eight methods they are not (± 0.84)."""
    methods = ["magnitude", "uniform", "wanda", "sparsegpt", "admm", "owl", "block", "ria"]
    for chosen, decided in ((methods[:1], True), (methods, False)):
        folder = tmp_path / str(len(chosen))
        write_tables(folder / "tables", ["minilm"], chosen, 3, text=False, sparsities=("0.5",))
        changed(folder, "runs", {"task": "sst2"}, validation_examples=20_000)
        changed(folder, "metrics", {"task": "sst2", "method": "dense"}, value=0.9)
        changed(folder, "metrics", {"task": "sst2", "fraction": "0.5"}, value=0.887)
        assert ("not decided" not in answers(read(folder / "tables"))[0]) is decided


def test_a_pattern_does_not_stop_a_sweep(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["llama"], ["wanda"], seeds=0, sparsities=("0.5", "2of4", "0.7"))
    for sparsity, value in (("0.5", 31), ("2of4", 99), ("0.7", 32)):
        changed(tmp_path, "metrics", {"sparsity": sparsity, "metric": "perplexity"}, value=value)
    assert "on text 70 % of llama (wanda, linear: 32.0, dense 30.0)" in summary_of(tmp_path)


def test_a_model_that_diverged_is_said_to_have(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, recipes=("kept", "gradual"))
    changed(tmp_path, "metrics", {"recipe": "kept", "sparsity": "0.9", "seed": "1"}, value="")
    changed(tmp_path, "metrics", {"task": "text", "sparsity": "0.5"}, value="")
    plot(tmp_path / "tables", tmp_path, config=config, methods={})
    told = (tmp_path / "summary.txt").read_text()
    rows = [line.split() for line in told.splitlines() if line.startswith("  minilm")]
    assert next(row for row in rows if "kept" in row)[-1] == "diverged"
    assert ["minilm", "magnitude", "linear", "30.0", "diverged", "238.3"] in rows
    assert "nan" not in told
    assert "inf" not in told
    assert ">diverged<" in (tmp_path / "report.html").read_text()
    assert not re.search(r"\bnan\b|\binf\b", Page((tmp_path / "report.html").read_text()).text)


def test_every_model_may_have_diverged(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude", "uniform"], 3, speed=True)
    metrics = pd.read_csv(tmp_path / "tables/metrics.csv", dtype=str, keep_default_na=False)
    metrics.assign(value="").to_csv(tmp_path / "tables/metrics.csv", index=False)
    plot(tmp_path / "tables", tmp_path, config=config, methods={}, claims=CLAIMS)
    assert "diverged" in (tmp_path / "summary.txt").read_text()


def test_what_training_on_text_brings_back_is_told_against_a_dense_model_that_was_trained_too(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["smollm2"], ["wanda"], seeds=0, recovered=("kept", "lora"))
    told = summary_of(tmp_path)
    assert (
        "Training: on text, smollm2 at 90 % (wanda) goes from perplexity 238.3 to 41.5 by the recipe lora; the dense "
        "model, trained as well, has 20.0" in told
    )
    rows = [line.split() for line in told.splitlines() if line.startswith("  smollm2")]
    assert ["smollm2", "wanda", "linear", "not", "trained", "30.0", "94.9", "238.3"] in rows
    assert ["smollm2", "wanda", "linear", "lora", "20.0", "30.0", "41.5"] in rows
    assert "on text smollm2 is not decided by this study of one seed (at 50 % by wanda, linear, lora: 30.0" in told


def test_many_models_are_told_by_their_extremes(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", [f"model-{n}" for n in range(6)], ["magnitude"], text=False)
    answer = next(line for line in summary_of(tmp_path).splitlines() if line.startswith("* What can go"))
    assert answer.count("model-") == 2


def test_the_answer_is_five_lines(tmp_path: Path) -> None:
    models = ["roberta-base", "gpt2", "bart-base"]
    write_tables(tmp_path / "tables", models, ["magnitude", "uniform"], 3, recipes=("kept", "released"))
    lines = [line for line in summary_of(tmp_path).splitlines() if line.startswith("* ")]
    assert 3 <= len(lines) <= 5


@pytest.mark.parametrize(("examples", "accuracy", "band"), [(408, 0.86, 3.4), (872, 0.93, 1.7)])
def test_what_a_validation_split_can_tell(examples: int, accuracy: float, band: float) -> None:
    """MRPC's and SST-2's, at the accuracies that BERT reaches."""
    metrics = pd.DataFrame([{"task": "t", "metric": "accuracy", "method": "dense", "value": accuracy}])
    runs = pd.DataFrame([{"task": "t", "validation_examples": examples}])
    assert f"their number alone leaves ±{band} points of chance (95 %)" in resolution(
        {"metrics": metrics, "runs": runs}, "t"
    )


def test_a_recipe_has_a_line_and_an_answer_of_its_own(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, recipes=("kept", "gradual"))
    told = summary_of(tmp_path)
    assert "minilm at 90 % reaches" in told
    assert "by the recipe gradual" in told
    kept, gradual = (next(line for line in told.splitlines() if f" {name} " in line) for name in ("kept", "gradual"))
    assert kept != gradual
    assert kept.count("±") == gradual.count("±") == 3  # three seeds at each of three sparsities


@pytest.mark.parametrize(
    ("scope", "name"),
    [("linear", "linear"), ("layers.3.4.5", "layers 3-5"), ("layers.7", "layer 7"), ("layers.1.4", "layers 1, 4")],
)
def test_scopes_for_readers(scope: str, name: str) -> None:
    assert scope_name(scope) == name


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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with what a page can have: three models, methods, seeds, recipes, perplexity, claims."""
    folder = tmp_path_factory.mktemp("page")
    models = ["roberta-base", "gpt2", "bart-base"]
    config = write_tables(
        folder / "tables", models, ["magnitude", "uniform"], 3, recipes=("kept", "released", "gradual")
    )
    plot(folder / "tables", folder, config=config, methods=NOTES, claims=CLAIMS)
    return folder / "report.html"


def test_the_page_is_one_file_that_says_what_it_shows(page: Path) -> None:
    parsed = Page(page.read_text())
    assert parsed.fetched == []
    assert set(parsed.files) == {f"tables/{name}.csv" for name in COLUMNS}
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


def test_a_study_with_a_hostile_name_is_shown_not_run(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], text=False)
    plot(tmp_path / "tables", tmp_path, config=config | {"note": "<script>alert(1)</script>"}, methods={})
    assert "<script>alert" not in (tmp_path / "report.html").read_text()


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
    shown.locator("summary", has_text="sizes").press("Enter")  # opens
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
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.tagName") == "BUTTON"
    shown.close()


def test_the_page_fits_on_paper(page: Path, browser: Any, tmp_path: Path) -> None:
    shown = browser.new_page()
    shown.goto(page.as_uri())
    shown.emulate_media(media="print")
    assert not shown.locator("nav").is_visible()
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert len(shown.pdf(path=tmp_path / "report.pdf", format="A4")) > 10_000
    shown.close()
