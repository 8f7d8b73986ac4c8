"""Metrics: accuracy, F1 and their mean for classification, as GLUE reports MRPC (Wang et al. 2018); perplexity.

Accuracy and F1 are local modules of the library evaluate: `evaluate.load` would download a script from the hub, and
compute nodes have no network.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score


class _LabelMetric(evaluate.Metric):  # type: ignore[misc]
    """A metric of integer labels."""

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
    # evaluate creates its cache folder (by default in the home folder) even if it keeps everything in memory.
    with tempfile.TemporaryDirectory() as cache:
        metrics = [
            Accuracy(keep_in_memory=True, cache_dir=cache),
            F1("binary" if labels == 2 else "macro", keep_in_memory=True, cache_dir=cache),
        ]
        result: dict[str, float] = evaluate.combine(metrics).compute(predictions=predictions, references=references)
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


def perplexity(nll: float) -> float:
    """The exponential of a mean negative log-likelihood in nats; inf above 700, close to the largest float."""
    return math.exp(nll) if nll < 700 else math.inf
