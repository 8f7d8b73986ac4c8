"""The tensors of a scope and their scores, read and scored in strips of rows."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.roles import TensorRole
from llm_sparsity.storage.container import Reader

STRIP = 1 << 18  # weights in a strip; it fits the cache of a processor


@dataclass(frozen=True)
class ScoredTensors:
    """The tensors of a scope, with the scores that a method gives their weights.

    Scores are computed again whenever they are needed: this costs less than to keep them in memory.

    model: the dense model.
    reader: its weights.
    roles: name -> role of each tensor in the scope.
    method: a module of `llm_sparsity.pruning.methods`, or of `steps`.
    seed: of methods that draw random numbers.
    row_multiple: a strip has a multiple of this number of rows, so that no block and no group of a pattern is split.
    """

    model: ModelFolder
    reader: Reader
    roles: Mapping[str, TensorRole]
    method: ModuleType
    seed: int
    row_multiple: int

    @property
    def granularity(self) -> tuple[int, int] | None:
        """(rows, columns) of weights that are set to zero together; None if heads and neurons are removed."""
        size: tuple[int, int] | None = self.method.GRANULARITY
        return size

    @property
    def is_calibrated(self) -> bool:
        """Whether the method, or the step, needs the inputs of the matrices."""
        return hasattr(self.method, "observe") or hasattr(self.method, "train")

    def strips(self, weight: Tensor) -> Sequence[Tensor]:
        """Split a tensor of the scope into strips of its rows."""
        strips: Sequence[Tensor] = weight.split(self._rows(weight))
        return strips

    def _rows(self, weight: Tensor) -> int:
        """The number of rows in a strip."""
        return max(STRIP // weight[0].numel() // self.row_multiple, 1) * self.row_multiple

    def scores(self, name: str) -> Iterator[Tensor]:
        """The scores of each strip of a tensor, float32.

        The random generator depends on the seed and the name of the tensor only, not on other tensors.
        """
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        weight, score = self.reader.tensor(name), self.method.score
        if getattr(self.method, "STRIPS", False):
            found: Iterable[Tensor] = (score(strip, generator) for strip in self.strips(weight))
        else:
            packed = weight.dim() == 3  # experts, a matrix each
            whole = torch.stack([score(each, generator) for each in weight]) if packed else score(weight, generator)
            found = whole.split(self._rows(weight) // (self.granularity or (1, 1))[0])
        for scores in found:
            yield scores.float().contiguous()

    def bits(self, name: str) -> Iterator[NDArray[np.uint32]]:
        """The scores of each strip, flat, as the integers with the same bits: non-negative float32 sort like these."""
        for scores in self.scores(name):
            yield (scores.reshape(-1) + 0.0).numpy().view(np.uint32)  # + 0.0 turns -0.0 into 0.0
