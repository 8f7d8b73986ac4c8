"""Collect a study's results into tidy tables: one row an observation, the public contract of a study.

    metrics.csv    model method scope sparsity task recipe mask seed  metric value
    runs.csv       ... train_seconds eval_seconds setup_seconds samples_per_second (training) peak_memory_bytes epochs
                   validation_examples measured_sparsity device threads processes torch transformers accelerate python
    history.csv    ... epoch step train_loss accuracy f1 combined perplexity measured_sparsity; rows inside the first
                   epoch, with epoch 0, hold the sparsity alone
    sizes.csv      model method scope sparsity  measured_sparsity, weights of the scope, removed of them; bytes of the
                   weight file, dense_bytes of the dense one, their ratio; where measured: plain_bytes (the variant as
                   plain safetensors), bound_bytes (what an ideal coder of its statistics takes)
    speed.csv      model method scope sparsity  execution batch_size sequence_length seconds speedup (against dense;
                   medians, with quartiles _low and _high) error sparse_layers memory_bytes load_seconds device threads
                   torch; see `measure`
    weights.csv    model method scope sparsity  and the columns of `weights`
    tensors.csv    model method scope sparsity  name stack layer part shape size removed measured_sparsity of a pruned
                   tensor; of calibrated methods error and block_error, see `prune`
    baselines.csv  task metric value  what always answering with the most frequent label reaches
    claims.csv     claim model task scope recipe quantity value margin seeds low high earlier verdict; see `claims`

A dense model has method "dense", no scope, sparsity 0; its one fine-tuning, under the recipe
kept, stands for every recipe. `sparsity` is what
was asked for, `measured_sparsity` what the saved file holds: the share of zeros in the scope. Beside `sparsity` stands
everywhere the `calibration_seed`, 0 where nothing was drawn.
"""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.reporting import claims
from llm_sparsity.storage.files import atomic, read_json, read_manifest, weight_bytes, write_manifest
from llm_sparsity.study.cells import Cells, Evaluation, Run, Variant, expand

VARIANT = ["model", "method", "scope", "sparsity", "calibration_seed"]
RUN = [*VARIANT, "task", "recipe", "mask", "seed"]
SECONDS = ["train_seconds", "eval_seconds", "setup_seconds", "samples_per_second", "peak_memory_bytes"]
MACHINE = ["device", "threads", "processes"]
VERSIONS = ["torch", "transformers", "accelerate", "python"]
WEIGHTS = ["weights", "removed"]
MEASURED_BYTES = ["plain_bytes", "bound_bytes"]
INFERENCE = [
    "execution", "batch_size", "sequence_length", "seconds", "seconds_low", "seconds_high", "speedup", "speedup_low",
    "speedup_high", "error", "sparse_layers", "memory_bytes",
]  # fmt: skip
TENSOR = ["name", "stack", "layer", "part", "shape", "size", "removed", "measured_sparsity", "error", "block_error"]
COLUMNS = {
    "metrics": [*RUN, "metric", "value"],
    "runs": [*RUN, *SECONDS, "epochs", "validation_examples", "measured_sparsity", *MACHINE, *VERSIONS],
    "history": [*RUN, "epoch", "step", "train_loss", "accuracy", "f1", "combined", "perplexity", "measured_sparsity"],
    "sizes": [*VARIANT, "measured_sparsity", *WEIGHTS, "bytes", "dense_bytes", "ratio", *MEASURED_BYTES],
    "speed": [*VARIANT, *INFERENCE, "load_seconds", "device", "threads", "torch"],
    "weights": [*VARIANT, "level", "name", "stack", "layer", "part", "statistic", "x", "value"],
    "tensors": [*VARIANT, *TENSOR],
    "baselines": ["task", "metric", "value"],
    "claims": claims.COLUMNS,
}
Row = dict[str, Any]


