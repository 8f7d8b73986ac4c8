"""The standard error of the difference of two models' scores on the same examples.

Models that fail on the same examples differ by less chance than two independent scores.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llm_sparsity.study.sources import SCORES

DRAWS = 200  # of a bootstrap, whose standard error is then known to 5 %

Array = NDArray[np.float64]
Weighted = Callable[[Array, Array, Array], float]  # a score from labels, predictions and weights


def paired_error(score: str, ours: pd.DataFrame, theirs: pd.DataFrame, average: str = "binary") -> float:
    """The standard error of the difference of a score; of perplexities, of the logarithm of their ratio.

    Args:
        score: of `scores.FUNCTIONS`, or "perplexity".
        ours, theirs: rows of predictions.csv: `label` and `prediction` of an example, or `nll` of a window of text.
        average: of F1 in `combined`: "macro" for a task with more than two labels, whether they occur or not.
    """
    if score == "perplexity":
        return float((ours.nll - theirs.nll).sem())
    labels, predictions = ours.label.to_numpy(), (ours.prediction.to_numpy(), theirs.prediction.to_numpy())
    if score == "accuracy":
        one, other = (each == labels for each in predictions)
        return _of_shares(int((one & ~other).sum()), int((other & ~one).sum()), len(labels))
    return _bootstrap(weighted(score, average), labels, *predictions, of_classes=score not in SCORES["regression"])


def _of_shares(gained: int, lost: int, examples: int) -> float:
    """Of two shares, by the examples in which they differ.

    A half is added to the number of examples of each outcome, so that few disagreements, or none, leave an error
    (Agresti & Min 2005, doi:10.1002/sim.1781).
    """
    more, less, count = gained + 0.5, lost + 0.5, examples + 2
    return float(np.sqrt(more + less - (more - less) ** 2 / count) / count)


def _bootstrap(function: Weighted, labels: Array, ours: Array, theirs: Array, *, of_classes: bool) -> float:
    """By the Bayesian bootstrap (Rubin 1981, doi:10.1214/aos/1176345338) with a fixed seed.

    Every example gets a random weight, the same for both models. Of classes, two examples are added, spread evenly over
    labels and outcomes, for the reason given in `_of_shares`.
    """
    shapes = np.ones(len(labels))
    if of_classes:
        classes = 1 + int(max(1, labels.max(), ours.max(), theirs.max()))
        right = np.tile(np.arange(classes), 4)
        wrong = np.repeat([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]], classes, axis=1)  # of our model, of theirs
        labels, shapes = np.append(labels, right), np.append(shapes, np.full(len(right), 2 / len(right)))
        ours, theirs = (np.append(own, (right + off) % classes) for own, off in zip((ours, theirs), wrong, strict=True))
    generator, differences = np.random.default_rng(0), []
    for _ in range(DRAWS):
        weights = generator.gamma(shapes)
        differences.append(function(labels, ours, weights) - function(labels, theirs, weights))
    return float(np.std(differences, ddof=1))


def _of_confusion(function: Callable[[Array], float]) -> Weighted:
    """A score from the weights of each pair of label and prediction, (labels, predictions)."""

    def scored(labels: Array, predictions: Array, weights: Array) -> float:
        classes = 1 + int(max(labels.max(), predictions.max()))
        cells = (labels * classes + predictions).astype(int)
        sums: Array = np.bincount(cells, weights, classes**2).astype(float)
        return function(sums.reshape(classes, classes))

    return scored


def _f1(confusion: Array) -> Array:
    """Of each label that occurs."""
    both = confusion.sum(0) + confusion.sum(1)
    return np.asarray(2 * confusion.diagonal()[both > 0] / both[both > 0])


def _combined(f1: Callable[[Array], float]) -> Weighted:
    """The mean of accuracy and F1, by how F1 is taken of the labels' own."""
    return _of_confusion(lambda confusion: float(np.trace(confusion) / confusion.sum() + f1(_f1(confusion))) / 2)


def _matthews(confusion: Array) -> float:
    true, predicted, total = confusion.sum(1), confusion.sum(0), confusion.sum()
    scale = (total**2 - true @ true) * (total**2 - predicted @ predicted)
    return float((np.trace(confusion) * total - true @ predicted) / np.sqrt(scale)) if scale > 0 else 0.0


def _pearson(labels: Array, predictions: Array, weights: Array) -> float:
    (own, both), (_, other) = np.cov(labels, predictions, aweights=weights)
    return float(both / np.sqrt(own * other)) if own * other > 0 else 0.0


def _spearman(labels: Array, predictions: Array, weights: Array) -> float:
    return _pearson(_ranks(labels, weights), _ranks(predictions, weights), weights)


def _ranks(values: Array, weights: Array) -> Array:
    """The weight of what is smaller, and half of that of what is equal."""
    _, places = np.unique(values, return_inverse=True)
    sums = np.bincount(places, weights)
    return np.asarray((sums.cumsum() - sums / 2)[places])


# The scores of `evaluation.scores`, of weighted examples: those of sklearn take a hundred times as long.
FUNCTIONS: dict[str, Weighted] = {
    "f1": _of_confusion(lambda confusion: float(_f1(confusion)[1])),
    "macro_f1": _of_confusion(lambda confusion: float(_f1(confusion).mean())),
    "combined": _combined(lambda f1: float(f1[1])),
    "matthews_correlation": _of_confusion(_matthews),
    "pearsonr": _pearson,
    "spearmanr": _spearman,
}
_COMBINED_MACRO = _combined(lambda f1: float(f1.mean()))


def weighted(score: str, average: str) -> Weighted:
    """A score of weighted examples, see `paired_error`."""
    return _COMBINED_MACRO if (score, average) == ("combined", "macro") else FUNCTIONS[score]
