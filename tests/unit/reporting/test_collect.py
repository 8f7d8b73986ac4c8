"""Tables from results. The results are MADE UP: a folder of files as the stages leave them."""

import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.reporting.collect import collect
from llm_sparsity.reporting.tables import COLUMNS, INFERENCE, read
from llm_sparsity.storage.files import read_json, write_csv, write_json
from llm_sparsity.study.cells import Variant, expand
from llm_sparsity.study.sparsity import Sparsity
from tests.tables import CLAIMS

STUDY: dict[str, Any] = {
    "study": "made-up",
    "grids": [
        {
            "models": ["minilm", "gpt2"], "methods": ["magnitude"], "scopes": ["linear"],
            "sparsities": ["0", "0.5", "2of4"], "tasks": ["sst2"], "recipes": ["kept", "released"], "seeds": [0, 1],
            "measure": True,
        },
        {
            "models": ["gpt2"], "methods": ["magnitude"], "scopes": ["linear"],
            "sparsities": ["0.5"], "tasks": ["text"], "recipes": ["kept"], "seeds": [0], "measure": False,
        },
    ],
    "stages": {"sst2": ["finetune"], "text": ["evaluate"]},
    "scores": {"sst2": "accuracy", "text": "perplexity"},
}  # fmt: skip
VERSIONS = dict.fromkeys(["torch", "transformers", "accelerate", "python"], "1.0")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    cells = expand(STUDY["grids"], STUDY["stages"])
    for model, variant in cells.variants:
        folder = tmp_path / "results" / model / str(variant)
        folder.mkdir(parents=True, exist_ok=True)
        tensor = {"name": "a.weight", "stack": "encoder", "layer": 0, "part": "mlp", "shape": "10x100", "size": 1000}
        tensor |= {"removed": 499, "zeros": 500, "sparsity": 0.5, "error": 0.25, "block_error": 0.125}
        write_csv(folder / "sparsity.csv", [tensor])
        if variant.is_dense:
            row = {"level": "overall", "name": "", "stack": "", "layer": -1, "part": "", "statistic": "count", "x": 0.0}
            pd.DataFrame([row | {"value": 100.0}]).to_parquet(folder / "weights.parquet")
            write_json(folder / "sizes.json", {"plain_bytes": 800, "container_bytes": 800, "bound_bytes": 300})
        files = {"model.safetensors": {"bytes": 1000 if variant.is_dense else 400}, "config.json": {"bytes": 7}}
        pruned = {"measured_sparsity": 0.4999, "size": 1000, "removed": 499}
        facts = {"files": files} if variant.is_dense else {"files": files, "pruned": pruned}
        target = tmp_path / "resources/models" / model if variant.is_dense else folder / "model"
        write_json(target / "manifest.json", facts)
    for model, variant in cells.measured:
        row = dict.fromkeys(INFERENCE, 1) | {"execution": "dense", "memory_bytes": None}
        cost = {"plain_bytes": 800, "bound_bytes": 300, "load_seconds": 0.1, "device": "cpu", "threads": 1}
        cost |= {"container_bytes": 800 if variant.is_dense else 400}
        cost |= {"speed": [row, row | {"execution": "sparse", "speedup": 2.5}], "versions": VERSIONS}
        write_json(tmp_path / "results" / model / str(variant) / "cost.json", cost)
    for evaluation in cells.evaluations:
        write_json(tmp_path / evaluation.folder / "metrics.json", {"metrics": {"perplexity": 30.0, "nll": 3.4}})
        write_json(tmp_path / evaluation.folder / "runtime.json", {"versions": VERSIONS})
        more = 0.0 if evaluation.variant.is_dense else 0.1
        write_csv(tmp_path / evaluation.folder / "predictions.csv", [{"nll": 3.0 + more}, {"nll": 4.0 + 3 * more}])
    for run in cells.runs:
        folder = tmp_path / run.folder
        metrics = {"accuracy": 0.9, "f1": 0.8, "combined": 0.85}
        settings = {"epochs": 2, "mask": "released" if run.recipe == "released" else "kept"}
        write_json(
            folder / "metrics.json",
            {
                "metrics": metrics, "baseline": dict.fromkeys(metrics, 0.5), "measured_sparsity": 0.5,
                "settings": settings, "examples": {"train": 10, "validation": 5}, "seen": 0,
            },
        )  # fmt: skip
        seconds = dict.fromkeys(
            ["train_seconds", "eval_seconds", "setup_seconds", "samples_per_second", "peak_memory_bytes", "threads"], 1
        )
        write_json(folder / "runtime.json", {**seconds, "device": "cpu", "processes": 1, "versions": VERSIONS})
        write_json(folder / "model/manifest.json", {"files": {"model.safetensors": {"bytes": 600 + run.seed}}})
        wrong = 0 if run.variant.is_dense else 2
        rows = [{"label": 1, "prediction": int(number >= wrong)} for number in range(10)]
        write_csv(folder / "predictions.csv", rows)
        write_csv(
            folder / "history.csv", [{"epoch": 1, "step": 5, "train_loss": 0.1, **metrics, "measured_sparsity": 0.5}]
        )
    return tmp_path


