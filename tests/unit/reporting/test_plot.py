"""Figures. All numbers are MADE UP."""

import dataclasses
import html
import itertools
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text

from llm_sparsity.reporting import page as pages
from llm_sparsity.reporting.answers import questions
from llm_sparsity.reporting.chart import chart
from llm_sparsity.reporting.claims import load
from llm_sparsity.reporting.figures import (
    by_sparsity,
    frontier,
    layer_errors,
    parts,
    perplexity,
    size,
    speed,
    zero_shot,
)
from llm_sparsity.reporting.figures.drawing import Drawn, Study
from llm_sparsity.reporting.figures.labels import name_points
from llm_sparsity.reporting.figures.style import marker_of, swept
from llm_sparsity.reporting.numbers import results
from llm_sparsity.reporting.plot import KINDS, plot
from llm_sparsity.reporting.references import PUBLISHED as COLUMNS
from llm_sparsity.reporting.references import read_numbers
from llm_sparsity.reporting.summary import summary
from llm_sparsity.reporting.tables import dense, read
from llm_sparsity.study.sparsity import Sparsity
from tests.once import once
from tests.tables import CLAIMS, PUBLISHED, write_tables


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close the figures that a test drew itself."""
    yield
    plt.close("all")


def study_of(folder: Path, config: dict[str, Any]) -> Study:
    models = config["study"][0]["models"]
    return Study(read(folder / "tables"), models, config, pd.DataFrame(columns=COLUMNS))


def drawn(kind: ModuleType, study: Study, name: str) -> Drawn:
    """One figure of a kind."""
    figures: Iterable[Drawn] = kind.draw(study)
    return next(figure for figure in figures if figure.name == name)


def lines_of(figure: Drawn, panel: int = 0) -> set[tuple[float, ...]]:
    """The values of the lines of a panel, rounded; single points are no lines."""
    lines = [line.get_ydata() for line in figure.figure.axes[panel].lines]
    return {tuple(np.round(line, 2)) for line in lines if len(line) > 2}


def texts_of(figure: Drawn, panel: int = 0) -> list[str]:
    return [text.get_text() for text in figure.figure.axes[panel].texts]


@pytest.fixture(scope="session")
def plotted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of a small study, its figures and its page; tests only read it."""
    return once("plotted", tmp_path_factory, _plot)


def _plot(folder: Path, **options: Any) -> None:
    config = write_tables(folder / "tables", ["minilm"], ["magnitude"], recipes=("kept", "released"))
    plot(folder / "tables", folder, config=config, methods={}, **options)


def test_figures_and_page(plotted: Path) -> None:
    names = {path.stem for path in (plotted / "figures").glob("*.svg")}
    assert names == {f"{metric}-sst2" for metric in ("accuracy", "f1", "combined", "train-time")} | {
        "perplexity-text", "regrowth-sst2", "size", "frontier-sst2", "frontier-text", "weights-minilm", "layers-minilm",
    }  # fmt: skip
    assert names == {path.stem for path in (plotted / "figures").glob("*.png")}
    summary = (plotted / "summary.txt").read_text()
    assert "minilm" in summary
    assert "on sst2: accuracy" in summary


@pytest.mark.slow
def test_the_same_tables_give_the_same_bytes_and_many_rows_a_small_page(
    plotted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "ROWS", 1)
    monkeypatch.setattr(pages, "FIGURES", 1e4)
    _plot(tmp_path, processes=2)
    for path in sorted((plotted / "figures").iterdir()):
        assert path.read_bytes() == (tmp_path / "figures" / path.name).read_bytes(), path.name
    page, whole = (html.unescape((folder / "report.html").read_text()) for folder in (tmp_path, plotted))
    assert "runs (the first 1 of 5 rows)" in page
    assert "The first 1 of 2 rows." in page
    assert page.count("<tr>") < 0.7 * whole.count("<tr>")
    assert "data:image" in whole
    assert "data:image" not in page
    for source in re.findall(r'src="(figures/[^"]+)"', page):
        assert (tmp_path / source).is_file()
    assert 'src="figures/accuracy-sst2.png"' in page


