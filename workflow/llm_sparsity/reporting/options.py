"""Options: what a reader can take instead of the dense model, each with its quality, bytes and speed beside dense.

An option is a cell of the study: a variant, and the recipe that trained it. Masks that were released are dense models,
and `random` is a control; neither is an option. Shares of bytes compare like with like: the dense model in the same
container, trained on the same task.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llm_sparsity.reporting.intervals import Estimate, Score, combined
from llm_sparsity.reporting.tables import CELL, UNTRAINED, Tables, dense, examples, judged, start_of
from llm_sparsity.reporting.wording import in_points
from llm_sparsity.study.cells import Run, Variant, variant_folder
from llm_sparsity.study.methods import Chain
from llm_sparsity.study.sparsity import ZERO, Sparsity


@dataclass(frozen=True, eq=False)
class Option:
    """A cell beside its dense model.

    Args:
        task, metric, model, method, scope, sparsity, recipe: the cell.
        score, start: its score, and that of the dense model.
        count: examples of the validation split, or windows of the text.
        bytes: of the weight file in the sparse container: of a trained model the mean over seeds, else of the first
            draw of the calibration text; NaN: unknown.
        share: `bytes` as a share of the dense model's.
        plain: `bytes` as a share of the dense file as it was downloaded.
        speedup: of the fastest execution at the smallest batch over the dense model; NaN: not measured.
        folder: of the model, for the first seed.
    """

    task: str
    metric: str
    model: str
    method: str
    scope: str
    sparsity: Sparsity
    recipe: str
    score: Score
    start: Score
    count: int
    bytes: float
    share: float
    plain: float
    speedup: float
    folder: Path

    @property
    def is_dense(self) -> bool:
        """Whether this is the dense model itself."""
        return self.method == "dense"

    @property
    def is_quantised(self) -> bool:
        """Whether its weights are stored as whole numbers and scales."""
        return not self.is_dense and Chain(self.method).is_quantised

    @property
    def values(self) -> "pd.Series[float]":
        """Its score by seed."""
        return self.score.values

    @property
    def dense(self) -> "pd.Series[float]":
        """The score of the dense model by seed."""
        return self.start.values

    @property
    def value(self) -> float:
        """The mean over seeds."""
        return float(self.values.mean())

    @property
    def rank(self) -> float:
        """The mean with the sign of the metric: the larger the better."""
        return self.value if in_points(self.metric) else -self.value

    @property
    def sweep(self) -> tuple[str, str, str]:
        """What a sweep over sparsities holds fixed."""
        return self.method, self.scope, self.recipe

    @property
    def nouns(self) -> tuple[str, str]:
        """What an example and a seed are called."""
        example = "example" if in_points(self.metric) else "window"
        return example, "seed" if self.score.kind == "fine-tuning" else "calibration draw"

    def change(self, comparisons: int = 1) -> Estimate | None:
        """The difference to the dense model: of scores, or of the logarithms of perplexities, which are the mean losses
        of windows of text. None without a common seed.
        """
        return self.against(self.start, comparisons)

    def against(self, other: Score, comparisons: int = 1) -> Estimate | None:
        """As `change`, to the score of another option on the same task."""
        if in_points(self.metric):
            return combined([(1, self.score), (-1, other)], self.count, comparisons)
        logs = [replace(score, values=np.log(score.values)) for score in (self.score, other)]
        return combined([(1, logs[0]), (-1, logs[1])], self.count, comparisons, freedom=self.count - 1)


def best(options: Iterable[Option]) -> Option | None:
    """The option with the best quality; of equals, the smaller one."""
    return max(options, key=lambda option: (option.rank, -option.bytes), default=None)


def comparisons(options: Iterable[Option]) -> int:
    """How many comparisons with the dense model compete where one of these options is chosen: 1 if there are none.

    A sweep is one, as `tolerance.verdict` tests its sparsities in order; a pattern lies on no sweep and is another.
    """
    pruned = [option for option in options if not option.is_dense]
    return max(len({(option.sweep, option.sparsity.is_pattern and option.sparsity) for option in pruned}), 1)


def _share(option: Option) -> float:
    return option.share


def front(options: Iterable[Option], model: str, cost: Callable[[Option], float] = _share) -> list[Option]:
    """The options of a model that no other one of it beats in cost and quality, the cheapest first."""
    known = [option for option in options if option.model == model and not math.isnan(cost(option))]
    found: list[Option] = []
    for option in sorted(known, key=lambda option: (cost(option), -option.rank)):
        if not found or option.rank > found[-1].rank:
            found.append(option)
    return found


def options(data: Tables) -> list[Option]:
    """The options of a study and its dense models, in the order of its tables.

    Args:
        data: the tables; `metrics` without cells that diverged, see `tables.scored`.
    """
    rows = judged(data)
    rows = rows[(rows["mask"] != "released") & (rows.method != "random")]
    sizes, speed = (dict(list(data[name].groupby(CELL, sort=False))) for name in ("sizes", "speed"))
    plain = data["sizes"].drop_duplicates("model").set_index("model").dense_bytes.astype(float).to_dict()
    runs = data["runs"].assign(value=data["runs"]["bytes"].astype(float))
    trained = runs.groupby(["task", *CELL, "recipe"], sort=False).value.mean().to_dict()
    found = []
    for (task, metric, model), mine in rows.groupby(["task", "metric", "model"], sort=False):
        starts: dict[str, Score] = {}
        for (method, scope, sparsity, recipe), cell in mine.groupby([*CELL[1:], "recipe"], sort=False):
            first, start = cell.sort_values(["calibration_seed", "seed"], kind="stable").iloc[0], start_of(recipe)
            count = examples(data, task) if in_points(metric) else int(first.windows)
            if start not in starts:
                starts[start] = Score.of(dense(mine, recipe), metric, count)
            if starts[start].values.empty:
                continue
            variant = (model, method, scope, sparsity)
            whole = trained.get((task, model, "dense", "", ZERO, start))
            found.append(
                Option(
                    task, metric, *variant, recipe, Score.of(cell, metric, count), starts[start], count,
                    *_bytes(sizes.get(variant), plain.get(model), trained.get((task, *variant, recipe)), whole),
                    1.0 if method == "dense" else _speedup(speed.get(variant)), _folder(first),
                )
            )  # fmt: skip
    return found


def _bytes(
    sizes: pd.DataFrame | None, plain: float | None, trained: float | None, start: float | None
) -> tuple[float, float, float]:
    """The bytes of the weights in the container, their share of the dense model, and their share of the plain file.

    Training changes the weights, and with them what compression saves: a trained model is measured itself.

    Args:
        sizes: of the variant of the pretrained model; None: the study has no such variant.
        plain: bytes of the dense model's own file; None: unknown.
        trained, start: bytes of the trained variant, and of the dense model that was trained; None without training.
    """
    plain = math.nan if plain is None else plain
    size, ratio = (
        (math.nan,) * 2 if sizes is None else (float(sizes[each].iloc[0]) for each in ("container_bytes", "ratio"))
    )
    if trained is None or start is None:
        return size, ratio, size / plain
    if start > plain and sizes is not None:
        start = size / ratio  # training writes float32: of a model that came in 16 bits, a size that nobody keeps
    return trained, trained / start, trained / plain


def _speedup(speed: pd.DataFrame | None) -> float:
    """Of the fastest execution of a variant at the smallest batch, on whole sequences; NaN: not measured."""
    if speed is None:
        return math.nan
    speed = speed[speed.phase != "decode"]
    return float(speed.speedup[speed.batch_size == speed.batch_size.min()].max())


def _folder(row: Any) -> Path:
    """Where the model of a row lies."""
    variant = Variant(row.method, row.scope, row.sparsity, int(row.calibration_seed))
    if row.recipe != UNTRAINED:
        return Run(row.model, variant, row.task, row.recipe, int(row.seed)).folder / "model"
    return variant_folder(row.model, variant)
