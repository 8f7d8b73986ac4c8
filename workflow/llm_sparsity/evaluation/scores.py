"""Scores of predicted labels, as GLUE reports them (Wang et al. 2018, arXiv:1804.07461).

Classes are scored by accuracy, F1 and their mean, numbers by two correlations; a task may name another score. They are
a local module of the library evaluate: `evaluate.load` would download a script from the hub, and compute nodes have no
network. The libraries that they need take a second to import: language models do without them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

DRAWS = 200  # resamplings of a standard error, which is then known to 5 %
Numbers = Sequence[float] | np.ndarray[Any, Any]


def _accuracy(references: Numbers, predictions: Numbers, average: str) -> float:
    del average
    return float(accuracy_score(references, predictions))


def _f1(references: Numbers, predictions: Numbers, average: str) -> float:
    return float(f1_score(references, predictions, average=average, zero_division=0))


def _macro_f1(references: Numbers, predictions: Numbers, average: str) -> float:
    del average
    return _f1(references, predictions, "macro")


def _combined(references: Numbers, predictions: Numbers, average: str) -> float:
    return (_accuracy(references, predictions, average) + _f1(references, predictions, average)) / 2


def _matthews(references: Numbers, predictions: Numbers, average: str) -> float:
    del average
    return _correlation(matthews_corrcoef, references, predictions)


def _pearson(references: Numbers, predictions: Numbers, average: str) -> float:
    del average
    return _correlation(lambda x, y: stats.pearsonr(x, y).statistic, references, predictions)


def _spearman(references: Numbers, predictions: Numbers, average: str) -> float:
    del average
    return _correlation(lambda x, y: stats.spearmanr(x, y).statistic, references, predictions)


def _correlation(function: Callable[..., Any], references: Numbers, predictions: Numbers) -> float:
    """A correlation; 0 with a constant, for which it is not defined."""
    if np.ptp(references) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(function(references, predictions))


FUNCTIONS: dict[str, Callable[[Numbers, Numbers, str], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,  # of label 1 of two
    "macro_f1": _macro_f1,  # the mean over all labels
    "combined": _combined,  # the mean of accuracy and F1, which is macro-averaged for more than two labels
    "matthews_correlation": _matthews,
    "pearsonr": _pearson,
    "spearmanr": _spearman,
}
OF_NUMBERS = ("pearsonr", "spearmanr")
OF_CLASSES = ("accuracy", "f1", "combined")


class LocalMetric(evaluate.Metric):  # type: ignore[misc]
    """The metrics of a task as one of the library evaluate, kept in memory.

    Args:
        names: keys of `FUNCTIONS`, which are also the keys of the result.
        labels: number of labels of the task, whether they occur or not; 1: numbers.
    """

    def __init__(self, names: list[str], labels: int = 2) -> None:
        self._names = names
        self._labels = labels
        self.average = "binary" if labels == 2 else "macro"
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        """No folder: evaluate would make an empty one in the home folder, which may not be writable."""
        return ""

    def _info(self) -> evaluate.MetricInfo:
        kind = datasets.Value("float64" if self._labels == 1 else "int32")
        features = datasets.Features({"predictions": kind, "references": kind})
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=features)

    def _compute(self, *, predictions: Numbers, references: Numbers) -> dict[str, float]:
        return {name: FUNCTIONS[name](references, predictions, self.average) for name in self._names}


def standard_error(name: str, predictions: Numbers, references: Numbers, average: str = "binary") -> float:
    """The standard error of a metric over examples, by the bootstrap (Efron 1979) with a fixed seed."""
    generator, ours, theirs = np.random.default_rng(0), np.asarray(predictions), np.asarray(references)
    draws = (generator.integers(len(ours), size=len(ours)) for _ in range(DRAWS))
    values = [FUNCTIONS[name](theirs[draw], ours[draw], average) for draw in draws]
    return float(np.std(values, ddof=1))


def metrics_of(labels: int, score: str) -> list[str]:
    """The metrics of a task: the usual ones of its labels, and the score that it is judged by.

    Args:
        labels: number of labels; 1: numbers.
        score: a key of `FUNCTIONS`.
    """
    usual = OF_NUMBERS if labels == 1 else OF_CLASSES
    names = ["macro_f1" if name == "f1" and labels > 2 else name for name in usual]
    return names if score in names else [*names, score]


def scores(
    predictions: Numbers, references: Numbers, labels: int = 2, score: str = "accuracy", *, error: bool = False
) -> dict[str, float]:
    """Score predicted labels.

    Args:
        predictions: predicted labels: classes from 0, or numbers.
        references: true labels, in the same order.
        labels: number of labels of the task, whether they occur or not; 1: numbers.
        score: what the task is judged by.
        error: add the standard error of `score`, as "{score}_stderr". Accuracy has none: it is a share, whose error
            follows from itself.

    Returns:
        metric -> value, see `metrics_of`.
    """
    metric = LocalMetric(metrics_of(labels, score), labels)
    found: dict[str, float] = metric.compute(predictions=predictions, references=references)
    if error and score != "accuracy":
        found[f"{score}_stderr"] = standard_error(score, predictions, references, metric.average)
    return found


def baseline(references: Numbers, labels: int = 2, score: str = "accuracy") -> dict[str, float]:
    """The best score that a constant prediction has by each metric: of accuracy, that of the most frequent label.

    The most frequent label of another split could be the rarer one here: a model that always gives the same answer
    would seem better than its baseline.

    Args:
        references: labels of the split to score on.
        labels, score: see `scores`.
    """
    found = [scores([guess] * len(references), references, labels, score) for guess in range(labels)]
    return {metric: max(each[metric] for each in found) for metric in found[0]}
