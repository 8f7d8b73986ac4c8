"""The tables of a study: their names, columns and types, how they are written, and how they are read back.

    tasks.csv      one task, and the score that it is judged by
    metrics.csv    one value of one metric of one cell
    runs.csv       one fine-tuning: times, memory, measured sparsity, machine, versions
    history.csv    one epoch of one fine-tuning; rows within the first epoch have epoch 0 and hold the sparsity alone
    sizes.csv      one variant: bytes of the weight file, of the dense one, and of an ideal coder
    speed.csv      one variant, execution, phase and batch size: seconds, speed-up over dense, memory
    weights.csv    one statistic of the weights of a dense model
    tensors.csv    one pruned tensor: removed weights, and the output errors that calibrated methods report
    baselines.csv  one metric of one task: the best score of always predicting the same label
    claims.csv     one claim in one cell, and the verdict; only the header without a claims file

docs/outputs.md explains every column. A frame in memory holds `Sparsity` objects in the column `sparsity`; on disk
that column is text ("0.5", "2of4"), and `fraction` beside it is the number, 0.5 for both.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import atomic
from llm_sparsity.study.cells import Variant
from llm_sparsity.study.sparsity import Sparsity

Tables = Mapping[str, pd.DataFrame]

CELL = ["model", "method", "scope", "sparsity"]  # a variant, whatever text it was calibrated with
VARIANT = [*CELL, "fraction", "calibration_seed"]
RUN = [*VARIANT, "task", "recipe", "mask", "seed"]
SECONDS = ["train_seconds", "eval_seconds", "setup_seconds", "samples_per_second", "peak_memory_bytes"]
EXAMPLES = ["validation_examples", "seen_examples"]
MACHINE = ["device", "threads", "processes"]
LIBRARIES = ["torch", "transformers"]  # whose versions can change a result
VERSIONS = [*LIBRARIES, "accelerate", "python"]
WEIGHTS = ["weights", "removed"]
BYTES = ["bytes", "dense_bytes", "container_bytes"]
MEASURED_BYTES = ["plain_bytes", "bound_bytes"]
INFERENCE = [
    "execution", "phase", "batch_size", "sequence_length", "seconds", "seconds_low", "seconds_high", "speedup",
    "speedup_low", "speedup_high", "tokens_per_second", "bytes_per_second", "copy_bytes_per_second", "limit", "error",
    "sparse_layers", "memory_bytes",
]  # fmt: skip
TENSOR = ["name", "stack", "layer", "part", "shape", "size", "removed", "measured_sparsity", "error", "block_error"]
COLUMNS = {
    "tasks": ["task", "score"],
    "metrics": [*RUN, "metric", "value", "windows", *LIBRARIES],
    "runs": [*RUN, *SECONDS, "epochs", *EXAMPLES, "measured_sparsity", "bytes", *MACHINE, *VERSIONS],
    "history": [*RUN, "epoch", "step", "train_loss", "accuracy", "f1", "combined", "perplexity", "measured_sparsity"],
    "sizes": [*VARIANT, "measured_sparsity", *WEIGHTS, *BYTES, "ratio", "plain_ratio", *MEASURED_BYTES],
    "speed": [*VARIANT, *INFERENCE, "load_seconds", "device", "threads", *LIBRARIES],
    "weights": [*VARIANT, "level", "name", "stack", "layer", "part", "statistic", "x", "value"],
    "tensors": [*VARIANT, *TENSOR],
    "baselines": ["task", "metric", "value"],
    "claims": [
        "claim", "model", "task", "scope", "recipe", "quantity", "value", "margin", "seeds", "low", "high", "earlier",
        "verdict",
    ],
}  # fmt: skip

TEXT = {
    "model", "method", "scope", "task", "recipe", "mask", "metric", "execution", "phase", "device", *VERSIONS, "level",
    "name", "stack", "part", "shape", "statistic", "claim", "quantity", "verdict", "score",
}  # fmt: skip
INTEGERS = {
    "calibration_seed", "seed", "windows", "peak_memory_bytes", "epochs", *EXAMPLES, "threads", "processes",
    "epoch", "step", *WEIGHTS, *BYTES, *MEASURED_BYTES, "batch_size", "sequence_length", "sparse_layers",
    "memory_bytes", "layer", "size", "seeds",
}  # fmt: skip
# Every other column is a float.

PAIRED = "_paired_stderr"  # ending of a metric: the standard error of its difference to the dense model
UNTRAINED = ""  # the recipe of what was measured without training


def frame(name: str, rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """A table with its columns and types.

    Args:
        name: of the table, a key of `COLUMNS`.
        rows: column -> value; values may be text, as a CSV file holds them. `fraction` is derived from `sparsity`.

    Returns:
        `Sparsity` objects in `sparsity`, "" for missing text, NA for missing integers, NaN for missing floats. The
        history has more columns, of the metrics that its tasks have beside those of every task.
    """
    table = pd.DataFrame(rows if isinstance(rows, pd.DataFrame) else list(rows))
    others = sorted(set(table) - set(COLUMNS[name])) if name == "history" else []
    absent = np.full(len(table), None)
    typed: dict[str, Any] = {}
    for column in [*COLUMNS[name], *others]:
        typed[column] = _typed(column, table[column].to_numpy(object) if column in table else absent)
    if "sparsity" in typed:
        typed["fraction"] = [sparsity.fraction for sparsity in typed["sparsity"]]
    return pd.DataFrame(typed, table.index)


def _typed(name: str, values: Any) -> Any:
    """The values of a column, of any type, in the type of that column."""
    if name == "sparsity":
        known = {value: Sparsity.of(value) for value in set(values)}
        return np.array([known[value] for value in values], object)
    values = np.where(pd.isna(values), "", values)
    if name in TEXT:
        return pd.Series(values, dtype=object).astype(str).array
    numbers: Any = np.where(values == "", None, values)
    return pd.array(pd.to_numeric(numbers), "Int64") if name in INTEGERS else numbers.astype(float)


def write(folder: Path, tables: Tables) -> None:
    """Write one CSV file a table."""
    for name, table in tables.items():
        with atomic(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")


def read(folder: Path | str) -> dict[str, pd.DataFrame]:
    """Read every table of a study.

    Of variants that differ in the calibration text alone, sizes, speed and weights keep the first.

    Raises:
        UserError: a table is not there.
    """
    tables = {}
    for name in sorted(COLUMNS):
        path = Path(folder) / f"{name}.csv"
        if not path.is_file():
            raise UserError(f"{path}: not found; name the folder of a study's tables, reports/STUDY/tables")
        table = frame(name, pd.read_csv(path, dtype=str, keep_default_na=False))
        if name in ("sizes", "speed", "weights"):
            table = table[table.calibration_seed == table.groupby(CELL).calibration_seed.transform("min")]
        tables[name] = table
    return tables


def fractions(rows: pd.DataFrame) -> "pd.Series[float]":
    """The fraction removed of each row: a position on an axis, no key to group by."""
    return pd.Series([sparsity.fraction for sparsity in rows.sparsity], rows.index, dtype=float)


def are_patterns(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Whether each row's sparsity is a pattern N of M."""
    return pd.Series([sparsity.is_pattern for sparsity in rows.sparsity], rows.index, dtype=bool)


