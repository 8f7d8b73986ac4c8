"""Prune a model: exactly as many weights as asked for, with little more memory than one tensor.

The weights with the lowest scores go. Where scores are equal, the earlier weight goes: tensors in the order of their
names, weights in the order of their positions. Scores are non-negative float32, whose bits order like integers, so the
threshold is found without sorting and without holding all scores: a histogram of the upper 16 bits says in which bin
it lies, a second pass gathers only that bin. All sparsities asked for share both passes.
"""

import hashlib
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from llm_sparsity.checkpoint import Reader, Writer, copy_companions
from llm_sparsity.errors import UserError
from llm_sparsity.files import read_manifest, write_csv, write_manifest
from llm_sparsity.models import Family, Place, family, in_scope

BINS = 1 << 16
CHUNK = 1 << 22
COLUMNS = ["name", "stack", "layer", "part", "shape", "dtype", "size", "removed", "zeros", "sparsity", "threshold"]


@dataclass
class Cut:
    """Where a pool of scores is cut: all below `threshold` go, and the first `ties` of those equal to it."""

    threshold: float
    ties: int


@dataclass(frozen=True)
class Pool:
    """What is scored: the tensors of a scope, read one at a time."""

    reader: Reader
    family: Family
    places: Mapping[str, Place]
    rule: ModuleType
    seed: int

    def size(self, name: str) -> int:
        """How many weights a tensor has."""
        return math.prod(self.reader.shape(name))

    def scores(self, name: str, weight: Tensor | None = None) -> Tensor:
        """The scores of a tensor, float32 in its shape; from the seed and the tensor's name alone."""
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        scores: Tensor = self.rule.score(self.reader.tensor(name) if weight is None else weight, generator)
        return scores.contiguous()

    def bits(self, name: str) -> Iterator[NDArray[np.uint32]]:
        """Chunks of a tensor's scores as integers of the same order; adding 0 makes -0.0 to 0.0."""
        for chunk in self.scores(name).reshape(-1).split(CHUNK):
            yield (chunk + 0.0).numpy().view(np.uint32)


def prune(model: Path, outputs: Mapping[str, Path], *, method: str, scope: str, seed: int = 0) -> None:
    """Prune a model to one sparsity or several, from one scoring pass.

    Args:
        model: the folder of a dense model.
        outputs: sparsity ("0.5": that fraction of the scope goes; "2of4": of every 4 weights along a matrix's input
            the 2 with the highest scores stay) -> folder that gets `model/` and `sparsity.csv`.
        method: a module of `llm_sparsity.pruning`.
        scope: see `models.in_scope`.
        seed: for methods that draw numbers; each tensor has its own generator, so their order does not matter.

    Raises:
        UserError: no tensor in the scope, weights that are not finite, or a matrix that a pattern does not divide.
    """
    rule = importlib.import_module(f"llm_sparsity.pruning.{method}")
    kind = family(model)
    with Reader(model) as reader:
        names = kind.without_aliases(reader.names)
        places = {name: place for name in names if (place := kind.place(name)) and in_scope(place, scope)}
        if not places:
            raise UserError(f"scope {scope}: {model} has no such tensors; choose another scope")
        for name in places:
            if not torch.isfinite(reader.tensor(name)).all():
                raise UserError(f"{model}: tensor {name} has NaN or infinite weights, which no method can rank")
        pool = Pool(reader, kind, places, rule, seed)
        cuts = _cuts(pool, [level for level in outputs if "of" not in level])
        for level, output in outputs.items():
            copy_companions(model, output / "model")
            rows = []
            with Writer(output / "model") as writer:
                for name in tqdm(names, desc=f"prune {level}", unit="tensor"):
                    weight = reader.tensor(name)
                    if name in places:
                        weight = weight.clone()  # what the reader gives is the file itself, mapped into memory
                        rows.append(_prune_tensor(pool, name, weight, level, cuts.get((level, name))))
                    writer.add(name, weight)
            write_csv(output / "sparsity.csv", rows, COLUMNS)
            size, removed, zeros = (sum(row[key] for row in rows) for key in ("size", "removed", "zeros"))
            facts = {key: value for key, value in read_manifest(model).items() if key not in ("files", "bytes")}
            facts["pruned"] = {
                "method": method, "scope": scope, "sparsity": level, "seed": seed,
                "size": size, "removed": removed, "measured_sparsity": zeros / size,
            }  # fmt: skip
            write_manifest(output / "model", **facts)


