"""What pruning works on: the tensors of a scope, scored strip by strip; and what is told of each."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_sparsity.models.loading import Place
from llm_sparsity.storage.container import Reader

STRIP = 1 << 18  # weights at a time: what fits a processor's cache
Row = dict[str, Any]


@dataclass(frozen=True)
class Pool:
    """What is scored: the tensors of a scope, read one at a time."""

    reader: Reader
    places: Mapping[str, Place]
    rule: ModuleType
    seed: int
    step: int  # rows that cannot be told apart: a block's, or a pattern's where the input runs over the rows

    def strips(self, weight: Tensor) -> Sequence[Tensor]:
        """A tensor of the pool as strips of its rows."""
        rows = max(STRIP // weight[0].numel() // self.step, 1) * self.step
        strips: Sequence[Tensor] = weight.split(rows)
        return strips

    def scores(self, name: str) -> Iterator[Tensor]:
        """The scores of a tensor's strips, float32; from the seed and the tensor's name alone."""
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        for strip in self.strips(self.reader.tensor(name)):
            yield self.rule.score(strip, generator).contiguous()

    def bits(self, name: str) -> Iterator[NDArray[np.uint32]]:
        """The same, flat, as integers of the same order; adding 0 makes -0.0 to 0.0."""
        for scores in self.scores(name):
            yield (scores.reshape(-1) + 0.0).numpy().view(np.uint32)


def describe(weight: Tensor, size: int, removed: int, zeros: int) -> Row:
    """What every row of sparsity.csv says."""
    return {
        "shape": "x".join(map(str, weight.shape)),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "size": size,
        "removed": removed,
        "zeros": zeros,
        "sparsity": zeros / size,
    }
