"""Which way of multiplying is fastest: measured once for each kind of layer and number of tokens, then remembered."""

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llm_sparsity.inference import kernels, timing
from llm_sparsity.inference.packed import Packed

TURNS = 3
PASSES = 2  # `product` and `gathered` read the matrix again for every 16 tokens: not tried if they would more often
MAX_DENSITY = 0.6  # above it, `skipped` and `gathered` never pay, and the list of columns of `skipped` is not made


def possible(matrix: Packed, tokens: int) -> list[str]:
    """The ways of multiplying a matrix that may be the fastest for a number of tokens."""
    names = ["expanded"]
    mostly_zeros = matrix.density <= MAX_DENSITY
    if tokens <= PASSES * kernels.most_tokens(matrix.path):
        names.append("product")
        if mostly_zeros and matrix.path in kernels.GATHERING:
            names.append("gathered")
    if mostly_zeros or matrix.rows > 1:
        names.append("skipped")
    return names


class Ways:
    """The fastest way of one kind of layer, by number of tokens.

    Args:
        layers: the layers of this kind. Measuring goes through them, so that weights come from memory where those of a
            model do.
    """

    def __init__(self, layers: Iterable[Any] = ()) -> None:
        self.layers = list(layers)
        self._known: dict[tuple[int, int], str] = {}

    def __deepcopy__(self, _: object) -> "Ways":
        return self  # copies of a model share what is known

    def fastest(self, x: Tensor) -> str:
        """The name of the fastest way to multiply x (..., inputs). Its outputs do not depend on earlier calls."""
        matrix = self.layers[0].matrix
        tokens = x.numel() // matrix.inputs
        if tokens == 0:
            return "product"
        size = 1 << (tokens - 1).bit_length()  # next power of two
        key = size, torch.get_num_threads()
        if key not in self._known:
            self._known[key] = self._measured(x, tokens)
            self._forget_columns()
        return self._known[key]

    def _measured(self, x: Tensor, tokens: int) -> str:
        names = possible(self.layers[0].matrix, tokens)
        if len(names) == 1:
            return names[0]
        visited = self.layers[: (TURNS + 1) * len(names)]
        if "skipped" in names:  # a list is made once, so its time is none of a multiplication
            for layer in visited:
                layer.matrix.listed_columns()
        layers = itertools.cycle(visited)
        with torch.inference_mode():
            seconds = timing.take_turns([partial(_multiply, layers, name, x) for name in names], TURNS)
        return names[int(seconds.min(axis=0).argmin())]

    def _forget_columns(self) -> None:
        """Free what was made to measure `skipped`, if it is not used."""
        if "skipped" not in self._known.values():
            for layer in self.layers:
                layer.matrix.columns = None


def _multiply(layers: Iterator[Any], way: str, x: Tensor) -> None:
    getattr(next(layers), way)(x)