def test_a_study_without_training_has_figures_too(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["smollm2"], ["magnitude"], seeds=0)
    study = study_of(tmp_path, config)
    names = {figure.name for kind in KINDS for figure in kind.draw(study)}
    assert "perplexity-text" in names
    assert "accuracy-sst2" not in names


def test_recovered_perplexity_starts_at_a_dense_model_that_was_trained_too(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["smollm2"], ["wanda", "magnitude"], seeds=0, recovered=("kept", "lora"))
    study = study_of(tmp_path, config)
    rows = study.tables["metrics"][study.tables["metrics"].metric == "perplexity"]
    figure = drawn(perplexity, study, "perplexity-text")
    assert lines_of(figure) == {(30.0, 94.87, 238.3), (20.0, 40.0, 69.64), (20.0, 30.0, 41.49)}
    assert "Dash-dotted: trained on the training text of the task" in figure.caption
    assert list(dense(rows, "lora").value) == [20.0]
    assert list(dense(rows, "").value) == [30.0]


def test_a_tasks_own_score_has_a_figure_beside_accuracy(tmp_path: Path) -> None:
    config = write_tables(
        tmp_path / "tables", ["minilm"], ["magnitude"], text=False, score="matthews_correlation",
    )  # fmt: skip
    study = study_of(tmp_path, config)
    names = {figure.name for kind in (by_sparsity, frontier) for figure in kind.draw(study)}
    assert {"matthews_correlation-sst2", "accuracy-sst2", "frontier-sst2"} <= names


@pytest.mark.exhaustive
def test_five_hundred_runs_are_drawn_in_seconds(tmp_path: Path) -> None:
    """The time is printed, not asserted: it is noise on a busy machine."""
    models = [f"model-{n}" for n in range(10)]
    methods = ["magnitude", "uniform", "random", "wanda", "sparsegpt", "admm", "block", "structured"]
    config = write_tables(tmp_path / "tables", models, methods, seeds=3, text=False)
    begun = time.perf_counter()
    plot(tmp_path / "tables", tmp_path, config=config, methods={})
    print(f"{time.perf_counter() - begun:.1f} s")
    assert len(pd.read_csv(tmp_path / "tables/runs.csv")) == 510
    assert (tmp_path / "report.html").stat().st_size < 20e6


def test_zero_shot_tasks_have_a_figure_of_their_mean(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["smollm2"], ["magnitude", "wanda"], seeds=0)
    metrics = pd.read_csv(tmp_path / "tables/metrics.csv", dtype=str)
    scored = metrics[metrics.metric == "perplexity"].assign(metric="acc", value="0.5")
    errors = scored.assign(metric="acc_stderr", value="0.01")
    tables = [metrics, *(rows.assign(task=task) for task in ("boolq", "rte") for rows in (scored, errors))]
    pd.concat(tables).to_csv(tmp_path / "tables/metrics.csv", index=False)
    study = study_of(tmp_path, config)
    assert "Mean over boolq, rte" in drawn(zero_shot, study, "zero-shot").caption
    assert not any("stderr" in figure.name for figure in by_sparsity.draw(study))
    assert "acc_stderr" not in {table["metric"] for table in results(study.tables)}


