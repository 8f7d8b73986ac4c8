"""The interface that all pruners share, those of methods and those of steps."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from llm_sparsity.storage.quantized import Quantized
from llm_sparsity.study.sparsity import Sparsity

Row = dict[str, Any]  # columns of sparsity.csv -> values


class PrunedTensor(NamedTuple):
    """A tensor of the model at one sparsity.

    sparsity: the sparsity it belongs to.
    name: its name in the checkpoint.
    weight: its values after pruning.
    row: its row of sparsity.csv; None if the tensor is outside the scope.
    """

    sparsity: Sparsity
    name: str
    weight: Tensor | Quantized
    row: Row | None


class Pruner(ABC):
    """Prunes the tensors of a model to one or several sparsities."""

    def config(self, sparsity: Sparsity) -> dict[str, Any] | None:
        """The configuration of the pruned model; None if it is the dense model's."""
        return None

    @abstractmethod
    def results(self, names: Sequence[str]) -> Iterator[PrunedTensor]:
        """Yield every tensor at every sparsity, in any order.

        Args:
            names: the tensors of the checkpoint, those outside the scope included.
        """


def tensor_row(weight: Tensor, size: int, removed: int, zeros: int) -> Row:
    """The columns of sparsity.csv that every pruner reports.

    Args:
        weight: the pruned tensor.
        size: number of weights before pruning.
        removed: number of weights that the method chose.
        zeros: number of weights of `size` that are now zero or removed from the tensor.
    """
    return {
        "shape": "x".join(map(str, weight.shape)),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "size": size,
        "removed": removed,
        "zeros": zeros,
        "sparsity": zeros / size,
    }
