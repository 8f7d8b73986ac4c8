"""Collect the results of a study into its tables; see `tables`.

A dense model has the method "dense", no scope and sparsity 0; its one fine-tuning, by the recipe kept, is the baseline
of every recipe. `sparsity` is the target from the config, `measured_sparsity` the share of zeros in the saved scope.
A metric that is null is that of a model that diverged: its value is missing. NaN and infinity are no results.
"""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.reporting import claims as earlier
from llm_sparsity.reporting import dictionary, tables
from llm_sparsity.reporting.paired import paired_error
from llm_sparsity.reporting.tables import LIBRARIES, MACHINE, SECONDS, VERSIONS
from llm_sparsity.storage.files import read_json, read_manifest, weight_bytes, write_manifest
from llm_sparsity.study.cells import DENSE, Cells, Evaluation, Run, Variant, expand, results_folder, variant_folder

Row = dict[str, Any]


def collect(
    output: Path,
    *,
    study: str,
    grids: Iterable[Mapping[str, Any]],
    stages: Mapping[str, Iterable[str]],
    scores: Mapping[str, str],
    claims: Path | None = None,
    root: Path = Path(),
) -> None:
    """Write the tables of a study.

    Args:
        output: folder for one CSV file a table, all tables as parquet, a dictionary of columns, and a manifest of them.
        study: its name.
        grids: the grids of the config.
        stages: task -> the stages of its variants, see `cells.expand`.
        scores: task -> the score that it is judged by; none of tasks that have several.
        claims: file of claims to judge, see `claims`. None: the table claims has no rows.
        root: the folder of `results/` and `resources/`.

    Raises:
        UserError: a result of the study is missing or not finite, or the claims file is wrong.
    """
    to_judge = earlier.load(claims) if claims else None
    cells = expand(grids, stages)
    try:
        found = _tables(cells, scores, root)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing; run the study {study} first") from None
    judged = earlier.judge(to_judge, {**found, "metrics": tables.scored(found["metrics"])})
    tables.write(output, {**found, "claims": judged})
    dictionary.write(output, {**found, "claims": judged})
    write_manifest(output, kind="tables", study=study)


def _tables(cells: Cells, scores: Mapping[str, str], root: Path) -> dict[str, pd.DataFrame]:
    """Every table but claims, in the order of `tables.COLUMNS`."""
    tasks = dict.fromkeys([*(cell.task for cell in cells.evaluations), *(run.task for run in cells.runs)])
    results = [_run(run, scores, root) for run in cells.runs]
    costs = {cell: _json(root / results_folder(*cell) / "cost.json") for cell in cells.measured}
    rows: dict[str, Iterable[Row] | pd.DataFrame] = {
        "tasks": [{"task": task, "score": scores[task]} for task in tasks if task in scores],
        "metrics": [row for cell in cells.evaluations for row in _evaluation(cell, scores, root)]
        + [row for result in results for row in result["metrics"]],
        "runs": [row for result in results for row in result["runs"]],
        "history": [row for result in results for row in result["history"]],
        "sizes": [_size(model, variant, root, costs) for model, variant in cells.variants],
        "speed": [row for (model, variant), cost in costs.items() for row in _speed(model, variant, cost)],
        "weights": pd.concat([_weights(model, root) for model, variant in cells.variants if variant.is_dense]),
        "tensors": [row for model, variant in cells.variants for row in _tensors(model, variant, root)],
        "baselines": pd.DataFrame([row for result in results for row in result["baselines"]]).drop_duplicates(),
    }
    return {name: tables.frame(name, found) for name, found in rows.items()}


def _run(run: Run, scores: Mapping[str, str], root: Path) -> dict[str, list[Row]]:
    """The rows of one fine-tuning, by table."""
    folder = root / run.folder
    result, runtime = _json(folder / "metrics.json"), _json(folder / "runtime.json")
    cell = _variant(run.model, run.variant)
    cell |= {"task": run.task, "recipe": run.recipe, "mask": result["settings"]["mask"], "seed": run.seed}
    facts = {
        "epochs": result["settings"]["epochs"],
        "validation_examples": result["examples"]["validation"],
        "seen_examples": result["seen"],
        "measured_sparsity": result["measured_sparsity"],
        "bytes": weight_bytes(read_manifest(folder / "model")),
    }
    measured = {key: runtime[key] for key in [*SECONDS, *MACHINE]}
    return {
        "metrics": _metrics(cell, run, scores.get(run.task), root),
        "runs": [{**cell, **measured, **{key: runtime["versions"][key] for key in VERSIONS}, **facts}],
        "history": [cell | row for row in _rows(folder / "history.csv")],
        "baselines": [
            {"task": run.task, "metric": metric, "value": value} for metric, value in result["baseline"].items()
        ],
    }