def collect(
    output: Path,
    *,
    study: str,
    grids: Iterable[Mapping[str, Any]],
    stages: Mapping[str, Iterable[str]],
    root: Path = Path(),
) -> None:
    """Write the tables of a study.

    Args:
        output: folder that gets one CSV file a table, and a manifest of them.
        study: its name, for messages.
        grids: the grids of the config.
        stages: task -> what its variants go through; see `study.expand`.
        root: the folder that holds `results/` and `resources/`.

    Raises:
        UserError: a result of the study is missing.
    """
    cells = expand(grids, stages)
    try:
        tables = _tables(cells, root)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing; run the study {study} first") from None
    for name, table in tables.items():
        with atomic(output / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
    write_manifest(output, kind="tables", study=study)


def _tables(cells: Cells, root: Path) -> dict[str, pd.DataFrame]:
    rows: dict[str, list[Row]] = {name: [] for name in COLUMNS}
    for model, variant in cells.variants:
        if not variant.is_dense:
            found = _rows(root / "results" / model / str(variant) / "sparsity.csv")
            rows["tensors"] += [
                row | {"measured_sparsity": row["sparsity"]} | _variant(model, variant) for row in found
            ]
    for evaluation in cells.evaluations:
        result = read_json(root / evaluation.folder / "metrics.json")
        rows["metrics"] += _metrics(_cell(evaluation), result)
    for run in cells.runs:
        folder = root / run.folder
        result, runtime = read_json(folder / "metrics.json"), read_json(folder / "runtime.json")
        cell = _cell(run) | {"mask": result["settings"]["mask"]}
        rows["metrics"] += _metrics(cell, result)
        rows["runs"].append(
            {
                **cell,
                **{key: runtime[key] for key in [*SECONDS, *MACHINE]},
                **{key: runtime["versions"][key] for key in VERSIONS},
                "epochs": result["settings"]["epochs"],
                "validation_examples": result["examples"]["validation"],
                "measured_sparsity": result["measured_sparsity"],
            }
        )
        rows["history"] += [cell | row for row in _rows(folder / "history.csv")]
        rows["baselines"] += [
            {"task": run.task, "metric": key, "value": value} for key, value in result["baseline"].items()
        ]
    costs = {cell: read_json(root / "results" / cell[0] / str(cell[1]) / "cost.json") for cell in cells.measured}
    rows["sizes"] = [_size(model, variant, root, costs.get((model, variant), {})) for model, variant in cells.variants]
    for (model, variant), cost in costs.items():
        shared = {key: cost[key] for key in ("load_seconds", "device", "threads")} | {
            "torch": cost["versions"]["torch"]
        }
        rows["speed"] += [{**_variant(model, variant), **row, **shared} for row in cost["speed"]]
    tables = {name: pd.DataFrame(found, columns=COLUMNS[name]) for name, found in rows.items()}
    tables["sizes"] = tables["sizes"].astype(dict.fromkeys([*WEIGHTS, *MEASURED_BYTES], "Int64"))  # or nothing
    tables["baselines"] = tables["baselines"].drop_duplicates()
    tables["weights"] = pd.concat(
        [
            pd.read_parquet(root / "results" / model / str(variant) / "weights.parquet").assign(
                **_variant(model, variant)
            )
            for model, variant in cells.variants
        ]
    )[COLUMNS["weights"]]
    tables["claims"] = claims.check(tables)
    return tables


def _rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _variant(model: str, variant: Variant) -> Row:
    return {
        "model": model,
        "method": variant.method,
        "scope": variant.scope,
        "sparsity": variant.sparsity,
        "calibration_seed": variant.calibration_seed,
    }


def _cell(cell: Run | Evaluation) -> Row:
    extra = {"recipe": cell.recipe, "seed": cell.seed} if isinstance(cell, Run) else {"recipe": "", "seed": ""}
    return {**_variant(cell.model, cell.variant), "task": cell.task, "mask": "", **extra}


def _metrics(cell: Row, result: Mapping[str, Any]) -> list[Row]:
    return [{**cell, "metric": metric, "value": value} for metric, value in result["metrics"].items()]


def _size(model: str, variant: Variant, root: Path, cost: Mapping[str, Any]) -> Row:
    dense = read_manifest(root / "resources/models" / model)
    manifest = dense if variant.is_dense else read_manifest(root / "results" / model / str(variant) / "model")
    size, dense_size = weight_bytes(manifest), weight_bytes(dense)
    pruned = manifest.get("pruned", {"measured_sparsity": 0.0, "size": None, "removed": 0})
    return {
        **_variant(model, variant),
        "measured_sparsity": pruned["measured_sparsity"],
        "weights": pruned["size"],
        "removed": pruned["removed"],
        "bytes": size,
        "dense_bytes": dense_size,
        "ratio": size / dense_size,
        "plain_bytes": cost.get("plain_bytes"),
        "bound_bytes": cost.get("bound_bytes"),
    }