def test_the_error_of_zero_shot_accuracy_is_drawn(tmp_path: Path) -> None:
    """Two tasks of standard errors .03 and .04: their mean has .025, and the band ± 1.96 times that."""
    config = write_tables(tmp_path / "tables", ["smollm2"], ["magnitude"], seeds=0)
    study = study_of(tmp_path, config)
    text = study.tables["metrics"][study.tables["metrics"].metric == "perplexity"]
    rows = [
        text.assign(task=task, metric=metric, value=value)
        for task, error in (("boolq", 0.03), ("rte", 0.04))
        for metric, value in (("acc", 0.5), ("acc_stderr", error))
    ]
    study = dataclasses.replace(study, every={**study.tables, "metrics": pd.concat(rows)})
    figure = drawn(zero_shot, study, "zero-shot")
    (band,) = figure.figure.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((0.5 - 0.049, 0.5 + 0.049), abs=1e-5)
    tables = {table["task"]: table["lines"][0][-1] for table in results(study.tables)}
    assert tables == {"boolq": "0.500 ± 0.059", "rte": "0.500 ± 0.078"}


def test_one_seed_has_no_band(tmp_path: Path) -> None:
    for seeds, bands in ((1, 0), (3, 1)):
        config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], seeds, text=False)
        figure = drawn(by_sparsity, study_of(tmp_path, config), "accuracy-sst2")
        assert len(figure.figure.axes[0].collections) == bands
        assert ("One seed, which has no interval" in figure.caption) is (seeds == 1)


def test_quality_is_drawn_against_the_bytes_of_the_file_that_has_it(tmp_path: Path) -> None:
    """Made-up runs have files of 1,100 bytes and less, those of variants 1,000."""
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 2, sparsities=("0.5",), recovered=("kept",))
    study = study_of(tmp_path, config)
    study.tables["runs"].loc[study.tables["runs"].seed == 1, "bytes"] += 100
    trained = drawn(frontier, study, "frontier-sst2").figure.axes[0]
    dense, half = ((1100 + 1200) / 2, (550 + 650) / 2)
    assert sorted(single_points(trained)) == pytest.approx([100 * half / dense, 100])
    untrained = drawn(frontier, study, "frontier-text").figure.axes[0]  # its runs have no rows here
    assert sorted(set(single_points(untrained))) == pytest.approx([50, 100])


def single_points(ax: Axes) -> list[float]:
    """The positions of points that no line joins."""
    return [float(line.get_xdata()[0]) for line in ax.lines if len(line.get_xdata()) == 1]


def test_sizes_are_drawn_like_for_like(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], seeds=0)
    study = study_of(tmp_path, config)
    alike = drawn(size, study, "size")
    assert (1.0, 0.5, 0.1) in lines_of(alike)
    assert "in the same compressed file format" in alike.caption


def test_a_study_whose_masks_are_all_released_has_nothing_to_pick(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], recipes=("released",), text=False)
    study = study_of(tmp_path, config)
    assert "accuracy-sst2" in {figure.name for figure in by_sparsity.draw(study)}
    assert "frontier-sst2" not in {figure.name for figure in frontier.draw(study)}


def test_errors_are_drawn_where_a_method_tells_them(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["smollm2"], ["magnitude", "wanda"], seeds=0)
    figure = drawn(layer_errors, study_of(tmp_path, config), "errors-smollm2").figure
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert "wanda" in texts
    assert "magnitude" not in texts


def test_perplexity_says_how_it_was_measured_and_what_was_published(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["opt-1.3b"], ["magnitude", "sparsegpt"], seeds=0)
    metrics = pd.read_csv(tmp_path / "tables/metrics.csv", dtype=str).replace({"task": {"text": "wikitext2"}})
    pattern = metrics[(metrics.sparsity == "0.5") & (metrics.method == "sparsegpt")].assign(
        sparsity="2of4", value="999"
    )
    pd.concat([metrics, pattern]).to_csv(tmp_path / "tables/metrics.csv", index=False)
    (tmp_path / "tables/tasks.csv").write_text("task,score\nwikitext2,perplexity\n")
    settings = {"evaluate": {"sequence_length": 2048, "max_tokens": None}}
    study = study_of(tmp_path, config | settings)
    figure = drawn(
        perplexity, dataclasses.replace(study, published=read_numbers(PUBLISHED, COLUMNS)), "perplexity-wikitext2"
    )
    assert "Measured on the whole text, in windows of 2,048 tokens that do not overlap." in figure.caption
    assert "Crosses are published values: Frantar & Alistarh 2023, arXiv:2301.00774 (opt-1.3b)." in figure.caption
    assert "2of4, sparsegpt" in texts_of(figure)  # a mark of its own: 999 is no seed of 0.5
    assert not figure.figure.axes[0].collections, "no band"


