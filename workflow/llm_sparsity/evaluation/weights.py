"""Weight statistics of a model: overall, by layer and by tensor.

Every weight of scope `all` counts: no biases, heads or poolers; tied tensors once. Tensors are read one at a time,
twice. All counts are exact, of the weights as float32. The result is one tidy table, a row a number:

    level      overall, layer or tensor
    name       of the tensor, or of the layer: "encoder 3", "encoder embeddings"
    stack, layer, part
    statistic  count, zeros, mean, std, min, max
               share_below  share of weights with abs(w) < x
               quantile     of w (nearest rank); tensors only
               cumulative   share of weights with abs(w) <= x; overall and layers only
               histogram    number of weights in the bin that begins at x; overall only
    x, value

The bins of the histogram are equally wide, zero is in the middle of one, and they span 99.9 % of the weights. The
weights outside, a few norms and outliers, are counted in the first and the last bin.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.roles import TensorRole
from llm_sparsity.storage.container import Reader
from llm_sparsity.storage.files import atomic, write_json
from llm_sparsity.storage.sizes import weight_sizes

COLUMNS = ["level", "name", "stack", "layer", "part", "statistic", "x", "value"]
THRESHOLDS = (0.001, 0.01, 0.1)
GRID = np.logspace(-5, 1, 97)  # abs(w) of the cumulative curves
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SPANNED = 0.999  # share of the weights that the histogram spans
BINS = 201  # odd, so zero is in the middle of a bin
CHUNK = 1 << 22  # weights converted to float64 at a time


@dataclass
class Tally:
    """Running sums over the weights of a role."""

    role: TensorRole
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
        """Add the weights of a tensor."""
        for part in weight.reshape(-1).split(CHUNK):
            double = part.to(torch.float64, copy=True).numpy()
            self.total += float(double.sum())
            self.squares += float(np.square(double, out=double).sum())
        values = np.sort(weight.reshape(-1).float().numpy())
        self.count += len(values)
        self.zeros += int(_count_within(values, np.zeros(1, np.float32))[0])
        self.low = min(self.low, float(values[0]))
        self.high = max(self.high, float(values[-1]))
        self.below += _count_within(values, np.nextafter(np.array(THRESHOLDS, np.float32), np.float32(0)))
        self.cumulative += _count_within(values, GRID.astype(np.float32))
        self.quantiles = tuple(float(values[round(share * (len(values) - 1))]) for share in QUANTILES)

    def merge(self, other: "Tally") -> None:
        """Add the sums of another tally."""
        for key in ("count", "zeros", "total", "squares"):
            setattr(self, key, getattr(self, key) + getattr(other, key))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.below = self.below + other.below
        self.cumulative = self.cumulative + other.cumulative

    def rows(self, level: str, name: str) -> Iterator[dict[str, Any]]:
        """The rows of the table, for a level and a name."""
        head = {"level": level, "name": name, **vars(self.role)}
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


def _count_within(ordered: NDArray[np.float32], magnitudes: NDArray[np.float32]) -> NDArray[np.int64]:
    """The number of values with abs(value) <= each magnitude.

    Args:
        ordered: (values,), ascending.
        magnitudes: (magnitudes,).
    """
    counts: NDArray[np.int64] = np.searchsorted(ordered, magnitudes, "right") - np.searchsorted(ordered, -magnitudes)
    return counts


def weights(model: ModelFolder, output: Path) -> None:
    """Write the weight statistics of a model, and the bytes that its weights take.

    Args:
        model: a model, dense or pruned.
        output: folder to write; gets weights.parquet, less than 1 MB, and sizes.json, see `weight_sizes`.

    Raises:
        UserError: a weight is NaN or infinite; the message names the tensor.
    """
    with model.open() as reader:
        tensors = _tally_tensors(model, reader)
        overall, layers = _merged(tensors)
        histogram = _histogram(reader, list(tensors), overall)
        sizes = weight_sizes(reader, model.structure.without_copies(reader.names), model)
    rows = [*overall.rows("overall", ""), *histogram]
    for (stack, layer), tally in sorted(layers.items()):
        rows += tally.rows("layer", f"{stack} {layer}" if layer >= 0 else f"{stack} embeddings")
    for name, tally in sorted(tensors.items()):
        rows += tally.rows("tensor", name)
    with atomic(output / "weights.parquet") as temporary:
        pd.DataFrame(rows, columns=COLUMNS).to_parquet(temporary, index=False)
    write_json(output / "sizes.json", sizes)


def _tally_tensors(model: ModelFolder, reader: Reader) -> dict[str, Tally]:
    """The tally of each tensor of scope `all`."""
    tensors: dict[str, Tally] = {}
    for name, role in tqdm(model.roles(reader.names).items(), desc="weights", unit="tensor"):
        tensors[name] = Tally(role)
        tensors[name].add(reader.tensor(name))
        if not math.isfinite(tensors[name].low) or not math.isfinite(tensors[name].high):
            raise UserError(f"{model}: tensor {name} has NaN or infinite weights; use a sound checkpoint")
    return tensors


def _merged(tensors: Mapping[str, Tally]) -> tuple[Tally, dict[tuple[str, int], Tally]]:
    """The tally of all tensors, and of each layer, by stack and layer number."""
    overall = Tally(TensorRole("", -1, ""))
    layers: dict[tuple[str, int], Tally] = {}
    for tally in tensors.values():
        overall.merge(tally)
        key = (tally.role.stack, tally.role.layer)
        layers.setdefault(key, Tally(TensorRole(*key, ""))).merge(tally)
    return overall, layers


def _histogram(reader: Reader, names: Iterable[str], overall: Tally) -> list[dict[str, Any]]:
    """The rows of the histogram over all weights."""
    reach = float(GRID[min(int(np.searchsorted(overall.cumulative, SPANNED * overall.count)), len(GRID) - 1)])
    counts = np.zeros(BINS, np.int64)
    for name in names:
        for part in reader.tensor(name).reshape(-1).split(CHUNK):
            counts += np.histogram(part.double().clamp(-reach, reach).numpy(), BINS, (-reach, reach))[0]
    head = {"level": "overall", "name": "", **vars(overall.role), "statistic": "histogram"}
    starts = np.linspace(-reach, reach, BINS + 1)[:-1]
    return [{**head, "x": x, "value": float(count)} for x, count in zip(starts, counts, strict=True)]
