"""Unstructured pruning: single weights, or blocks of weights, are set to zero."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from llm_sparsity.pruning.pruner import PrunedTensor, Pruner, Row, tensor_row
from llm_sparsity.pruning.scores import ScoredTensors
from llm_sparsity.pruning.selection import Threshold, lowest, thresholds
from llm_sparsity.study.sparsity import Sparsity


class UnstructuredPruner(Pruner):
    """Sets the weights with the lowest scores to zero; tensors keep their shapes.

    Args:
        tensors: the tensors of the scope.
        sparsities: fractions and patterns.
        min_density: the fraction of every tensor that is kept.
    """

    def __init__(self, tensors: ScoredTensors, sparsities: Sequence[Sparsity], min_density: float) -> None:
        self._tensors, self._sparsities = tensors, sparsities
        fractions = [sparsity for sparsity in sparsities if not sparsity.is_pattern]
        self._thresholds = thresholds(tensors, fractions, min_density)

    def results(self, names: Sequence[str]) -> Iterator[PrunedTensor]:
        """Yield every tensor at every sparsity, in the order of the names."""
        for name, sparsity in itertools.product(names, self._sparsities):
            weight, row = self._tensors.reader.tensor(name), None
            if name in self._tensors.roles:
                weight = weight.clone()  # the reader may return a view of the mapped file
                row = self._prune(name, weight, sparsity)
            yield PrunedTensor(sparsity, name, weight, row)

    def _prune(self, name: str, weight: Tensor, sparsity: Sparsity) -> Row:
        """Prune a tensor in place, and return its row of sparsity.csv."""
        threshold = self._thresholds.get((sparsity, name))
        transposed = self._tensors.model.structure.is_transposed(name)
        removed = zeros = 0
        for strip, scores in zip(self._tensors.strips(weight), self._tensors.scores(name), strict=True):
            if threshold is None:
                removed += _keep_pattern(strip, scores, sparsity, transposed)
            else:
                removed += _remove(strip, scores, threshold)
            strip.add_(0.0)  # -0.0 becomes 0.0; other values do not change
            zeros += int(np.count_nonzero((strip == 0).numpy()))
        return tensor_row(weight, weight.numel(), removed, zeros) | {"threshold": threshold.value if threshold else ""}


def _remove(weight: Tensor, scores: Tensor, threshold: Threshold) -> int:
    """Set weights to zero in place, by a score for each weight or each block.

    Returns:
        The number of weights removed.
    """
    removed = threshold.select(scores)
    count = int(np.count_nonzero(removed.numpy())) * (weight.numel() // scores.numel())
    if weight.shape != scores.shape:
        for dim in (0, 1):
            removed = removed.repeat_interleave(weight.shape[dim] // scores.shape[dim], dim)
    weight.masked_fill_(removed, 0)
    return count


def _keep_pattern(weight: Tensor, scores: Tensor, sparsity: Sparsity, transposed: bool) -> int:
    """Keep the N highest of every M scores along the input dimension, in place; among equal scores the last ones.

    Args:
        weight, scores: rows of a matrix (out, in), or (in, out) if it is transposed.
        sparsity: a pattern.
        transposed: whether the input dimension is the first.

    Returns:
        The number of weights removed.
    """
    kept, group = sparsity.pattern or (1, 1)
    if transposed:
        weight, scores = weight.t(), scores.t()  # (out, in), in the same memory
    removed = lowest(scores.reshape(len(weight), -1, group), group - kept)
    weight.masked_fill_(removed.reshape(weight.shape), 0)
    return sparsity.count(weight.numel())