def removed_of(size: int, sparsity: str) -> int:
    """How many of `size` weights a sparsity removes: the nearest whole number, halves to even."""
    return round(Decimal(sparsity) * size)


def _cuts(pool: Pool, levels: Sequence[str]) -> dict[tuple[str, str], Cut]:
    """(sparsity, tensor) -> the cut of the pool that the tensor competes in; tensors of one pool share their cut."""
    cuts: dict[tuple[str, str], Cut] = {}
    groups = [list(pool.places)] if pool.rule.POOL == "scope" else [[name] for name in pool.places]
    for names in groups if levels else []:
        histogram = np.zeros(BINS, np.int64)
        for name in names:
            for bits in pool.bits(name):
                histogram += np.bincount(bits >> 16, minlength=BINS)
        ends = np.cumsum(histogram)
        counts = {level: removed_of(int(ends[-1]), level) for level in levels}
        bins = {level: int(np.searchsorted(ends, max(count, 1))) for level, count in counts.items()}
        inside: dict[int, list[NDArray[np.uint32]]] = {number: [] for number in bins.values()}
        for name in names:
            for bits in pool.bits(name):
                for number, found in inside.items():
                    found.append(bits[bits >> 16 == number])
        for level, count in counts.items():
            number = bins[level]
            candidates = np.concatenate(inside[number])
            rank = max(count - int(ends[number] - histogram[number]), 1)  # the rank-th smallest is the last to go
            threshold = np.partition(candidates, rank - 1)[rank - 1]
            ties = rank - int((candidates < threshold).sum()) if count else 0
            cut = Cut(float(threshold.view(np.float32)) if count else 0.0, ties)
            cuts |= {(level, name): cut for name in names}
    return cuts


def _prune_tensor(pool: Pool, name: str, weight: Tensor, level: str, cut: Cut | None) -> dict[str, Any]:
    """Prune one tensor in place; the row that says what happened to it."""
    before = int((weight == 0).sum())
    if cut:
        _cut(weight, pool.scores(name, weight), cut)
    else:
        _keep_pattern(weight, pool.scores(name, weight), level, name, pool.family.transposed)
    weight[weight == 0] = 0  # -0.0 is a zero, and is stored as one
    zeros = int((weight == 0).sum())
    return {
        **vars(pool.places[name]),
        "name": name,
        "shape": "x".join(map(str, weight.shape)),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "size": weight.numel(),
        "removed": zeros - before,
        "zeros": zeros,
        "sparsity": zeros / weight.numel(),
        "threshold": cut.threshold if cut else "",
    }


def _cut(weight: Tensor, scores: Tensor, cut: Cut) -> None:
    """Zero the weights below the cut, in place; use up the pool's ties."""
    gone = scores.reshape(-1) < cut.threshold
    if cut.ties:
        equal = torch.nonzero(scores.reshape(-1) == cut.threshold).flatten()[: cut.ties]
        gone[equal] = True
        cut.ties -= len(equal)
    weight.view(-1)[gone] = 0


def _keep_pattern(weight: Tensor, scores: Tensor, level: str, name: str, transposed: bool) -> None:
    """Keep N of every M weights along the input dimension of a matrix, in place; where equal, the later ones."""
    kept, group = map(int, level.split("of"))
    view = weight.t() if transposed and weight.dim() == 2 else weight  # (out, in)
    if weight.dim() != 2 or view.shape[1] % group:
        raise UserError(
            f"sparsity {level}: {group} does not divide the input dimension of tensor {name}, which is "
            f"{'x'.join(map(str, weight.shape))}; choose scope linear, or another pattern"
        )
    ranked = (scores.t() if transposed else scores).reshape(view.shape[0], -1, group)
    order = ranked.argsort(dim=2, stable=True)[..., : group - kept]
    gone = torch.zeros_like(ranked, dtype=torch.bool).scatter_(2, order, True)
    view[gone.reshape(view.shape)] = 0
