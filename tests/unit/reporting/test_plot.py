"""Figures. All numbers are MADE UP."""

import html
import itertools
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from llm_sparsity.reporting.page import dense, read
from llm_sparsity.reporting.plot import _figures, _groups, _name_points, plot
from tests.tables import write_tables


@pytest.mark.parametrize(
    ("models", "methods", "seeds", "recipes"),
    [
        (["minilm"], ["magnitude"], 1, ("kept",)),
        (["roberta-base", "gpt2", "bart-base"], ["magnitude", "uniform"], 3, ("kept", "released", "gradual")),
    ],
)
def test_figures_and_page(
    models: list[str], methods: list[str], seeds: int, recipes: tuple[str, ...], tmp_path: Path
) -> None:
    config = write_tables(tmp_path / "tables", models, methods, seeds, recipes=recipes)
    plot(tmp_path / "tables", tmp_path, config=config, methods={})
    names = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    expected = {f"{metric}-sst2" for metric in ("accuracy", "f1", "combined", "train-time")} | {
        "perplexity-text", "size", "frontier-sst2", "frontier-text",
    }  # fmt: skip
    expected |= {f"{kind}-{model}" for kind in ("weights", "layers") for model in models}
    assert names == expected | ({"regrowth-sst2"} if "released" in recipes else set())
    assert names == {path.stem for path in (tmp_path / "figures").glob("*.png")}
    summary = (tmp_path / "summary.txt").read_text()
    assert "accuracy on sst2, by sparsity" in summary
    assert all(model in summary for model in models)


def test_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 2)
    for name in ("1", "2"):
        plot(tmp_path / "tables", tmp_path / name, config=config, methods={})
    for path in sorted((tmp_path / "1/figures").iterdir()):
        assert path.read_bytes() == (tmp_path / "2/figures" / path.name).read_bytes(), path.name


def test_a_study_without_training_has_a_page_too(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["smollm2"], ["magnitude"], seeds=0)
    plot(tmp_path / "tables", tmp_path, config=config, methods={})
    assert (tmp_path / "figures/perplexity-text.svg").exists()
    assert not (tmp_path / "figures/accuracy-sst2.svg").exists()


def test_recovered_perplexity_starts_at_a_dense_model_that_was_trained_too(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["smollm2"], ["wanda", "magnitude"], seeds=0, recovered=("kept", "lora"))
    data = read(tmp_path / "tables")
    rows = data["metrics"][data["metrics"].metric == "perplexity"]
    (drawn,) = (figure for figure in _figures(data, ["smollm2"], config) if figure.name == "perplexity-text")
    lines = {tuple(line.get_ydata().round(1)) for line in drawn.figure.axes[0].lines if len(line.get_ydata()) > 1}
    assert lines == {(30.0, 94.9, 238.3), (20.0, 40.0, 69.6), (20.0, 30.0, 41.5)}
    assert "Dash-dotted: trained on the task's training text" in drawn.caption
    assert list(dense(rows, "lora").value) == [20.0]
    assert list(dense(rows, "").value) == [30.0]


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
    plot(tmp_path / "tables", tmp_path, config=config, methods={})
    assert (tmp_path / "figures/zero-shot.svg").exists()
    page = (tmp_path / "report.html").read_text()
    assert "Mean over boolq, rte" in page
    assert "Acc_stderr" not in page


def test_a_study_whose_masks_are_all_released_has_a_page_and_nothing_to_pick(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], recipes=("released",), text=False)
    plot(tmp_path / "tables", tmp_path, config=config, methods={})
    assert (tmp_path / "figures/accuracy-sst2.svg").exists()
    assert not (tmp_path / "figures/frontier-sst2.svg").exists()


def test_errors_are_drawn_where_a_method_tells_them(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["smollm2"], ["magnitude", "wanda"], seeds=0)
    plot(tmp_path / "tables", tmp_path, config=config, methods={})
    figure = (tmp_path / "figures/errors-smollm2.svg").read_text()
    assert "wanda" in figure
    assert "magnitude" not in figure


def test_perplexity_says_how_it_was_measured_and_what_was_published(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["opt-1.3b"], ["magnitude", "sparsegpt"], seeds=0)
    metrics = pd.read_csv(tmp_path / "tables/metrics.csv", dtype=str).replace({"task": {"text": "wikitext2"}})
    pattern = metrics[(metrics.sparsity == "0.5") & (metrics.method == "sparsegpt")].assign(
        sparsity="2of4", value="999"
    )
    pd.concat([metrics, pattern]).to_csv(tmp_path / "tables/metrics.csv", index=False)
    settings = {"evaluate": {"sequence_length": 2048, "max_tokens": None}}
    plot(tmp_path / "tables", tmp_path, config=config | settings, methods={})
    page = html.unescape((tmp_path / "report.html").read_text())
    assert "Measured on the whole text, in windows of 2,048 tokens that do not overlap." in page
    assert "Crosses are published values: Frantar & Alistarh 2023, arXiv:2301.00774 (opt-1.3b)." in page
    figure = (tmp_path / "figures/perplexity-wikitext2.svg").read_text()
    assert "2of4" in figure  # a mark of its own: 999 is no seed of 0.5
    assert "FillBetweenPolyCollection" not in figure and "PolyCollection" not in figure


def test_parts_pruned_once_beside_a_swept_scope_are_left_to_their_figure() -> None:
    rows = pd.DataFrame(
        [("dense", "", 0.0), ("magnitude", "linear", 0.3), ("magnitude", "linear", 0.5), ("wanda", "linear", 0.5),
         ("magnitude", "mlp", 0.3), ("magnitude", "attention", 0.3)],
        columns=["method", "scope", "level"],
    )  # fmt: skip
    assert _groups(rows) == [("magnitude", "linear"), ("wanda", "linear")]
    once = rows[rows.level != 0.5]
    assert _groups(once) == [("magnitude", "linear"), ("magnitude", "mlp"), ("magnitude", "attention")]


@pytest.mark.parametrize("up", [0, 7])
@pytest.mark.parametrize("seed", range(4))
def test_names_touch_neither_each_other_nor_another_point(up: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    figure, ax = plt.subplots(figsize=(6, 4))
    at = generator.uniform(0.2, 0.8, (9, 2))
    if not up:
        at[:, 0] = 0.5  # the last points of lines
    ax.set(xlim=(0, 1), ylim=(0, 1))
    _name_points(figure, {ax: [(x, y, f"{number}0% linear", "black") for number, (x, y) in enumerate(at)]}, up=up)
    figure.draw_without_rendering()
    boxes = {int(text.get_text()[0]): text.get_window_extent() for text in ax.texts}
    plt.close(figure)
    assert len(boxes) == 9
    for one, other in itertools.permutations(boxes, 2):
        assert not boxes[one].overlaps(boxes[other])
        assert not boxes[one].contains(*ax.transData.transform(at[other]))