def are_masked(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Whether each row's method removes weights by setting them to zero, not by shrinking tensors."""
    return pd.Series([Variant(method).has_mask for method in rows.method], rows.index, dtype=bool)


def start_of(recipe: str) -> str:
    """The recipe of the dense model that a recipe is compared with: trained, by `kept`, if the recipe trains."""
    return UNTRAINED if recipe == UNTRAINED else "kept"


def by_seed(rows: pd.DataFrame) -> "pd.Series[float]":
    """The column `value` of one cell by seed: of fine-tuning; of calibration, for what was not trained.

    Draws of the calibration text that share a seed of fine-tuning are no independent values: their mean is one.
    """
    seeds = rows.seed.fillna(rows.calibration_seed) if "seed" in rows else rows.calibration_seed
    return rows.groupby(seeds, dropna=False).value.mean()


def dense(rows: pd.DataFrame, recipe: str) -> pd.DataFrame:
    """The rows of dense models that a recipe is compared with."""
    return rows[(rows.method == "dense") & (rows.recipe == start_of(recipe))]


def scored(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of metrics of cells that did not diverge.

    A cell of which one seed has no value is left out: a mean over the other seeds would flatter it.
    """
    lost = metrics[metrics.value.isna()][["task", "metric", *CELL, "recipe"]].drop_duplicates()
    if lost.empty:
        return metrics
    known = metrics.merge(lost, how="left", indicator="lost").lost == "left_only"
    return metrics[known.to_numpy()]


def score_of(data: Tables, task: str) -> str:
    """The score that a task is judged by; "" for a task that has several."""
    rows = data["tasks"]
    return str(next(iter(rows.score[rows.task == task]), ""))


def judged(data: Tables) -> pd.DataFrame:
    """The rows of metrics that tasks are judged by, and their standard errors over examples, or NaN.

    Column `stderr` is that of the score, `paired` that of its difference to the dense model, see `paired`; 0 of the
    dense model itself. `seeded` tells whether a seed of fine-tuning changes the score: not where neither the cell nor
    its dense model was trained, such as a classifier that was fine-tuned elsewhere.
    """
    metrics = data["metrics"]

    def of(ending: str) -> pd.DataFrame:
        names = {task: score + ending for task, score in zip(data["tasks"].task, data["tasks"].score, strict=True)}
        return metrics[metrics.metric == metrics.task.map(names)]

    found = _beside(_beside(of(""), of("_stderr"), "stderr"), of(PAIRED), "paired")
    found = found.assign(paired=found.paired.where(found.method != "dense", 0.0))
    idle = data["runs"][data["runs"].epochs == 0]
    starts = idle.loc[idle.method == "dense", ["model", "task"]].drop_duplicates()
    still = idle[["model", "task", "recipe"]].drop_duplicates().merge(starts).assign(seeded=False)
    found = found.merge(still, how="left")
    return found.assign(seeded=found.seeded.isna() & (found.recipe != UNTRAINED))


def with_errors(metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of a metric, and in `stderr` the standard error over examples that lm-evaluation-harness reports."""
    return _beside(metrics[metrics.metric == metric], metrics[metrics.metric == f"{metric}_stderr"], "stderr")


def _beside(rows: pd.DataFrame, errors: pd.DataFrame, column: str) -> pd.DataFrame:
    found = errors[[*RUN, "value"]].rename(columns={"value": column})
    return rows.merge(found.drop(columns="fraction"), how="left")


def examples(data: Tables, task: str) -> int:
    """Examples of the validation split of a task."""
    runs = data["runs"]
    return int(runs.validation_examples[runs.task == task].iloc[0])


def baseline(data: Tables, task: str, metric: str) -> float:
    """The score of a constant answer, see `wording.constant_answer`."""
    rows = data["baselines"]
    return float(rows.loc[(rows.task == task) & (rows.metric == metric), "value"].iloc[0])