def test_the_earlier_study_is_drawn_as_faint_crosses_where_its_claims_are_given(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["gpt2"], ["magnitude"], text=False)
    study = study_of(tmp_path, config)
    without = drawn(by_sparsity, study, "accuracy-sst2")
    beside = drawn(by_sparsity, dataclasses.replace(study, claims=load(CLAIMS)), "accuracy-sst2")
    marks = [[line for line in each.figure.axes[0].lines if line.get_marker() == "x"] for each in (without, beside)]
    assert marks[0] == []
    values = {x: y for crosses in marks[1] for x, y in zip(crosses.get_xdata(), crosses.get_ydata(), strict=True)}
    assert list(values) == [0, 0.1, 0.5, 0.9, 0.95, 0.99]
    assert values[0] == 0.9117
    assert "Faint crosses: an earlier report, which pruned roberta-base" in beside.caption
    assert "crosses" not in without.caption


def test_a_pattern_is_a_point_of_its_own_in_every_line_figure(tmp_path: Path) -> None:
    config = write_tables(
        tmp_path / "tables", ["llama"], ["wanda"], 3, sparsities=("0.3", "0.5", "2of4", "0.7"), speed=True
    )
    study = study_of(tmp_path, config)
    for kind, name in (
        (by_sparsity, "accuracy-sst2"), (by_sparsity, "train-time-sst2"), (perplexity, "perplexity-text"),
        (size, "size"), (speed, "speed-batch-1"),
    ):  # fmt: skip
        figure = drawn(kind, study, name)
        ax = figure.figure.axes[0]
        assert any("2of4" in text for text in texts_of(figure)), name
        for line in ax.lines:
            x = [round(value, 6) for value in line.get_xdata()]
            if line.get_linestyle() != "None" and line.get_marker() != "|" and len(x) > 2:
                assert x == sorted(set(x)), f"{name}: a line joins two points at the same position"
        hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata()) == 1]
        assert [list(line.get_xdata()) for line in hollow][:1] == [[0.5]], name
    rows = study.tables["metrics"]
    rows = rows[rows.metric == "accuracy"]
    means = [rows.value[rows.sparsity == Sparsity(text)].mean() for text in ("0", "0.3", "0.5", "0.7")]
    assert tuple(np.round(means, 2)) in lines_of(drawn(by_sparsity, study, "accuracy-sst2"))


def test_panels_that_share_an_axis_show_every_value(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["llama"], ["wanda", "sparsegpt"], text=False)
    study = study_of(tmp_path, config)
    runs = study.tables["runs"]
    runs.loc[runs.method == "sparsegpt", "train_seconds"] = 1000.0
    tensors = study.tables["tensors"]
    tensors.loc[tensors.sparsity == Sparsity("0.9"), "error"] = 7.0
    for kind, name, highest in ((by_sparsity, "train-time-sst2", 1000), (layer_errors, "errors-llama", 7)):
        figure = drawn(kind, study, name)
        assert all(ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > highest for ax in figure.figure.axes), name


def test_many_patterns_are_named_once_a_panel(tmp_path: Path) -> None:
    methods = ["wanda", "sparsegpt", "admm"]
    config = write_tables(
        tmp_path / "tables", ["llama"], methods, recipes=("kept", "gradual"), sparsities=("0.5", "2of4"), text=False
    )
    texts = texts_of(drawn(by_sparsity, study_of(tmp_path, config), "accuracy-sst2"))
    assert [text for text in texts if "2of4" in text] == ["2of4"]


