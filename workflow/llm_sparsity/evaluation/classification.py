"""Metrics of classification: accuracy, F1 and their mean, as GLUE reports MRPC (Wang et al. 2018).

Accuracy and F1 are local modules of the library evaluate: `evaluate.load` would download a script from the hub, and
compute nodes have no network. The libraries that they need take a second to import: language models do without them.
"""

from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score


class _LabelMetric(evaluate.Metric):  # type: ignore[misc]
    """A metric of integer labels, kept in memory."""

    def __init__(self, config_name: str | None = None) -> None:
        super().__init__(config_name, keep_in_memory=True)

    def _build_data_dir(self) -> str:
        """No folder: evaluate would make an empty one in the home folder, which may not be writable."""
        return ""

    def _info(self) -> evaluate.MetricInfo:
        labels = {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=datasets.Features(labels))


class Accuracy(_LabelMetric):
    """The share of predictions that equal their references."""

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class F1(_LabelMetric):
    """The F1 score: of label 1 if `config_name` is "binary", the mean over all labels if it is "macro"."""

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"f1": float(f1_score(references, predictions, average=self.config_name, zero_division=0))}


def score(predictions: Sequence[int], references: Sequence[int], labels: int = 2) -> dict[str, float]:
    """Score predicted labels.

    Args:
        predictions: predicted labels, from 0.
        references: true labels, in the same order.
        labels: number of labels of the task, whether they occur or not. F1 is binary for 2, macro-averaged for more.

    Returns:
        accuracy, f1, and combined, the mean of both.
    """
    metrics = evaluate.combine([Accuracy(), F1("binary" if labels == 2 else "macro")])
    result: dict[str, float] = metrics.compute(predictions=predictions, references=references)
    return {**result, "combined": (result["accuracy"] + result["f1"]) / 2}


def majority(training: Sequence[int], references: Sequence[int], labels: int = 2) -> dict[str, float]:
    """The score of the majority baseline: every prediction is the most frequent training label.

    Args:
        training: labels of the training split.
        references: labels of the split to score on.
        labels: number of labels of the task.
    """
    ((label, _),) = Counter(training).most_common(1)
    return score([label] * len(references), references, labels)
