"""How the weights of a variant are distributed: overall, layer by layer, tensor by tensor.

Every weight that a method may prune is counted (scope `all`: no biases, heads or poolers), read one tensor at a time,
twice. All numbers are exact counts of the weights as float32. The result is one tidy table, one number a row:

    level      overall, layer or tensor
    name       of the tensor, or of the layer: "encoder 3", "embeddings"
    stack, layer, part
    statistic  count, zeros, mean, std, min, max
               share_below  share of weights with abs(w) < x
               quantile     of w (nearest rank); of tensors only
               cumulative   share of weights with abs(w) <= x; overall and of layers
               histogram    weights in the bin that begins at x; overall only. The bins are equally wide, zero is in the
                            middle of one, and they span 99.9 % of the weights; the first and the last bin hold the rest
                            as well: a few norms and outliers would else squeeze all others into a few bins
    x, value
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.loading import Place, family
from llm_sparsity.storage.container import Reader
from llm_sparsity.storage.files import atomic

COLUMNS = ["level", "name", "stack", "layer", "part", "statistic", "x", "value"]
THRESHOLDS = (0.001, 0.01, 0.1)
GRID = np.logspace(-5, 1, 97)  # abs(w) of the cumulative curves
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SHOWN = 0.999  # share of the weights that the histogram has to span
BINS = 201  # odd: zero is in the middle of a bin
CHUNK = 1 << 22


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
    quantiles: tuple[float, ...] = ()

    def add(self, weight: Tensor) -> None:
        """Count a tensor in."""
        for part in weight.reshape(-1).split(CHUNK):
            double = part.double().numpy()
            self.total += float(double.sum())
            self.squares += float(np.square(double, out=double).sum())
        values = np.sort(weight.reshape(-1).float().numpy())
        self.count += len(values)
        self.zeros += int(_within(values, np.zeros(1, np.float32))[0])
        self.low = min(self.low, float(values[0]))
        self.high = max(self.high, float(values[-1]))
        self.below += _within(values, np.nextafter(np.array(THRESHOLDS, np.float32), np.float32(0)))
        self.cumulative += _within(values, GRID.astype(np.float32))
        self.quantiles = tuple(float(values[round(share * (len(values) - 1))]) for share in QUANTILES)

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
        if level == "tensor":
            for x, value in zip(QUANTILES, self.quantiles, strict=True):
                yield {**head, "statistic": "quantile", "x": x, "value": value}
        else:
            for x, count in zip(GRID, self.cumulative, strict=True):
                yield {**head, "statistic": "cumulative", "x": x, "value": count / self.count}


def _within(ordered: NDArray[np.float32], magnitudes: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many of the ordered values have abs(value) <= each magnitude."""
    found: NDArray[np.int64] = np.searchsorted(ordered, magnitudes, "right") - np.searchsorted(ordered, -magnitudes)
    return found


def weights(model: Path, output: Path) -> None:
    """Describe the weights of a variant.

    Args:
        model: folder of a variant.
        output: a parquet file, less than 1 MB.

    Raises:
        UserError: a weight is NaN or infinite; the tensor is named.
    """
    kind = family(model)
    with Reader(model) as reader:
        places = {name: place for name in kind.without_aliases(reader.names) if (place := kind.place(name))}
        tensors: dict[str, Tally] = {}
        for name, place in tqdm(places.items(), desc="weights", unit="tensor"):
            tensors[name] = Tally(place)
            tensors[name].add(reader.tensor(name))
            if not math.isfinite(tensors[name].low) or not math.isfinite(tensors[name].high):
                raise UserError(f"{model}: tensor {name} has NaN or infinite weights; use a sound checkpoint")
        overall = Tally(Place("", -1, ""))
        layers: dict[tuple[str, int], Tally] = {}
        for tally in tensors.values():
            overall.merge(tally)
            key = (tally.place.stack, tally.place.layer)
            layers.setdefault(key, Tally(Place(*key, ""))).merge(tally)
        reach = float(GRID[min(int(np.searchsorted(overall.cumulative, SHOWN * overall.count)), len(GRID) - 1)])
        edges = np.linspace(-reach, reach, BINS + 1)
        histogram = np.zeros(BINS, np.int64)
        for name in places:
            for part in reader.tensor(name).reshape(-1).split(CHUNK):
                histogram += np.histogram(part.double().clamp(-reach, reach).numpy(), BINS, (-reach, reach))[0]
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
