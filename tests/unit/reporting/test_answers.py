"""What tables say, in sentences and small tables. All numbers are MADE UP."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm_sparsity.reporting.answers import answers, questions, ranked, title
from llm_sparsity.reporting.claims import load
from llm_sparsity.reporting.figures.drawing import SECTIONS
from llm_sparsity.reporting.numbers import results, versions
from llm_sparsity.reporting.page import page
from llm_sparsity.reporting.summary import summary
from llm_sparsity.reporting.tables import frame, read
from llm_sparsity.reporting.wording import resolution, scope_name
from tests.tables import CLAIMS, write_tables


def summary_of(folder: Path) -> str:
    """The summary, its sentences on one line each."""
    return summary(read(folder / "tables"), folder, load(CLAIMS)).replace("\n  ", " ")


def page_of(folder: Path, config: Mapping[str, Any], claims: Path | None = CLAIMS) -> str:
    """The page without figures, which take most of the time."""
    return page(read(folder / "tables"), config, {}, {name: [] for name in SECTIONS}, load(claims) if claims else None)


def told(folder: Path) -> list[str]:
    """The sentences of a study."""
    data = read(folder / "tables")
    return answers(data, ranked(questions(data)))


def changed(folder: Path, table: str, where: dict[str, str], **values: Any) -> None:
    """Change values of some rows of a table on disk."""
    rows = pd.read_csv(folder / f"tables/{table}.csv", dtype=str, keep_default_na=False)
    chosen = (rows[list(where)] == list(where.values())).all(axis=1)
    assert chosen.any()
    for column, value in values.items():
        rows.loc[chosen, column] = str(value)
    rows.to_csv(folder / f"tables/{table}.csv", index=False)


def test_the_answer_is_made_from_the_tables(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], recipes=("kept", "released"), judged=True)
    told = summary_of(tmp_path)
    dense, half = (f"{value:.3f}" for value in _accuracies(tmp_path, "kept")[:2])
    assert (
        "This study does not decide whether minilm stays within 2 points of its dense accuracy on sst2: magnitude, "
        f"50 % of linear has accuracy {half} against {dense} of the dense model, from 400 examples and one seed; it "
        "would take three seeds or more." in told
    )
    assert (
        "On text, no pruned minilm stays within 10 % of its dense perplexity; the mildest is magnitude, 50 % of "
        "linear, with perplexity 94.9 against 30.0 of the dense model." in told
    )
    assert "of the 90 % removed of minilm, 1.1 % are still zero after fine-tuning" in told  # .01 of .9
    assert "The smallest file takes 10 % of the dense model in the same container" in told
    claims = "Claims of an earlier report, judged by these results"
    assert f"{claims}: 1 do not hold, 4 are undecided." in told


def test_a_study_without_claims_says_nothing_of_them(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["roberta-base"], ["magnitude"])
    shown = page_of(tmp_path, config, claims=None)
    assert 'id="claims"' not in shown
    assert "#claims" not in shown
    assert "Claims" not in summary(read(tmp_path / "tables"), tmp_path)


def test_a_study_with_a_hostile_name_is_shown_not_run(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], text=False)
    shown = page_of(tmp_path, config | {"name": "<script>alert(1)</script>"})
    assert "&lt;script&gt;alert" in shown
    assert "<script>alert" not in shown


def test_the_method_matters_at_one_sparsity(tmp_path: Path) -> None:
    """The worst value at half of the weights is that of 2of4, which is another sparsity than 0.5."""
    write_tables(tmp_path / "tables", ["llama"], ["magnitude", "uniform"], seeds=0, sparsities=("0.5", "2of4"))
    for method, sparsity, value in (
        ("magnitude", "0.5", 68), ("uniform", "0.5", 100), ("magnitude", "2of4", 1300), ("uniform", "2of4", 1595),
    ):  # fmt: skip
        where = {"method": method, "sparsity": sparsity, "metric": "perplexity"}
        changed(tmp_path, "metrics", where, value=value)
    told = summary_of(tmp_path)
    gap = "The method matters: with {} linear of llama removed, magnitude has perplexity {} on text, uniform {}."
    assert gap.format("50 % of", "68.0", "100.0") in told
    changed(tmp_path, "metrics", {"method": "uniform", "sparsity": "2of4", "metric": "perplexity"}, value=15950)
    told = summary_of(tmp_path)
    assert gap.format("2of4 in", "1,300.0", "15,950.0") in told


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
    write_tables(tmp_path / "tables", ["llama"], ["magnitude"], seeds=0, sparsities=("0.5", "2of4"))
    changed(tmp_path, "metrics", {"sparsity": "0.5", "metric": "perplexity"}, value=31)
    assert "at 50 % of its bytes: magnitude, 50 % of linear, with perplexity 31.0" in summary_of(tmp_path)
    changed(tmp_path, "metrics", {"sparsity": "2of4", "metric": "perplexity"}, value=32)
    changed(tmp_path, "sizes", {"sparsity": "2of4"}, ratio=0.45)
    assert "at 45 % of its bytes: magnitude, 2of4 in linear, with perplexity 32.0" in summary_of(tmp_path)


def test_different_versions_are_said_in_one_line(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], speed=True)
    assert versions(read(tmp_path / "tables")) == ""
    changed(tmp_path, "metrics", {"sparsity": "0.9", "task": "sst2"}, torch="2.0")
    changed(tmp_path, "speed", {"sparsity": "0.9"}, torch="2.0")
    line = (
        "Results come from different versions, so they may differ for that reason: torch 1.0 (7 runs), torch 2.0 "
        "(2 runs)."
    )  # 3 fine-tunings, 3 evaluations, 3 measurements
    assert line in summary_of(tmp_path).splitlines()
    assert line in page_of(tmp_path, config)


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
    return told(folder)[0]


WITHIN = "On sst2, minilm stays within 2 points of its dense accuracy "
OPEN = "This study does not decide whether minilm stays within 2 points of its dense accuracy on sst2: "
DENSE = "against 0.900 of the dense model"


def test_how_small_a_model_may_get_is_decided_by_the_interval_of_the_difference(tmp_path: Path) -> None:
    found = accuracies_of(tmp_path, 3, s0=0.9, s30=0.9, s50=0.895, s90=0.6)
    assert found == f"{WITHIN}at 50 % of its bytes: magnitude, 50 % of linear, with accuracy 0.895 {DENSE}."
    # 20,000 examples: the difference is known to ±0.6 points, so -1.7 may be more than two points, -1.3 is not
    found = accuracies_of(tmp_path, 3, s0=0.9, s30=0.887, s50=0.883, s90=0.6)
    assert found == f"{WITHIN}at 70 % of its bytes: magnitude, 30 % of linear, with accuracy 0.887 {DENSE}."


def test_what_the_interval_leaves_open_is_said_to_be_not_decided(tmp_path: Path) -> None:
    found = accuracies_of(tmp_path, 3, s0=0.9, s30=0.883, s50=0.5, s90=0.5)
    assert found == (
        f"{OPEN}magnitude, 30 % of linear has accuracy 0.883 {DENSE}, from 20000 examples and 3 seeds; it would take "
        "about 83,000 examples."
    )  # 20,000 x (0.61 / 0.3)^2


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    found = accuracies_of(tmp_path, 1, s0=0.9, s30=0.9, s50=0.9, s90=0.6)
    assert found.startswith(f"{OPEN}magnitude, 50 % of linear has accuracy 0.900 {DENSE}, from 20000 examples and one")


def test_a_point_that_is_good_by_luck_does_not_win(tmp_path: Path) -> None:
    found = accuracies_of(tmp_path, 3, s0=0.9, s30=0.9, s50=0.8, s90=0.9)
    assert found == f"{WITHIN}at 70 % of its bytes: magnitude, 30 % of linear, with accuracy 0.900 {DENSE}."
    found = accuracies_of(tmp_path, 3, s0=0.9, s30=0.8, s50=0.8, s90=0.9)
    assert found == (
        f"{OPEN}magnitude, 90 % of linear does, with accuracy 0.900 {DENSE}, but magnitude, 50 % of linear does not."
    )
    data = read(tmp_path / "tables")
    (question,) = (each for each in questions(data) if each.task == "sst2")
    assert title([question]).startswith(
        "This study does not decide how much of minilm can be removed on sst2; the best"
    )
    found = accuracies_of(tmp_path, 3, s0=0.9, s30=0.8, s50=0.8, s90=0.7)
    assert found == (
        "On sst2, no pruned minilm stays within 2 points of its dense accuracy; the mildest is magnitude, 30 % of "
        f"linear, with accuracy 0.800 {DENSE}."
    )


def test_a_sparsity_that_diverged_ends_a_sweep(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["llama"], ["magnitude"], seeds=0, sparsities=("0.3", "0.5", "0.7"))
    for sparsity, value in (("0.3", "31"), ("0.5", ""), ("0.7", "30.5")):
        changed(tmp_path, "metrics", {"sparsity": sparsity, "metric": "perplexity"}, value=value)
    assert "at 70 % of its bytes: magnitude, 30 % of linear, with perplexity 31.0" in summary_of(tmp_path)
    changed(tmp_path, "metrics", {"sparsity": "0.3", "metric": "perplexity"}, value="")
    assert (
        "does not decide whether llama stays within 10 % of its dense perplexity on text: magnitude, 70 % of linear "
        "does, with perplexity 30.5 against 30.0 of the dense model, but the same at 50 % diverged."
    ) in summary_of(tmp_path)


def test_a_good_model_of_unequal_classes_is_told(tmp_path: Path) -> None:
    """The most frequent label alone has 0.985: no model can be two points above it."""
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, text=False, sparsities=("0.5",))
    changed(tmp_path, "baselines", {"task": "sst2", "metric": "accuracy"}, value=0.985)
    changed(tmp_path, "runs", {"task": "sst2"}, validation_examples=20_000)
    changed(tmp_path, "metrics", {"metric": "accuracy"}, value=0.998)
    assert told(tmp_path)[0].startswith(WITHIN)
    changed(tmp_path, "metrics", {"metric": "accuracy"}, value=0.986)
    assert told(tmp_path)[0].startswith("On sst2, minilm shows nothing: the dense model is hardly better than")


def test_a_model_that_is_only_quantised_has_its_own_numbers(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["llama"], ["magnitude"], seeds=0, sparsities=("0.5",))
    rows = pd.read_csv(tmp_path / "tables/metrics.csv", dtype=str, keep_default_na=False)
    codes = rows[rows.sparsity == "0.5"].assign(method="int8", sparsity="0", fraction="0")
    codes.loc[codes.metric == "perplexity", "value"] = "77.7"
    pd.concat([rows, codes]).to_csv(tmp_path / "tables/metrics.csv", index=False)
    (table,) = (table for table in results(read(tmp_path / "tables")) if table["metric"] == "perplexity")
    assert table["heads"][4:] == ["0 %", "50 %"]
    assert [(line[1], line[4]) for line in table["lines"]] == [("magnitude", "30.0"), ("int8", "77.7")]
    pd.concat([rows[rows.method == "dense"], codes]).to_csv(tmp_path / "tables/metrics.csv", index=False)
    (table,) = (table for table in results(read(tmp_path / "tables")) if table["metric"] == "perplexity")
    assert [(line[1], line[4]) for line in table["lines"]] == [("dense", "30.0"), ("int8", "77.7")]


def test_numbers_of_one_seed_have_no_interval_whatever_the_score(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 1, text=False)
    rows = pd.read_csv(tmp_path / "tables/metrics.csv", dtype=str, keep_default_na=False)
    error = rows[rows.metric == "accuracy"].assign(metric="accuracy_stderr", value="0.04")
    pd.concat([rows, error]).to_csv(tmp_path / "tables/metrics.csv", index=False)
    (table,) = (table for table in results(read(tmp_path / "tables")) if table["metric"] == "accuracy")
    assert not any("±" in value for line in table["lines"] for value in line)


def test_a_study_without_a_verdict_says_why(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["random"], 3)
    assert "This study names no model to take." in summary_of(tmp_path)
    assert told(tmp_path)[0].startswith("A verdict is about a pruned model and its dense one")
    assert "A verdict is about a pruned model and its dense one" in page_of(tmp_path, config)


def test_choosing_among_methods_is_corrected_for(tmp_path: Path) -> None:
    """-1.3 points ± 0.60 of one method alone are inside; of the best of eight methods they are not (± 0.84)."""
    methods = ["magnitude", "uniform", "wanda", "sparsegpt", "admm", "owl", "block", "ria"]
    for chosen, decided in ((methods[:1], True), (methods, False)):
        folder = tmp_path / str(len(chosen))
        write_tables(folder / "tables", ["minilm"], chosen, 3, text=False, sparsities=("0.5",))
        changed(folder, "runs", {"task": "sst2"}, validation_examples=20_000)
        changed(folder, "metrics", {"task": "sst2", "method": "dense"}, value=0.9)
        changed(folder, "metrics", {"task": "sst2", "fraction": "0.5"}, value=0.887)
        assert ("does not decide" not in told(folder)[0]) is decided


def test_a_pattern_does_not_stop_a_sweep(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["llama"], ["magnitude"], seeds=0, sparsities=("0.5", "2of4", "0.7"))
    for sparsity, value in (("0.5", 31), ("2of4", 99), ("0.7", 32)):
        changed(tmp_path, "metrics", {"sparsity": sparsity, "metric": "perplexity"}, value=value)
    assert "at 30 % of its bytes: magnitude, 70 % of linear, with perplexity 32.0" in summary_of(tmp_path)


def test_a_model_that_diverged_is_said_to_have(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, recipes=("kept", "gradual"))
    changed(tmp_path, "metrics", {"recipe": "kept", "sparsity": "0.9", "seed": "1"}, value="")
    changed(tmp_path, "metrics", {"task": "text", "sparsity": "0.5"}, value="")
    rows = [line for table in results(read(tmp_path / "tables")) for line in table["lines"]]
    assert next(row for row in rows if "kept" in row)[-1] == "diverged"
    assert ["minilm", "magnitude", "linear", "", "30.0", "diverged", "238.3"] in rows
    assert not re.search(r"\bnan\b|\binf\b", summary_of(tmp_path))
    shown = page_of(tmp_path, config)
    assert ">diverged<" in shown
    assert not re.search(r">[^<]*\b(nan|inf)\b", shown)


def test_every_model_may_have_diverged(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude", "uniform"], 3, speed=True)
    metrics = pd.read_csv(tmp_path / "tables/metrics.csv", dtype=str, keep_default_na=False)
    metrics.assign(value="").to_csv(tmp_path / "tables/metrics.csv", index=False)
    assert "This study names no model to take" in summary_of(tmp_path)
    assert "This study has nothing to recommend" in page_of(tmp_path, config)


@pytest.mark.slow
def test_what_training_on_text_brings_back_is_told_against_a_dense_model_that_was_trained_too(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["smollm2"], ["wanda"], seeds=0, recovered=("kept", "lora"))
    rows = [line for table in results(read(tmp_path / "tables")) for line in table["lines"]]
    assert ["smollm2", "wanda", "linear", "not trained", "30.0", "94.9", "238.3"] in rows
    assert ["smollm2", "wanda", "linear", "lora", "20.0", "30.0", "41.5"] in rows
    assert "Training recovers" not in summary_of(tmp_path)  # from one seed
    write_tables(tmp_path / "tables", ["smollm2"], ["wanda"], seeds=2, recovered=("kept", "lora"))
    found = (
        "Training recovers: on text, smollm2 at 90 % (wanda) goes from perplexity 238.3 to {} by {}; the dense "
        "model, trained by kept, has 20.0"
    )
    assert found.format("41.5", "lora") in summary_of(tmp_path)
    changed(tmp_path, "metrics", {"task": "text", "recipe": "lora", "metric": "perplexity"}, value=300)
    assert found.format("69.6", "kept") in summary_of(tmp_path)
    changed(tmp_path, "metrics", {"task": "text", "recipe": "kept", "method": "wanda"}, value=300)
    assert "Training recovers" not in summary_of(tmp_path)


def perplexities(folder: Path, values: dict[str, float], **arguments: Any) -> str:
    """The summary of a study of llama at half of its weights, by method."""
    write_tables(folder / "tables", ["llama"], list(values), seeds=0, sparsities=("0.5",), **arguments)
    for method, value in values.items():
        changed(folder, "metrics", {"method": method, "metric": "perplexity"}, value=value)
    return summary_of(folder)


def test_a_gap_that_chance_explains_is_not_told(tmp_path: Path) -> None:
    """Windows leave 1 % of chance to each of the two, so 5.4 % to the difference of three pairs of methods."""
    values = {"magnitude": 60.0, "uniform": 63.0, "block": 61.0}
    assert "The method matters" not in perplexities(tmp_path, values)
    assert "magnitude has perplexity 60.0 on text, uniform 70.0" in perplexities(tmp_path, values | {"uniform": 70.0})


def test_one_draw_of_the_calibration_text_decides_nothing(tmp_path: Path) -> None:
    told = perplexities(tmp_path, {"wanda": 30.1, "magnitude": 900.0})
    assert "The method matters" not in told
    assert (
        "This study does not decide whether llama stays within 10 % of its dense perplexity on text: wanda, 50 % of "
        "linear has perplexity 30.1 against 30.0 of the dense model, from 20 windows and one calibration draw; it "
        "would take three calibration draws or more." in told
    )
    metrics = pd.read_csv(tmp_path / "tables/metrics.csv", dtype=str, keep_default_na=False)
    wanda = metrics[metrics.method == "wanda"]
    draws = [wanda.assign(calibration_seed=str(seed)) for seed in (1, 2)]
    pd.concat([metrics, *draws]).to_csv(tmp_path / "tables/metrics.csv", index=False)
    told = summary_of(tmp_path)
    assert "llama stays within 10 % of its dense perplexity at 50 % of its bytes: wanda" in told
    assert "The method matters" in told


def test_perplexities_are_compared_on_logarithms_whichever_comes_first(tmp_path: Path) -> None:
    """Draws of 60 and 80 leave a difference of log 4.3 ± 1.8 to 300: with a ratio of .23 ± .43, 1 would be outside."""
    perplexities(tmp_path, {"wanda": 60.0, "magnitude": 300.0})
    metrics = pd.read_csv(tmp_path / "tables/metrics.csv", dtype=str, keep_default_na=False)
    second = metrics[metrics.method == "wanda"].assign(calibration_seed="1")
    second.loc[second.metric == "perplexity", "value"] = "80"
    pd.concat([metrics, second]).to_csv(tmp_path / "tables/metrics.csv", index=False)
    assert "The method matters" not in summary_of(tmp_path)


def test_a_text_that_is_trained_on_too_has_two_dense_scores(tmp_path: Path) -> None:
    told = perplexities(tmp_path, {"magnitude": 31.0}, recovered=("kept",))
    assert "llama on text: perplexity 30.0, and 20.0 trained, dense" in told


def test_a_study_of_dense_models_has_its_numbers(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["llama"], ["magnitude"], text=False, sparsities=())
    (table,) = (each for each in results(read(tmp_path / "tables")) if each["metric"] == "accuracy")
    assert [line[:2] for line in table["lines"]] == [["llama", "dense"]]


def test_a_zero_shot_task_of_another_metric_is_on_the_page(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["llama"], ["magnitude"], seeds=0)
    data = read(tmp_path / "tables")
    rows = data["metrics"][data["metrics"].metric == "perplexity"]
    scores = [
        rows.assign(task=task, metric=metric) for task, metric in (("cola", "mcc"), ("rte", "acc"), ("rte", "f1"))
    ]
    shown = {(each["task"], each["metric"]): each["main"] for each in results(data | {"metrics": pd.concat(scores)})}
    assert shown == {("cola", "mcc"): True, ("rte", "acc"): True, ("rte", "F1"): False}


def test_one_window_of_text_decides_nothing(tmp_path: Path) -> None:
    perplexities(tmp_path, {"magnitude": 30.1})
    changed(tmp_path, "metrics", {"task": "text"}, windows=1)
    assert "from one window; it would take more windows." in summary_of(tmp_path)


def test_windows_that_differ_leave_a_perplexity_open(tmp_path: Path) -> None:
    """31.5 of 30 with an error of 5 %: log ± 2.09 (t of 19) x .05, of which log 1.1 - log 1.05 is allowed."""
    perplexities(tmp_path, {"magnitude": 31.5})
    changed(tmp_path, "metrics", {"metric": "perplexity_paired_stderr"}, value=0.05)
    assert "it would take about 110 windows." in summary_of(tmp_path)


def test_each_pattern_is_a_further_test(tmp_path: Path) -> None:
    """Patterns lie on no sweep: with two beside a fraction, intervals are those of three comparisons."""
    for sparsities, tests in ((("0.3", "0.5"), 1), (("0.3", "0.5", "2of4"), 2), (("2of4", "1of4"), 2)):
        folder = tmp_path / "-".join(sparsities)
        write_tables(folder / "tables", ["minilm"], ["magnitude"], 3, text=False, sparsities=sparsities)
        (asked,) = questions(read(folder / "tables"))
        assert asked.verdict and asked.verdict.comparisons == tests


def test_a_recipe_that_is_no_better_is_not_told(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, text=False, recipes=("kept", "gradual"))
    changed(tmp_path, "metrics", {"recipe": "gradual", "metric": "accuracy"}, value=0.1)
    assert "The recipe matters" not in summary_of(tmp_path)
    write_tables(tmp_path / "tables", ["minilm"], ["random"], 3, text=False, recipes=("kept", "gradual"))
    assert "The recipe matters" not in summary_of(tmp_path)  # a control, which nobody takes


@pytest.mark.parametrize(
    ("method", "told"),
    [("magnitude", "No variant runs measurably faster"), ("structured", "The fastest runs 1.02 times as fast")],
)
def test_a_masked_model_in_dense_execution_is_no_faster(method: str, told: str, tmp_path: Path) -> None:
    """It has the shapes of the dense model. One that was cut is smaller."""
    write_tables(tmp_path / "tables", ["minilm"], [method], text=False, sparsities=("0.5",), speed=True)
    rows = {"method": method, "execution": "dense"}
    changed(tmp_path, "speed", rows, speedup=1.02, speedup_low=1.01)
    changed(tmp_path, "speed", {"execution": "sparse"}, speedup=1.01, speedup_low=0.99)
    assert told in summary_of(tmp_path)


@pytest.mark.parametrize(("left", "told"), [(0.225, "of the 90 % removed of minilm, 25 % are still zero"), (0.9, "")])
def test_zeros_that_are_left_are_a_share_of_those_removed(left: float, told: str, tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 2, text=False, recipes=("kept", "released"))
    changed(tmp_path, "runs", {"recipe": "released", "sparsity": "0.9"}, measured_sparsity=left)
    found = summary_of(tmp_path)
    assert told in found if told else "grow back" not in found


def test_a_constant_score_below_zero_is_no_share(tmp_path: Path) -> None:
    """A Matthews correlation of which no error is known: p (1 - p) would be negative."""
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, text=False, score="matthews_correlation")
    metrics = pd.read_csv(tmp_path / "tables/metrics.csv", dtype=str, keep_default_na=False)
    metrics = metrics[~metrics.metric.str.endswith("_stderr")]
    metrics.assign(value="-0.1").to_csv(tmp_path / "tables/metrics.csv", index=False)
    data = read(tmp_path / "tables")
    assert resolution(data, "sst2") == "The validation split has 400 examples."
    (asked,) = questions(data)
    assert asked.verdict and asked.verdict.decided is None


def test_nine_runs_of_three_seeds_are_three_values(tmp_path: Path) -> None:
    """Draws of the calibration text share the seeds of fine-tuning: t of 2, on the page as in the decision."""
    write_tables(tmp_path / "tables", ["minilm"], ["wanda"], 3, text=False, sparsities=("0.5",))
    once = results(read(tmp_path / "tables"))
    for table in ("metrics", "runs"):
        rows = pd.read_csv(tmp_path / f"tables/{table}.csv", dtype=str, keep_default_na=False)
        draws = [rows[rows.method == "wanda"].assign(calibration_seed=str(seed)) for seed in (1, 2)]
        pd.concat([rows, *draws]).to_csv(tmp_path / f"tables/{table}.csv", index=False)
    data = read(tmp_path / "tables")
    assert results(data) == once
    assert len(next(o for asked in questions(data) for o in asked.options if not o.is_dense).values) == 3


def test_a_task_is_judged_by_its_own_score(tmp_path: Path) -> None:
    write_tables(
        tmp_path / "tables", ["minilm"], ["magnitude"], 3, text=False, score="matthews_correlation",
        recipes=("kept", "gradual"),
    )  # fmt: skip
    # Accuracy would say otherwise: there, nothing is lost.
    changed(tmp_path, "metrics", {"metric": "accuracy"}, value=0.9)
    told = " ".join(summary_of(tmp_path).split())
    assert "of its dense Matthews correlation on sst2" in told
    assert "minilm on sst2: Matthews correlation 0.9" in told
    assert "reaches Matthews correlation" in told
    assert "accuracy" not in told


def test_the_error_of_a_score_over_examples_widens_its_interval(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, text=False, score="pearsonr")
    data = read(tmp_path / "tables")
    (asked,) = questions(data)
    option = next(option for option in asked.options if not option.is_dense)
    change = option.change()
    assert change is not None
    assert change.sampling == pytest.approx(1.96 * (0.04**2 + 0.04**2) ** 0.5, rel=1e-3)
    assert "near the dense Pearson correlation of 0.9" in resolution(data, "sst2")


def test_a_validation_split_that_was_trained_on_is_told_first(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], text=False)
    flatter = "Scores on sst2 flatter: 1 % of its 400 validation examples are training examples of the recipe kept too"
    changed(tmp_path, "runs", {"task": "sst2", "recipe": "kept"}, seen_examples=3)
    assert flatter[:15] not in summary_of(tmp_path)  # fewer than one in a hundred
    changed(tmp_path, "runs", {"task": "sst2", "recipe": "kept"}, seen_examples=4)
    assert told(tmp_path)[0].startswith(flatter)


def test_many_models_are_told_by_their_extremes(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", [f"model-{n}" for n in range(6)], ["magnitude"], text=False)
    assert sum("dense accuracy" in line for line in told(tmp_path)) == 4
    assert "The page has 2 more." in summary_of(tmp_path)


def test_a_model_of_codes_has_a_caveat(tmp_path: Path) -> None:
    """Quantising a model that is published as 4-bit codes costs less than it would cost others."""
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], text=False)
    source = {"package": "p==1", "path": "p/minilm.Q4_1.gguf"}
    said = "minilm is published as a file of 4-bit codes (Q4_1). That flatters quantising here"
    known, unknown = ({"models": {"minilm": {"source": each}}} for each in (source, {"folder": "minilm"}))
    for config, times in ((known, 1), (unknown, 0), (None, 0)):
        text = summary(read(tmp_path / "tables"), tmp_path, config=config)
        assert " ".join(text.split()).count(said) == times


@pytest.mark.parametrize(("examples", "accuracy", "band"), [(408, 0.86, 3.4), (872, 0.93, 1.7)])
def test_what_a_validation_split_can_tell(examples: int, accuracy: float, band: float) -> None:
    """MRPC's and SST-2's, at the accuracies that BERT reaches."""
    dense = {"task": "t", "method": "dense", "sparsity": "0"}
    data = {
        "tasks": frame("tasks", [{"task": "t", "score": "accuracy"}]),
        "metrics": frame("metrics", [dense | {"metric": "accuracy", "value": accuracy}]),
        "runs": frame("runs", [dense | {"validation_examples": examples}]),
    }
    assert f"their number alone leaves ±{band} points of chance (95 %)" in resolution(data, "t")


def test_a_recipe_has_a_line_and_an_answer_of_its_own(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, recipes=("kept", "gradual"))
    told = " ".join(summary_of(tmp_path).split())
    assert "The recipe matters: minilm without 90 % of linear reaches accuracy" in told
    assert "by kept, but" not in told
    history = tmp_path / "tables" / "history.csv"
    steps = pd.read_csv(history, keep_default_na=False)
    steps.loc[steps.recipe == "gradual", "step"] *= 4000
    steps.to_csv(history, index=False)
    assert re.search(
        r"by gradual, 0\.\d+ by kept, but in 80,000 steps, not 20\.", " ".join(summary_of(tmp_path).split())
    )
    (table,) = (each for each in results(read(tmp_path / "tables")) if each["metric"] == "accuracy")
    kept, gradual = table["lines"]
    assert kept != gradual
    assert str(kept).count("±") == str(gradual).count("±") == 3  # three seeds at each of three sparsities


@pytest.mark.parametrize(
    ("scope", "name"),
    [("linear", "linear"), ("layers.3.4.5", "layers 3-5"), ("layers.7", "layer 7"), ("layers.1.4", "layers 1, 4")],
)
def test_scopes_for_readers(scope: str, name: str) -> None:
    assert scope_name(scope) == name
