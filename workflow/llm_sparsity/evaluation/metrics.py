"""The metric of classification tasks: accuracy, F1 and their mean, as GLUE reports MRPC (Wang et al. 2018).

A local module of the library evaluate, so that a compute node without network needs no script from a hub.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score


class Classification(evaluate.Metric):  # type: ignore[misc]
    """accuracy, f1 (of label 1 with two labels, macro-averaged with more), combined: the mean of both."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            features=datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}),
        )

    def _compute(self, *, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        average = "binary" if self.config_name == "2" else "macro"
        accuracy = float(accuracy_score(references, predictions))
        f1 = float(f1_score(references, predictions, average=average, zero_division=0))
        return {"accuracy": accuracy, "f1": f1, "combined": (accuracy + f1) / 2}


def score(predictions: Sequence[int], references: Sequence[int], labels: int = 2) -> dict[str, float]:
    """accuracy, f1, combined of predicted labels, for a task that has `labels` of them, whether they occur or not."""
    metric: Any = Classification(config_name=str(labels), keep_in_memory=True)
    result: dict[str, float] = metric.compute(predictions=predictions, references=references)
    return result


def majority(training: Sequence[int], references: Sequence[int], labels: int = 2) -> dict[str, float]:
    """What a model reaches that always answers with the most frequent training label."""
    ((label, _),) = Counter(training).most_common(1)
    return score([label] * len(references), references, labels)