def _evaluation(cell: Evaluation, scores: Mapping[str, str], root: Path) -> list[Row]:
    """The metrics of one evaluation without training."""
    head = _variant(cell.model, cell.variant) | {"task": cell.task, "recipe": tables.UNTRAINED}
    return _metrics(head, cell, scores.get(cell.task), root)


def _metrics(head: Row, cell: Run | Evaluation, score: str | None, root: Path) -> list[Row]:
    """The metrics of one result, and the standard error of the difference of its score to the dense model's.

    Args:
        head: the columns of the cell.
        cell: that was scored.
        score: that its task is judged by; None: of a zero-shot task, which has several.
        root: the folder of `results/`.
    """
    folder = root / cell.folder
    metrics, versions = dict(_json(folder / "metrics.json")["metrics"]), _json(folder / "runtime.json")["versions"]
    facts: Row = {key: versions[key] for key in LIBRARIES}
    if score:
        ours = pd.read_csv(folder / "predictions.csv")
        facts["windows"] = len(ours) if "nll" in ours else None
        if not cell.variant.is_dense and metrics[score] is not None:
            theirs = pd.read_csv(root / cell.dense.folder / "predictions.csv")
            average = "binary" if "f1" in metrics else "macro"
            metrics[f"{score}{tables.PAIRED}"] = paired_error(score, ours, theirs, average)
    return [{**head, "metric": metric, "value": value, **facts} for metric, value in metrics.items()]


def _size(model: str, variant: Variant, root: Path, costs: Mapping[tuple[str, Variant], Any]) -> Row:
    """The bytes of one variant.

    `ratio` compares like with like: the container compresses the weights of a dense model too.
    """
    dense, manifest = (read_manifest(root / variant_folder(model, each)) for each in (DENSE, variant))
    size, dense_size = weight_bytes(manifest), weight_bytes(dense)
    whole = _json(root / results_folder(model, DENSE) / "sizes.json")
    container = whole["container_bytes"] if variant.is_dense else size
    pruned = manifest.get("pruned", {"measured_sparsity": 0.0, "size": None, "removed": 0})
    sizes = whole if variant.is_dense else costs.get((model, variant), {})
    return {
        **_variant(model, variant),
        "measured_sparsity": pruned["measured_sparsity"],
        "weights": pruned["size"],
        "removed": pruned["removed"],
        "bytes": size,
        "dense_bytes": dense_size,
        "container_bytes": container,
        "ratio": container / whole["container_bytes"],
        "plain_ratio": size / dense_size,
        "plain_bytes": sizes.get("plain_bytes"),
        "bound_bytes": sizes.get("bound_bytes"),
    }


def _speed(model: str, variant: Variant, cost: Mapping[str, Any]) -> list[Row]:
    shared = {key: cost[key] for key in ("load_seconds", "device", "threads")}
    versions = {key: cost["versions"][key] for key in LIBRARIES}
    return [{**_variant(model, variant), **row, **shared, **versions} for row in cost["speed"]]


def _weights(model: str, root: Path) -> pd.DataFrame:
    """The statistics of a dense model; no figure or claim reads those of pruned ones."""
    path = root / results_folder(model, DENSE) / "weights.parquet"
    return pd.read_parquet(path).assign(**_variant(model, DENSE))


def _tensors(model: str, variant: Variant, root: Path) -> list[Row]:
    if variant.is_dense:
        return []
    found = _rows(root / results_folder(model, variant) / "sparsity.csv")
    return [row | {"measured_sparsity": row["sparsity"]} | _variant(model, variant) for row in found]


def _json(path: Path) -> Any:
    """A result.

    Raises:
        UserError: a number in it is not finite.
    """
    found = read_json(path)
    for key, value in _numbers(found):
        if not math.isfinite(value):
            raise UserError(f"{path}: {key}: found {value}, which is no result; delete this file and run again")
    return found


def _numbers(value: Any, key: str = "") -> Iterable[tuple[str, float]]:
    """The floats in a JSON value, with their keys joined by dots."""
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(each, f"{key}.{name}" if key else str(name))


def _rows(path: Path) -> list[Row]:
    """The rows of a CSV file, where numbers that are not finite are missing: a run that diverged has a history too."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {key: "" if value.lower() in ("nan", "inf", "-inf") else value for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def _variant(model: str, variant: Variant) -> Row:
    return {
        "model": model,
        "method": variant.method,
        "scope": variant.scope,
        "sparsity": variant.sparsity,
        "calibration_seed": variant.calibration_seed,
    }