def tables(root: Path) -> dict[str, pd.DataFrame]:
    collect(root / "tables", root=root, **STUDY)
    return {name: pd.read_csv(root / f"tables/{name}.csv", keep_default_na=False) for name in COLUMNS}


def test_every_table_has_its_columns_and_rows(root: Path) -> None:
    found = tables(root)
    assert {name: list(table) for name, table in found.items()} == COLUMNS
    runs = 2 * (2 + 2 * 2 * 2)  # models x (dense seeds + sparsities x recipes x seeds)
    assert len(found["runs"]) == len(found["history"]) == runs
    assert len(found["metrics"]) == 4 * runs - 2 * 2 + 2 * 2 + 1  # dense ones have no error of a difference to dense
    assert len(found["sizes"]) == 6
    assert found["weights"].method.tolist() == ["dense"] * 2  # no figure or claim reads those of pruned models
    assert len(found["baselines"]) == 3
    assert len(found["tensors"]) == 4
    assert found["claims"].empty


def test_a_sparsity_has_both_spellings_side_by_side(root: Path) -> None:
    for name, table in tables(root).items():
        if "sparsity" in COLUMNS[name]:
            at = list(table).index("sparsity")
            assert list(table)[at + 1] == "fraction", name
            spellings = set(zip(table.sparsity.astype(str), table.fraction.astype(float), strict=True))
            assert spellings <= {("0", 0.0), ("0.5", 0.5), ("2of4", 0.5)}, name


def test_tables_are_read_back_with_their_types(root: Path) -> None:
    tables(root)
    found = read(root / "tables")
    assert set(found["metrics"].sparsity) == {Sparsity("0"), Sparsity("0.5"), Sparsity("2of4")}
    assert found["metrics"].groupby("sparsity").size().index.tolist() == sorted(set(found["metrics"].sparsity))
    assert found["metrics"].seed.isna().sum() == 5  # evaluations
    assert found["runs"].torch.unique().tolist() == ["1.0"]
    assert found["sizes"].weights.dtype == "Int64"
    assert found["sizes"].ratio.dtype == float
    assert found["metrics"].recipe.unique().tolist() == ["", "kept", "released"]


def test_claims_are_judged_where_a_file_is_given(root: Path) -> None:
    collect(root / "tables", root=root, claims=CLAIMS, **STUDY)
    claims = read(root / "tables")["claims"]
    half = claims[claims.claim == "Removing 50 % costs some accuracy"]
    assert half.seeds.tolist() == [2] * 4  # models x recipes; the pattern is not among them
    assert (half.value == 0).all()


def test_wrong_claims_are_said_before_results_are_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found; correct `claims`"):
        collect(tmp_path / "tables", root=tmp_path, claims=tmp_path / "none.yaml", **STUDY)


def test_a_row_says_what_it_is(root: Path) -> None:
    metrics = tables(root)["metrics"]
    row = metrics[(metrics.model == "gpt2") & (metrics.sparsity == "2of4") & (metrics.recipe == "released")].iloc[0]
    assert row["mask"] == "released"
    assert row[["method", "scope", "task"]].tolist() == ["magnitude", "linear", "sst2"]
    dense = metrics[(metrics.method == "dense") & (metrics.metric == "accuracy")]
    assert dense.scope.tolist() == [""] * 4
    assert dense.sparsity.tolist() == ["0"] * 4
    perplexity = metrics[metrics.metric == "perplexity"]
    assert perplexity["mask"].tolist() == perplexity.recipe.tolist() == [""] * 2