def test_the_frontier_knows_what_diverged(tmp_path: Path) -> None:
    """Its title is that of the page: 50 % is no answer where 30 % has no score."""
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, text=False, sparsities=("0.3", "0.5"))
    study = study_of(tmp_path, config)
    metrics = study.every["metrics"]
    metrics.loc[metrics.metric == "accuracy", "value"] = 0.9
    metrics.loc[(metrics.sparsity.map(str) == "0.3") & (metrics.metric == "accuracy"), "value"] = np.nan
    title = drawn(frontier, study, "frontier-sst2").title
    assert title.startswith("This study does not decide how much of minilm can be removed on sst2; the best at 50 %")
    assert title in summary(study.every, tmp_path).replace("\n", " ")


def test_a_wide_interval_leaves_room_for_the_points(tmp_path: Path) -> None:
    """Two seeds that differ by six points have an interval of 54 points each way."""
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 2, text=False)
    data = read(tmp_path / "tables")
    metrics = data["metrics"]
    chosen = (metrics.method == "magnitude") & (metrics.metric == "accuracy")
    metrics.loc[chosen, "value"] = 0.85 + 0.06 * metrics.seed[chosen].astype(float)
    (found,) = (question for question in questions(data) if question.metric == "accuracy")
    ticks = [float(text) for _, text in chart(data, found.options, config["study"][0]["models"])["y_ticks"]]
    assert min(ticks) > 0.2 and max(ticks) <= 1


def test_the_caption_of_speed_names_every_machine(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["llama", "opt"], ["magnitude"], seeds=0, speed=True)
    study = study_of(tmp_path, config)
    rows = study.every["speed"]
    rows.loc[rows.model == "opt", ["device", "threads"]] = ["NVIDIA H100", 64]
    caption = drawn(speed, study, "speed-batch-1").caption
    assert "cpu, one thread and NVIDIA H100, 64 threads; both models take turns" in caption


def test_a_pattern_alone_carries_the_name_of_its_line(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["llama"], ["wanda"], sparsities=("2of4",), text=False)
    figure = drawn(by_sparsity, study_of(tmp_path, config), "accuracy-sst2")
    assert "2of4, wanda" in texts_of(figure)


def test_a_point_of_the_frontier_is_named_by_its_sparsity(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["llama"], ["wanda"], sparsities=("0.5", "2of4"), text=False)
    figure = drawn(frontier, study_of(tmp_path, config), "frontier-sst2")
    assert sorted(texts_of(figure)) == ["2of4", "50%", "dense"]


def test_parts_at_a_pattern_have_a_panel_of_their_own(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["llama"], ["wanda"], seeds=0, sparsities=("0.5", "2of4"))
    study = study_of(tmp_path, config)
    found = dict(study.tables)
    for name in ("metrics", "sizes"):
        pruned = found[name][found[name].method != "dense"]
        copies = [pruned.assign(scope=scope) for scope in ("attention", "mlp", "layers.0")]
        found[name] = pd.concat([found[name][found[name].method == "dense"], *copies])
    figure = drawn(parts, dataclasses.replace(study, every=found), "parts-text")
    titles = [ax.get_title() for ax in figure.figure.axes]
    assert titles == ["llama: 50% of one part removed, wanda", "llama: 2of4 in one part, wanda"]
    assert [text.split()[0] for text in texts_of(figure)] == ["94.9"] * 3
    assert [text.split()[0] for text in texts_of(figure, 1)] == ["300.0"] * 3


