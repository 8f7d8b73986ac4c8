"""How the weights of a variant are distributed: overall, layer by layer, tensor by tensor.

Every weight that a method may prune is counted (scope `all`: no biases, heads or poolers), read one tensor at a time.
The result is one tidy table, one number a row:

    level      overall, layer or tensor
    name       of the tensor, or of the layer: "encoder 3", "embeddings"
    stack, layer, part
    statistic  count, zeros, mean, std, min, max, share_below (of abs(w), at x), histogram (weights in the bin that
               begins at x), cumulative (share of weights with abs(w) <= x)
    x, value
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from llm_sparsity.checkpoint import Reader
from llm_sparsity.files import atomic
from llm_sparsity.models import Place, family

COLUMNS = ["level", "name", "stack", "layer", "part", "statistic", "x", "value"]
THRESHOLDS = (0.001, 0.01, 0.1)
GRID = np.logspace(-5, 1, 97)  # abs(w) of the cumulative curves
BINS = 200


@dataclass
class Tally:
    """Running sums over weights."""

    place: Place
    count: int = 0
    zeros: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    below: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(THRESHOLDS), np.int64))
    cumulative: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(GRID), np.int64))

    def add(self, weight: Tensor) -> None:
        """Count a tensor in."""
        values = weight.float().reshape(-1)
        magnitudes = np.sort(values.abs().numpy())
        self.count += values.numel()
        self.zeros += int(np.searchsorted(magnitudes, 0, side="right"))
        self.total += float(values.double().sum())
        self.squares += float((values.double() ** 2).sum())
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        self.below += np.searchsorted(magnitudes, np.array(THRESHOLDS, np.float32), side="left")
        self.cumulative += np.searchsorted(magnitudes, GRID.astype(np.float32), side="right")

    def merge(self, other: "Tally") -> None:
        """Count another tally in."""
        for key in ("count", "zeros", "total", "squares"):
            setattr(self, key, getattr(self, key) + getattr(other, key))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.below = self.below + other.below
        self.cumulative = self.cumulative + other.cumulative

    def rows(self, level: str, name: str) -> Iterator[dict[str, Any]]:
        """The rows of the table."""
        head = {"level": level, "name": name, **vars(self.place)}
        mean = self.total / self.count
        std = math.sqrt(max(self.squares / self.count - mean**2, 0))
        single = {"count": self.count, "zeros": self.zeros, "mean": mean, "std": std, "min": self.low, "max": self.high}
        for statistic, value in single.items():
            yield {**head, "statistic": statistic, "x": math.nan, "value": value}
        for x, below in zip(THRESHOLDS, self.below, strict=True):
            yield {**head, "statistic": "share_below", "x": x, "value": below / self.count}
        if level != "tensor":
            for x, count in zip(GRID, self.cumulative, strict=True):
                yield {**head, "statistic": "cumulative", "x": x, "value": count / self.count}


def weights(model: Path, output: Path) -> None:
    """Describe the weights of a variant.

    Args:
        model: folder of a variant.
        output: a parquet file, less than 1 MB.
    """
    kind = family(model)
    with Reader(model) as reader:
        places = {name: place for name in kind.without_aliases(reader.names) if (place := kind.place(name))}
        tensors: dict[str, Tally] = {}
        for name, place in tqdm(places.items(), desc="weights", unit="tensor"):
            tensors[name] = Tally(place)
            tensors[name].add(reader.tensor(name))
        overall = Tally(Place("", -1, ""))
        layers: dict[tuple[str, int], Tally] = {}
        for tally in tensors.values():
            overall.merge(tally)
            key = (tally.place.stack, tally.place.layer)
            layers.setdefault(key, Tally(Place(*key, ""))).merge(tally)
        edges = np.linspace(overall.low, overall.high, BINS + 1)
        histogram = np.zeros(BINS, np.int64)
        for name in places:
            values = reader.tensor(name).float().reshape(-1)
            histogram += torch.histc(values, BINS, float(edges[0]), float(edges[-1])).numpy().astype(np.int64)
    rows = list(overall.rows("overall", ""))
    head = {"level": "overall", "name": "", "stack": "", "layer": -1, "part": ""}
    rows += [
        {**head, "statistic": "histogram", "x": x, "value": float(count)}
        for x, count in zip(edges[:-1], histogram, strict=True)
    ]
    for (stack, layer), tally in sorted(layers.items()):
        rows += tally.rows("layer", f"{stack} {layer}" if layer >= 0 else f"{stack} embeddings")
    for name, tally in sorted(tensors.items()):
        rows += tally.rows("tensor", name)
    with atomic(output) as temporary:
        pd.DataFrame(rows, columns=COLUMNS).to_parquet(temporary, index=False)