def test_sizes_are_those_of_the_weight_files(root: Path) -> None:
    sizes = tables(root)["sizes"].set_index(["model", "sparsity"])
    assert sizes.loc[("minilm", "0.5"), "bytes"] == 400
    assert sizes.loc[("minilm", "0.5"), "measured_sparsity"] == 0.4999
    measured = sizes.loc[("minilm", "0.5"), ["weights", "removed", "plain_bytes", "bound_bytes"]]
    assert measured.astype(int).tolist() == [1000, 499, 800, 300]
    assert sizes.loc[("minilm", "0"), "weights"] == ""


def test_ratios_compare_like_with_like(root: Path) -> None:
    """The dense file of 1,000 bytes takes 800 in the container, so pruning saves half, not six tenths."""
    sizes = tables(root)["sizes"].set_index(["model", "sparsity"])
    columns = ["bytes", "dense_bytes", "container_bytes", "ratio", "plain_ratio"]
    assert sizes.loc[("minilm", "0.5"), columns].astype(float).tolist() == [400, 1000, 400, 0.5, 0.4]
    assert sizes.loc[("minilm", "0"), columns].astype(float).tolist() == [1000, 1000, 800, 1, 1]


def test_a_study_that_does_not_measure_compares_containers_too(root: Path) -> None:
    collect(root / "tables", root=root, **{**STUDY, "grids": [STUDY["grids"][1]]})
    sizes = read(root / "tables")["sizes"].set_index("sparsity")
    assert sizes.ratio.tolist() == [1, 0.5]
    assert sizes.plain_ratio.tolist() == [1, 0.4]
    assert sizes.container_bytes.tolist() == [800, 400]


def test_a_run_has_the_bytes_of_its_own_file(root: Path) -> None:
    runs = tables(root)["runs"]
    assert (runs["bytes"] == 600 + runs.seed).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("file", "key"),
    [("metrics.json", "metrics.accuracy"), ("metrics.json", "measured_sparsity"), ("runtime.json", "train_seconds")],
)
def test_a_number_that_is_not_finite_is_no_result(file: str, key: str, value: float, root: Path) -> None:
    path = root / expand(STUDY["grids"], STUDY["stages"]).runs[3].folder / file
    result = read_json(path)
    *parents, last = key.split(".")
    place = result[parents[0]] if parents else result
    place[last] = value
    write_json(path, result)
    with pytest.raises(UserError) as caught:
        collect(root / "tables", root=root, **STUDY)
    assert str(caught.value).startswith(f"{path}: {key}: found {value}, which is no result; delete this file")
    assert not (root / "tables").exists()


def test_infinite_speed_is_no_result(root: Path) -> None:
    path = root / "results/gpt2/dense/cost.json"
    cost = read_json(path)
    cost["speed"][1]["speedup"] = float("inf")
    write_json(path, cost)
    with pytest.raises(UserError, match=r"cost\.json: speed\.1\.speedup: found inf"):
        collect(root / "tables", root=root, **STUDY)


def test_a_model_that_diverged_has_no_value(root: Path) -> None:
    folder = root / next(each.folder for each in expand(STUDY["grids"], STUDY["stages"]).evaluations)
    write_json(folder / "metrics.json", {"metrics": {"perplexity": None, "nll": None}, "note": "diverged"})
    run = root / expand(STUDY["grids"], STUDY["stages"]).runs[0].folder
    history = (run / "history.csv").read_text()
    (run / "history.csv").write_text(history.replace("0.1", "inf", 1))
    found = tables(root)
    assert found["metrics"].value[found["metrics"].metric == "perplexity"].tolist() == ["", "30.0"]
    assert found["history"].train_loss.tolist()[:2] == ["", "0.1"]
    assert read(root / "tables")["metrics"].value.isna().sum() == 2
    assert "perplexity_paired_stderr" in set(found["metrics"].metric)  # the other model's


def test_a_claim_is_not_judged_by_the_seeds_that_did_not_diverge(root: Path) -> None:
    run = next(
        run for run in expand(STUDY["grids"], STUDY["stages"]).runs if str(run.variant) == "magnitude-linear-0.5"
    )
    result = read_json(root / run.folder / "metrics.json")
    write_json(root / run.folder / "metrics.json", {**result, "metrics": dict.fromkeys(result["metrics"])})
    collect(root / "tables", root=root, claims=CLAIMS, **STUDY)
    claims = read(root / "tables")["claims"]
    half = claims[claims.claim == "Removing 50 % costs some accuracy"]
    assert (run.model, run.recipe) not in set(zip(half.model, half.recipe, strict=True))
    assert len(half) == 3