def test_parts_pruned_once_beside_a_swept_scope_are_left_to_their_figure() -> None:
    rows = pd.DataFrame(
        [("dense", "", "0"), ("magnitude", "linear", "0.3"), ("magnitude", "linear", "0.5"), ("wanda", "linear", "0.5"),
         ("magnitude", "mlp", "0.3"), ("magnitude", "attention", "0.3"), ("int8", "linear", "0")],
        columns=["method", "scope", "sparsity"],
    )  # fmt: skip
    rows["sparsity"] = rows.sparsity.map(Sparsity)
    assert set(swept(rows).scope) == {"", "linear"}
    assert "int8" not in set(swept(rows).method)
    once = rows[rows.sparsity != Sparsity("0.5")]
    assert set(swept(once).scope) == {"", "linear", "mlp", "attention"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [by_sparsity, perplexity, size, speed])
def test_two_points_are_not_joined_by_a_line(kind: ModuleType, tmp_path: Path) -> None:
    """The dense model and one fraction are two points; with another fraction they are a line."""
    for sparsities, joined in (("0.5",), False), (("0.5", "0.9"), True):
        folder = tmp_path / str(joined)
        config = write_tables(folder / "tables", ["llama"], ["wanda"], 1, sparsities=sparsities, speed=True)
        for figure in kind.draw(study_of(folder, config)):
            lines = [line for line in figure.figure.axes[0].lines if len(set(line.get_xdata())) > 1]
            lines = [line for line in lines if line.get_linestyle() != "None" and list(line.get_xdata()) != [0, 1]]
            assert bool(lines) is joined, figure.name


def test_a_model_has_one_colour_and_a_method_one_marker(tmp_path: Path) -> None:
    models = ["llama", "opt"]
    config = write_tables(tmp_path / "tables", models, ["wanda", "magnitude"], 1, speed=True)
    study = study_of(tmp_path, config)
    seen: dict[str, set[str]] = {}
    for kind, name in ((by_sparsity, "accuracy-sst2"), (perplexity, "perplexity-text"), (speed, "speed-batch-1")):
        figure = drawn(kind, study, name)
        assert [ax.get_title() for ax in figure.figure.axes] == models
        for ax, model in zip(figure.figure.axes, models, strict=True):
            for line in ax.lines:
                if len(line.get_xdata()) > 2 and line.get_marker() not in ("None", "|", "_"):  # no error bars
                    seen.setdefault(model, set()).add(line.get_color())
                    seen.setdefault("markers", set()).add(str(line.get_marker()))
    assert seen["markers"] == {marker_of("wanda"), marker_of("magnitude")}
    assert len(seen["llama"]) == len(seen["opt"]) == 2  # a tint for each method
    assert not seen["llama"] & seen["opt"]


@pytest.mark.slow
@pytest.mark.parametrize("recipes", [("kept",), ("kept", "released", "gradual")])
def test_titles_say_what_is_seen(recipes: tuple[str, ...], tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["llama", "opt"], ["wanda"], 2, recipes=recipes, speed=True)
    study = study_of(tmp_path, config)
    for kind in KINDS:
        for figure in kind.draw(study):
            assert re.search(r"\d|layer", figure.title), f"{figure.name}: {figure.title}"
            assert "nan" not in figure.title and not figure.title.endswith(".")


@pytest.mark.parametrize("up", [0, 7])
@pytest.mark.parametrize("seed", range(4))
def test_names_touch_neither_each_other_nor_another_point(up: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    figure, ax = plt.subplots(figsize=(6, 4))
    at = generator.uniform(0.2, 0.8, (9, 2))
    if not up:
        at[:, 0] = 0.5  # the last points of lines
    ax.set(xlim=(0, 1), ylim=(0, 1))
    name_points(figure, {ax: [(x, y, f"{number}0% linear", "black") for number, (x, y) in enumerate(at)]}, up=up)
    figure.draw_without_rendering()
    boxes = {int(text.get_text()[0]): text.get_window_extent() for text in ax.texts}
    plt.close(figure)
    assert len(boxes) == 9
    for one, other in itertools.permutations(boxes, 2):
        assert not boxes[one].overlaps(boxes[other])
        assert not boxes[one].contains(*ax.transData.transform(at[other]))
