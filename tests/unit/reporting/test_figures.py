"""Figures and the chart of unusual studies: each is drawn, and says nothing false. All numbers are MADE UP."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from llm_sparsity.reporting.answers import questions
from llm_sparsity.reporting.chart import chart
from llm_sparsity.reporting.figures import (
    by_sparsity,
    frontier,
    layer_errors,
    parts,
    perplexity,
    regrowth,
    size,
    speed,
    weights,
    zero_shot,
)
from llm_sparsity.reporting.figures.drawing import Drawn, Study, save
from llm_sparsity.reporting.figures.labels import legible, name_points
from llm_sparsity.reporting.figures.style import STYLE, ticks
from llm_sparsity.reporting.plot import KINDS
from llm_sparsity.reporting.references import PUBLISHED
from llm_sparsity.reporting.tables import read, scored
from llm_sparsity.study.sparsity import Sparsity
from tests.tables import write_tables

Tables = dict[str, pd.DataFrame]

CHAINS = [
    method + step
    for method in ("magnitude", "uniform", "random", "wanda", "sparsegpt", "admm", "block")
    for step in ("", "+int8", "+int4", "+reconstruct", "+reconstruct+int8", "+reconstruct+int4")
]


@pytest.fixture(autouse=True)
def look() -> Iterator[None]:
    """The style of figures; those that a test drew are closed."""
    with mpl.rc_context(STYLE):
        yield
    plt.close("all")


def study_of(tables: Path, change: Callable[[Tables], Any] = lambda found: None) -> Study:
    """A study of tables, in memory, after a change."""
    found = read(tables)
    change(found)
    found["metrics"] = scored(found["metrics"])
    models = list(dict.fromkeys(found["sizes"].model))
    return Study(found, models, {}, pd.DataFrame(columns=PUBLISHED))


def drawn(kind: Any, study: Study) -> list[Drawn]:
    return list(kind.draw(study))


def diverged(methods: set[str]) -> Callable[[Tables], None]:
    def change(found: Tables) -> None:
        found["metrics"].loc[found["metrics"].method.isin(methods), "value"] = np.nan

    return change


def perplexities(*values: float) -> Callable[[Tables], None]:
    def change(found: Tables) -> None:
        rows = found["metrics"]
        rows.loc[rows.metric == "perplexity", "value"] = values

    return change


def correlations(found: Tables) -> None:
    """From -0.9 to 0.9."""
    rows = found["metrics"]
    mine = rows.metric == "pearsonr"
    rows.loc[mine, "value"] = np.linspace(0.9, -0.9, mine.sum())
    found["baselines"].loc[found["baselines"].metric == "pearsonr", "value"] = 0.0


def quantised(found: Tables) -> None:
    """Nothing is removed, only quantised."""
    for name in ("metrics", "runs", "history", "sizes", "speed", "tensors"):
        rows = found[name]
        found[name] = rows[(rows.method == "dense") | (rows.sparsity == Sparsity("0.5"))].copy()
        found[name].loc[rows.method != "dense", ["method", "sparsity", "fraction"]] = ["int8", Sparsity("0"), 0.0]


CASES: dict[str, tuple[dict[str, Any], Callable[[Tables], Any]]] = {
    "one cell of one seed": ({"sparsities": ("0.5",)}, lambda found: None),
    "a dense model that diverged": ({"seeds": 2}, diverged({"dense"})),
    "pruned models that diverged": ({"seeds": 2}, diverged({"magnitude"})),
    "every model diverged": ({"seeds": 2}, diverged({"dense", "magnitude"})),
    "one regression": ({"score": "pearsonr", "text": False}, lambda found: None),
    "correlations of both signs": ({"score": "pearsonr", "text": False, "seeds": 2}, correlations),
    "a perplexity near the largest float": ({"seeds": 0}, perplexities(20, 1e9, 1e304)),
    "perplexities close to each other": ({"seeds": 0}, perplexities(43.0, 43.1, 43.3)),
    "equal perplexities": ({"seeds": 0}, perplexities(43, 43, 43)),
    "forty methods": ({"methods": CHAINS, "text": False}, lambda found: None),
    "long names": ({"models": ["a-model-whose-name-is-as-long-as-names-on-the-hub-get-" * 2]}, lambda found: None),
    "quantised models alone": ({"sparsities": ("0.5",)}, quantised),
    "structured models alone": ({"methods": ["structured"]}, lambda found: None),
}


MARKS = dict.fromkeys(CASES, pytest.mark.slow) | {"one cell of one seed": (), "forty methods": pytest.mark.exhaustive}


@pytest.mark.parametrize("case", [pytest.param(case, marks=MARKS[case]) for case in CASES])
def test_unusual_studies_are_drawn(case: str, tmp_path: Path) -> None:
    given, change = CASES[case]
    write_tables(
        tmp_path,
        **{"models": ["llama"], "methods": ["magnitude"], "speed": True, "recipes": ("kept", "released"), **given},
    )
    study = study_of(tmp_path, change)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in KINDS:
            for figure in kind.draw(study):
                _check(figure)
                plt.close(figure.figure)
        for question in questions(study.tables):
            found = chart(study.tables, question.options, study.models)
            assert len(found["y_ticks"]) > 1
            assert all(0 <= point[axis] <= 100 for point in found["points"] for axis in "xy")


def _check(drawn: Drawn) -> None:
    """No number is missing in words, and no name is cut off."""
    for text in (drawn.title, drawn.caption):
        assert not {"nan", "inf", "NaN"} & set(text.replace("(", " ").replace(",", " ").split()), text
    figure = drawn.figure
    figure.draw_without_rendering()
    box = figure.bbox.padded(3)
    for ax in figure.axes:
        assert len(ax.get_yticks()) > 1, drawn.name
        for text in ax.texts:
            name = text.get_window_extent()
            assert box.x0 <= name.x0 and name.x1 <= box.x1, f"{drawn.name}: {text.get_text()} is cut off"
            assert box.y0 <= name.y0 and name.y1 <= box.y1, f"{drawn.name}: {text.get_text()} is cut off"


def test_released_zeros_are_counted_among_those_that_were_removed(tmp_path: Path) -> None:
    """Half of the scope was removed; a quarter of it is still zero, which is half of what was removed."""
    write_tables(tmp_path, ["llama"], ["magnitude"], recipes=("released",), sparsities=("0.5",), text=False)

    def change(found: Tables) -> None:
        found["history"]["measured_sparsity"] = 0.25

    (figure,) = drawn(regrowth, study_of(tmp_path, change))
    assert "50 % are left after one step and 50 % at the end" in figure.caption
    assert figure.title.startswith("Released zeros grow back on sst2: of those of llama at 50 %, 50 % are left")


def test_released_zeros_that_stay_are_not_said_to_grow_back(tmp_path: Path) -> None:
    write_tables(tmp_path, ["llama"], ["magnitude"], recipes=("released",), sparsities=("0.5",), text=False)

    def change(found: Tables) -> None:
        found["history"]["measured_sparsity"] = 0.5

    (figure,) = drawn(regrowth, study_of(tmp_path, change))
    assert figure.title.startswith("Released zeros remain on sst2")


def test_each_variant_has_one_line_of_regrowth(tmp_path: Path) -> None:
    """Of several seeds and draws of the calibration text, the first."""
    write_tables(tmp_path, ["llama"], ["wanda"], 2, recipes=("released",), sparsities=("0.5",), text=False)

    def change(found: Tables) -> None:
        again = found["history"].assign(calibration_seed=1, measured_sparsity=0.9)
        found["history"] = pd.concat([found["history"], again])

    (figure,) = drawn(regrowth, study_of(tmp_path, change))
    (line,) = [line for line in figure.figure.axes[0].lines if len(line.get_xdata()) > 1]
    assert list(line.get_xdata()) == [0, 1, 5, 20]


def test_a_title_of_time_is_about_masks(tmp_path: Path) -> None:
    """A structured model has no mask and trains in half the time."""
    write_tables(tmp_path, ["llama"], ["magnitude", "structured"], text=False)

    def change(found: Tables) -> None:
        found["runs"].loc[found["runs"].method == "structured", "train_seconds"] /= 2

    titles = [figure.title for figure in drawn(by_sparsity, study_of(tmp_path, change))]
    assert "With a mask kept, training on sst2 takes 1.00 times as long as for the dense model" in titles


def test_times_of_several_machines_are_said_to_be(tmp_path: Path) -> None:
    write_tables(tmp_path, ["llama"], ["magnitude"], text=False)

    def change(found: Tables) -> None:
        found["runs"].loc[found["runs"].method == "magnitude", "device"] = "NVIDIA A100"

    captions = [figure.caption for figure in drawn(by_sparsity, study_of(tmp_path, change))]
    assert "Measured on several machines" in captions[-1] and "NVIDIA A100" in captions[-1]


@pytest.mark.slow
def test_a_caption_names_only_strokes_that_are_drawn(tmp_path: Path) -> None:
    write_tables(tmp_path / "kept", ["llama"], ["magnitude"], text=False)
    write_tables(tmp_path / "all", ["llama"], ["magnitude"], recipes=("kept", "released", "gradual"), text=False)
    plain, full = (drawn(by_sparsity, study_of(tmp_path / name))[0].caption for name in ("kept", "all"))
    assert "Solid: the recipe kept" in plain and "ashed" not in plain
    assert "dash-dotted: other recipes" in full and "dashed: released" in full


def test_means_are_over_the_same_tasks(tmp_path: Path) -> None:
    """Wanda was scored on one of two tasks: it stands in a figure of that task alone, beside those scored on both."""
    write_tables(tmp_path, ["llama"], ["magnitude", "wanda"], seeds=0)

    def change(found: Tables) -> None:
        text = found["metrics"][found["metrics"].metric == "perplexity"].assign(metric="acc")
        hard = text[text.method != "wanda"].assign(task="hard", value=0.2)
        found["metrics"] = pd.concat([text.assign(task="easy", value=0.8), hard])

    figures = {figure.name: figure for figure in drawn(zero_shot, study_of(tmp_path, change))}
    assert set(figures) == {"zero-shot-easy-hard", "zero-shot-easy"}
    values = {
        name: {float(y) for line in figure.figure.axes[0].lines for y in line.get_ydata()}
        for name, figure in figures.items()
    }
    assert values == {"zero-shot-easy-hard": {0.5}, "zero-shot-easy": {0.8}}
    assert "mean of 2 tasks" in figures["zero-shot-easy-hard"].title
    assert "on easy" in figures["zero-shot-easy"].title


def scored_on(*sets: tuple[str, ...]) -> Callable[[Tables], None]:
    """Zero-shot tasks: each method is scored on one set of them, the dense model on all."""

    def change(found: Tables) -> None:
        text = found["metrics"][found["metrics"].metric == "perplexity"].assign(metric="acc", value=0.5)
        methods = list(dict.fromkeys(text.method[text.method != "dense"]))
        found["metrics"] = pd.concat(
            text[text.method == method].assign(task=task)
            for method, tasks in [("dense", set().union(*sets)), *zip(methods, sets, strict=True)]
            for task in sorted(tasks)
        )

    return change


SUBJECTS = tuple(f"mmlu_subject_{number:02d}" for number in range(20))


@pytest.mark.slow
@pytest.mark.parametrize("sets", [(("a", "b"), ("a-b",)), (SUBJECTS, SUBJECTS[:19]), (("a-b", "c"), ("a", "b-c"))])
def test_figures_of_zero_shot_tasks_have_files_of_their_own(sets: tuple[tuple[str, ...], ...], tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["llama"], ["magnitude", "wanda"], seeds=0, sparsities=("0.5",))
    study = study_of(tmp_path / "tables", scored_on(*sets))
    names = {save(figure, tmp_path / "figures")["name"] for figure in drawn(zero_shot, study)}
    assert len(names) == 2 and max(map(len, names)) <= 120
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{suffix}" for name in names for suffix in ("svg", "png")
    }
    again = {save(figure, tmp_path / "figures")["name"] for figure in drawn(zero_shot, study)}
    assert again == names


@pytest.mark.slow
def test_metrics_of_splits_have_figures_of_their_own(tmp_path: Path) -> None:
    """Split `a` of task `b-t` and split `a-b` of task `t`."""
    write_tables(tmp_path, ["llama"], ["magnitude"], sparsities=("0.5",), text=False)

    def change(found: Tables) -> None:
        for name in ("metrics", "baselines", "runs", "tasks"):
            rows = found[name]
            parts = [rows.assign(task=task) for task in ("b-t", "t")]
            if name in ("metrics", "baselines"):
                splits = zip(parts, ("accuracy_a", "accuracy_a-b"), strict=True)
                parts += [mine[mine.metric == "accuracy"].assign(metric=metric) for mine, metric in splits]
            found[name] = pd.concat(parts, ignore_index=True)

    names = [figure.name for figure in drawn(by_sparsity, study_of(tmp_path, change))]
    assert len(names) == len(set(names)) == 10
    assert {"accuracy-t", "accuracy-b-t", "accuracy_a-b-t", "train-time-b-t"} < set(names)


def test_perplexity_of_a_harness_task_is_no_perplexity_of_text(tmp_path: Path) -> None:
    write_tables(tmp_path, ["llama"], ["magnitude"], seeds=0)

    def change(found: Tables) -> None:
        rows = found["metrics"]
        found["metrics"] = pd.concat([rows, rows.assign(task="lambada_openai")])

    assert [figure.name for figure in drawn(perplexity, study_of(tmp_path, change))] == ["perplexity-text"]


def test_errors_of_scopes_are_lines_of_their_own(tmp_path: Path) -> None:
    write_tables(tmp_path, ["llama"], ["wanda"], seeds=0, sparsities=("0.5",))

    def change(found: Tables) -> None:
        rows = found["tensors"]
        found["tensors"] = pd.concat([rows.assign(scope="attention"), rows.assign(scope="mlp", error=1.0)])

    (figure,) = drawn(layer_errors, study_of(tmp_path, change))
    (ax,) = figure.figure.axes
    assert [text.get_text() for text in ax.texts] == ["wanda, attention", "wanda, mlp"]
    assert [list(np.round(line.get_ydata(), 2)) for line in ax.lines] == [[0, 0.05, 0.1, 0.15], [1, 1, 1, 1]]
    assert figure.title == "The outputs of llama change most in layer 0, by wanda, 50 % of mlp"


def test_parts_have_intervals_and_any_sign(tmp_path: Path) -> None:
    """Each part has seeds -0.3 and -0.1: a point at -0.2, between the ends of the axis, with its t-interval."""
    write_tables(tmp_path, ["llama"], ["magnitude"], 2, sparsities=("0.5",), text=False)

    def change(found: Tables) -> None:
        for name in ("metrics", "sizes"):
            rows = found[name]
            pruned = [rows[rows.method != "dense"].assign(scope=scope) for scope in ("attention", "mlp")]
            found[name] = pd.concat([rows[rows.method == "dense"], *pruned], ignore_index=True)
        rows = found["metrics"]
        rows.loc[rows.method != "dense", "value"] = rows.seed.map({0: -0.3, 1: -0.1}).astype(float)

    (figure,) = drawn(parts, study_of(tmp_path, change))
    (ax,) = figure.figure.axes
    ends = [segment[:, 0] for bars in ax.collections for segment in bars.get_segments()]
    assert np.allclose(ends, [[-0.2 - 12.706 * 0.1, -0.2 + 12.706 * 0.1]] * 2, atol=1e-3)
    assert ax.get_xlim()[0] < -0.2 - 1.27
    assert "Bars are 95 % intervals." in figure.caption
    assert "has accuracy -0.200 whichever part is pruned" in figure.title


def parted(found: Tables) -> None:
    """Variants of two parts in place of one."""
    for name in ("metrics", "sizes", "runs"):
        rows = found[name]
        pruned = [rows[rows.method != "dense"].assign(scope=scope) for scope in ("attention", "mlp")]
        found[name] = pd.concat([rows[rows.method == "dense"], *pruned], ignore_index=True)


def test_parts_of_which_nothing_is_removed_are_not_drawn(tmp_path: Path) -> None:
    write_tables(tmp_path, ["llama"], ["magnitude"], sparsities=("0.5",), text=False)

    def change(found: Tables) -> None:
        quantised(found)
        parted(found)

    def beside(found: Tables) -> None:
        parted(found)
        for name in ("metrics", "sizes", "runs"):
            rows = found[name]
            codes = rows[rows.method != "dense"].assign(method="int8", sparsity=Sparsity("0"), fraction=0.0)
            found[name] = pd.concat([rows, codes], ignore_index=True)

    assert drawn(parts, study_of(tmp_path, change)) == []
    (figure,) = drawn(parts, study_of(tmp_path, beside))
    assert [ax.get_title(loc="left") for ax in figure.figure.axes] == ["llama: 50% of one part removed, magnitude"]
    assert figure.title.endswith(", 50 % of one part removed")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [parts, layer_errors, weights, by_sparsity, speed])
def test_names_of_panels_stay_in_their_panel(kind: Any, tmp_path: Path) -> None:
    models = ["Llama-3.2-1B-Instruct-finetuned", "Llama-3.2-1B-Instruct-finetuned-on-a-task-of-the-last-decade"]
    write_tables(tmp_path, models, ["sparsegpt+reconstruct"], text=False, speed=True)

    def change(found: Tables) -> None:
        parted(found)
        found["tensors"]["error"] = 0.1 * found["tensors"].layer.astype(float)
        rows = found["weights"]
        found["weights"] = pd.concat([rows, rows[rows.level == "layer"].assign(stack="decoder")], ignore_index=True)

    for figure in (each.figure for each in drawn(kind, study_of(tmp_path, change))):
        figure.draw_without_rendering()
        names = {ax.get_title(loc="left") for ax in figure.axes}
        boxes = [text.get_window_extent() for text in figure.findobj(Text) if text.get_text() in names]
        assert len(boxes) == len(figure.axes)
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert all(left.x1 < right.x0 for left, right in zip(boxes[::2], boxes[1::2], strict=False))


def test_weights_of_one_magnitude_are_drawn_on_the_whole_grid(tmp_path: Path) -> None:
    """Of binary weights every one has the magnitude 0.03."""
    write_tables(tmp_path, ["llama"], ["magnitude"], seeds=0)

    def change(found: Tables) -> None:
        rows = found["weights"]
        curve = rows.statistic == "cumulative"
        rows.loc[curve, "value"] = (rows.x[curve] > 0.03).astype(float)

    layers = {figure.name: figure for figure in drawn(weights, study_of(tmp_path, change))}["layers-llama"]
    assert layers.figure.axes[0].get_xlim() == pytest.approx((1e-5, 10))


@pytest.mark.slow
def test_a_caption_is_true_for_every_model(tmp_path: Path) -> None:
    """One model has three seeds and accuracy 0.96, the other one seed and 0.56, each on 400 examples."""
    write_tables(tmp_path, ["llama", "opt"], ["magnitude"], 3, text=False)

    def change(found: Tables) -> None:
        for name in ("metrics", "runs"):
            found[name] = found[name][(found[name].model == "llama") | (found[name].seed == 0)].copy()
        found["metrics"]["value"] = found["metrics"].model.map({"llama": 0.96, "opt": 0.56})

    caption = drawn(by_sparsity, study_of(tmp_path, change))[0].caption
    assert (
        "1 to 3 seeds: small points; line and band are their mean and its 95 % t-interval; one seed has no" in caption
    )
    assert "near the dense accuracy of 0.56 to 0.96, their number alone leaves ±2.0 to 4.8 points" in caption


def test_the_fastest_is_one_that_is_drawn_and_not_noise(tmp_path: Path) -> None:
    write_tables(tmp_path, ["llama"], ["magnitude"], seeds=0, speed=True)

    def title(change: Callable[[pd.DataFrame], Any]) -> str:
        (figure,) = drawn(speed, study_of(tmp_path, lambda found: change(found["speed"])))
        return figure.title

    def slow(rows: pd.DataFrame) -> None:
        rows.loc[rows.execution == "sparse", ["speedup", "speedup_low", "speedup_high"]] = [0.5, 0.4, 0.6]
        rows.loc[(rows.execution == "dense") & (rows.method != "dense"), "speedup"] = 1.01

    def other(rows: pd.DataFrame) -> None:
        rows.loc[(rows.execution == "dense") & (rows.sparsity == Sparsity("0.9")), ["execution", "speedup"]] = [
            "fastest", 9.0,
        ]  # fmt: skip

    assert title(slow).startswith(
        "Nothing is measurably faster than the dense model at batch 1; the nearest (0.50 times)"
    )
    assert (
        title(other)
        == "At most 1.60 times as fast as dense at batch 1: llama, magnitude, 90 % of linear, sparse execution"
    )


def test_the_limit_of_decoding_and_the_first_break_even_are_named_once(tmp_path: Path) -> None:
    write_tables(tmp_path, ["llama"], ["magnitude", "wanda"], seeds=0, speed=True)

    def change(found: Tables) -> None:
        rows = found["speed"]
        found["speed"] = rows.assign(phase="decode", limit=1 / (1.0625 - rows.fraction))
        rows = found["speed"]
        early = (rows.execution == "sparse") & (rows.method == "magnitude") & (rows.sparsity == Sparsity("0.5"))
        times = ["speedup", "speedup_low", "speedup_high"]
        rows.loc[(rows.execution == "sparse") & (rows.sparsity == Sparsity("0.5")), times] = [0.5, 0.4, 0.6]
        rows.loc[early, times] = [0.9, 0.8, 1.0]

    (figure,) = drawn(speed, study_of(tmp_path, change))
    (ax,) = figure.figure.axes
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("limit") == 1
    assert [text for text in texts if "break-even" in text] == ["break-even 56%"]  # 0.5 + 0.4 * 0.1 / 0.7
    assert ax.get_ylim()[1] > 1 / 0.1625


def test_the_smallest_file_is_one_that_is_drawn(tmp_path: Path) -> None:
    write_tables(tmp_path, ["llama"], ["magnitude"], seeds=0, sparsities=("0.5",))

    def change(found: Tables) -> None:
        small = found["sizes"].iloc[[1]].assign(method="int4", sparsity=Sparsity("0"), fraction=0.0, ratio=0.1)
        found["sizes"] = pd.concat([found["sizes"], small])

    (figure,) = drawn(size, study_of(tmp_path, change))
    assert figure.title == "llama by magnitude, 50 % of linear takes 50 % of the dense bytes"


def test_the_frontier_leads_with_the_most_telling_model(tmp_path: Path) -> None:
    """The first model has learned nothing; the title is about the second."""
    write_tables(tmp_path, ["none", "llama"], ["magnitude"], 3, text=False)

    def change(found: Tables) -> None:
        found["metrics"].loc[found["metrics"].model == "none", "value"] = 0.5

    (figure,) = drawn(frontier, study_of(tmp_path, change))
    assert "llama" in figure.title


def test_intervals_of_the_chart_are_whole(tmp_path: Path) -> None:
    write_tables(tmp_path, ["llama"], ["magnitude"], 3, recipes=("gradual",), text=False)

    def change(found: Tables) -> None:
        rows = found["metrics"]
        rows.loc[rows.method != "dense", "value"] += rows.seed[rows.method != "dense"].astype(float) / 30

    study = study_of(tmp_path, change)
    (question,) = questions(study.tables)
    ends = [end for point in chart(study.tables, question.options, study.models)["points"] for end in point["whisker"]]
    assert ends and all(0 < end < 100 for end in ends)


@pytest.mark.parametrize(
    ("low", "high", "log"), [(42.9, 43.4, True), (20, 1e9, True), (3, 2e304, True), (-1, 1, False), (0.7, 0.71, False)]
)
def test_an_axis_has_round_ticks_at_any_range(low: float, high: float, log: bool) -> None:
    found = ticks(low, high, log=log)
    assert 2 <= len(found) <= 12
    assert low <= found[0] and found[-1] <= high
    assert all(math.isclose(float(f"{tick:.3g}"), tick) for tick in found)


@pytest.mark.parametrize("up", [0, 7])
def test_names_of_many_points_stay_in_their_panel(up: int) -> None:
    """Twelve points below the top: names beside them move down; around a point there is no room for all."""
    figure, ax = plt.subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    name_points(figure, {ax: [(0.5, 0.9 + number / 200, f"name {number}", "black") for number in range(12)]}, up=up)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert all(box.y1 < ax.bbox.y1 + 20 * (up > 0) for box in boxes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert len(boxes) == 12 if up == 0 else 4 <= len(boxes) < 12


def test_names_are_legible_in_every_colour() -> None:
    assert legible("#000000") == "#000000"
    for colour in ("#E69F00", "#56B4E9", "#ffffff"):
        red, green, blue = mpl.colors.to_rgb(legible(colour))
        assert 0.2126 * red**2.4 + 0.7152 * green**2.4 + 0.0722 * blue**2.4 < 0.2