def test_speed_has_a_row_for_each_execution(root: Path) -> None:
    speed = tables(root)["speed"]
    assert len(speed) == 2 * 6
    rows = speed[(speed.model == "gpt2") & (speed.sparsity == "2of4")].set_index("execution")
    assert rows.speedup.to_dict() == {"dense": 1, "sparse": 2.5}
    assert rows.loc["sparse", ["device", "torch", "transformers", "memory_bytes"]].tolist() == ["cpu", 1.0, 1.0, ""]


def test_a_pruned_tensor_and_its_error(root: Path) -> None:
    row = tables(root)["tensors"].iloc[0]
    assert row[["model", "method", "sparsity", "name", "part"]].tolist() == [
        "minilm", "magnitude", "0.5", "a.weight", "mlp",
    ]  # fmt: skip
    assert row[["removed", "measured_sparsity", "error", "block_error"]].tolist() == [499, 0.5, 0.25, 0.125]


def test_every_draw_of_calibration_text_is_a_variant(root: Path, tmp_path: Path) -> None:
    study = {**STUDY, "grids": [STUDY["grids"][1] | {"calibration_seeds": {"magnitude": [0, 3]}}]}
    made, drawn = (Variant("magnitude", "linear", Sparsity("0.5"), seed) for seed in (0, 3))
    shutil.copytree(root / "results/gpt2" / str(made), root / "results/gpt2" / str(drawn))
    collect(tmp_path / "drawn", root=root, **study)
    metrics = pd.read_csv(tmp_path / "drawn/metrics.csv")
    perplexity = metrics[(metrics.method == "magnitude") & (metrics.metric == "perplexity")]
    assert perplexity.calibration_seed.tolist() == [0, 3]


def test_a_missing_result_is_named(root: Path) -> None:
    run = expand(STUDY["grids"], STUDY["stages"]).runs[0]
    (root / run.folder / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"seed-0/metrics\.json: missing; run the study made-up first"):
        collect(root / "tables", root=root, **STUDY)
    assert not (root / "tables").exists()


def test_variants_are_found_where_the_stages_put_them() -> None:
    assert str(Variant("magnitude", "linear", Sparsity("2of4"))) == "magnitude-linear-2of4"


def test_the_difference_to_dense_is_paired_by_example(root: Path) -> None:
    rows = tables(root)["metrics"]
    errors = rows[rows.metric == "accuracy_paired_stderr"]
    runs = rows[(rows.metric == "accuracy") & (rows.method != "dense")]
    assert len(errors) == len(runs) > 0
    # 2 of 10 are lost, none is gained; with a half added to each outcome: 2.5 and 0.5 of 12.
    assert errors.value.astype(float).unique().tolist() == pytest.approx([math.sqrt(3 - 4 / 12) / 12])


def test_losses_on_a_text_are_paired_window_by_window(root: Path) -> None:
    """0.1 and 0.3 more than the dense model: the error of their mean is 0.1."""
    rows = tables(root)["metrics"]
    (error,) = rows[rows.metric == "perplexity_paired_stderr"].itertuples()
    assert (error.method, float(error.value), error.windows) == ("magnitude", pytest.approx(0.1), "2")
    assert set(rows.windows[rows.task == "text"]) == {"2"}
    assert set(rows.windows[rows.task == "sst2"]) == {""}


def test_a_score_is_paired_whichever_it_is(root: Path) -> None:
    for run in expand(STUDY["grids"], STUDY["stages"]).runs:
        path = root / run.folder / "metrics.json"
        result = read_json(path)
        write_json(path, {**result, "metrics": result["metrics"] | {"matthews_correlation": 0.1}})
    collect(root / "tables", root=root, **{**STUDY, "scores": {"sst2": "matthews_correlation"}})
    rows = read(root / "tables")["metrics"]
    errors = rows[rows.metric == "matthews_correlation_paired_stderr"]
    assert len(errors) == 16
    assert (errors.value > 0).all()
    assert "accuracy_paired_stderr" not in set(rows.metric)
