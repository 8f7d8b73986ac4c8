"""Prune a model: exactly as many weights as asked for, with little more memory than one tensor.

The weights with the lowest scores go. Where scores are equal, the earlier weight goes: tensors in the order of their
names, weights in the order of their positions. Scores are non-negative float32, whose bits order like integers, so the
threshold is found without sorting and without holding all scores: a histogram of the upper 16 bits says in which bin
it lies, a histogram of the lower 16 bits inside that bin says where. All sparsities asked for share both passes, and a
third that writes them.

Memory: one tensor, its scores and chunks, whatever the number of sparsities and however many scores are equal.
"""

import hashlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
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
from llm_sparsity.models import Place, family, in_scope

BINS = 1 << 16
INFINITY = 0x7F80  # the upper 16 bits of float32 infinity; NaN and negative numbers are above
CHUNK = 1 << 18  # weights at a time: what fits a processor's cache
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
    places: Mapping[str, Place]
    rule: ModuleType
    seed: int

    def scores(self, name: str) -> Tensor:
        """The scores of a tensor, float32 in its shape; from the seed and the tensor's name alone."""
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        scores: Tensor = self.rule.score(self.reader.tensor(name), generator)
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
            the 2 with the highest scores stay) -> folder that gets `model/` and `sparsity.csv`. In `sparsity.csv`,
            `removed` is what the method chose (the exact count asked for) and `zeros` what the tensor then holds:
            more, where weights were zero before.
        method: a module of `llm_sparsity.pruning`.
        scope: see `models.in_scope`.
        seed: for methods that draw numbers; each tensor has its own generator, so their order does not matter.

    Raises:
        UserError: no tensor in the scope, weights that are not finite, or a matrix that a pattern does not divide.
    """
    rule = importlib.import_module(f"llm_sparsity.pruning.{method}")
    kind = family(model)
    facts = {key: value for key, value in read_manifest(model).items() if key not in ("files", "bytes")}
    with Reader(model) as reader:
        names = kind.without_aliases(reader.names)
        places = {name: place for name in names if (place := kind.place(name)) and in_scope(place, scope)}
        if not places:
            raise UserError(f"scope {scope}: {model} has no such tensors; choose another scope")
        _check(model, reader, places, [level for level in outputs if "of" in level])
        pool = Pool(reader, places, rule, seed)
        cuts = _cuts(pool, [level for level in outputs if "of" not in level])
        twins = _twins(reader, names, places)
        rows: dict[str, list[dict[str, Any]]] = {level: [] for level in outputs}
        with ExitStack() as stack:
            writers = {level: stack.enter_context(Writer(output / "model")) for level, output in outputs.items()}
            for name in tqdm(sorted(set(names) - set(twins)), desc=f"prune {', '.join(outputs)}", unit="tensor"):
                scores = pool.scores(name) if name in places else None
                for level, writer in writers.items():
                    weight = reader.tensor(name)
                    if scores is not None:
                        weight = weight.clone()  # what a reader gives may be the mapped file itself
                        row = _prune_tensor(weight, scores, level, cuts.get((level, name)), kind.is_transposed(name))
                        rows[level].append({"name": name, **asdict(places[name]), **row})
                    for copy in [name, *(twin for twin, original in twins.items() if original == name)]:
                        writer.add(copy, weight)
    for level, output in outputs.items():
        copy_companions(model, output / "model")
        write_csv(output / "sparsity.csv", rows[level], COLUMNS)
        size, removed, zeros = (sum(row[key] for row in rows[level]) for key in ("size", "removed", "zeros"))
        pruned = {
            "method": method, "scope": scope, "sparsity": level, "seed": seed,
            "size": size, "removed": removed, "measured_sparsity": zeros / size,
        }  # fmt: skip
        write_manifest(output / "model", **facts, pruned=pruned)


def removed_of(size: int, sparsity: str) -> int:
    """How many of `size` weights a sparsity removes: the nearest whole number, halves to even."""
    return round(Decimal(sparsity) * size)


def _check(model: Path, reader: Reader, places: Mapping[str, Place], patterns: Sequence[str]) -> None:
    """Refuse, before anything is written, what cannot be ranked or divided."""
    kind = family(model)
    for name in places:
        if not all(torch.isfinite(chunk).all() for chunk in reader.tensor(name).reshape(-1).split(CHUNK)):
            raise UserError(
                f"{model}: tensor {name} has NaN or infinite weights, which no method can rank; use a sound checkpoint"
            )
        shape = reader.shape(name)
        for level in patterns:
            group = int(level.split("of")[1])
            if len(shape) != 2 or shape[0 if kind.is_transposed(name) else 1] % group:
                raise UserError(
                    f"sparsity {level}: {group} does not divide the input dimension of tensor {name}, which is "
                    f"{'x'.join(map(str, shape))}; choose scope linear, or another pattern"
                )


def _twins(reader: Reader, names: Sequence[str], places: Mapping[str, Place]) -> dict[str, str]:
    """Output layers that a file holds beside the embeddings they are tied to -> those embeddings.

    They have to stay equal: transformers unties what it finds different, and the output layer would be dense again.
    """
    embeddings = [name for name, place in places.items() if place.part == "embeddings"]
    return {
        name: original
        for name in names
        for original in embeddings
        if name.endswith("lm_head.weight")
        and reader.shape(name) == reader.shape(original)
        and torch.equal(reader.tensor(name), reader.tensor(original))
    }


def _cuts(pool: Pool, levels: Sequence[str]) -> dict[tuple[str, str], Cut]:
    """(sparsity, tensor) -> the cut of the pool that the tensor competes in; tensors of one pool share their cut."""
    cuts: dict[tuple[str, str], Cut] = {}
    groups = [list(pool.places)] if pool.rule.POOL == "scope" else [[name] for name in pool.places]
    for names in groups if levels else []:
        upper = np.zeros(BINS, np.int64)
        for name in names:
            for bits in pool.bits(name):
                upper += np.bincount(bits >> 16, minlength=BINS)
        if upper[INFINITY + 1 :].any():
            raise ValueError(f"{pool.rule.__name__}: scores must be non-negative numbers")
        counts = {level: removed_of(int(upper.sum()), level) for level in levels}
        bins = {level: _bin(upper, count) for level, count in counts.items()}
        lower = {number: np.zeros(BINS, np.int64) for number, _ in bins.values()}
        for name in names:
            for bits in pool.bits(name):
                numbers = bits >> 16
                for number in lower:
                    lower[number] += np.bincount(bits[numbers == number] & (BINS - 1), minlength=BINS)
        for level, count in counts.items():
            number, rank = bins[level]
            low, ties = _bin(lower[number], rank)
            threshold = np.uint32(number << 16 | low).view(np.float32)
            cut = Cut(float(threshold) if count else 0.0, ties)
            cuts |= {(level, name): cut for name in names}
    return cuts


def _bin(histogram: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """The bin that holds the rank-th smallest value (rank 1 is the smallest), and its rank inside that bin."""
    ends = np.cumsum(histogram)
    number = int(np.searchsorted(ends, max(rank, 1)))
    return number, rank - int(ends[number] - histogram[number]) if rank else 0


def _prune_tensor(weight: Tensor, scores: Tensor, level: str, cut: Cut | None, transposed: bool) -> dict[str, Any]:
    """Prune one tensor in place; the part of its row that says what happened to it."""
    removed = _cut(weight, scores, cut) if cut else _keep_pattern(weight, scores, level, transposed)
    weight += 0.0  # -0.0 becomes 0.0, every other value stays
    zeros = sum(int(np.count_nonzero((part == 0).numpy())) for part in weight.view(-1).split(CHUNK))
    return {
        "shape": "x".join(map(str, weight.shape)),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "size": weight.numel(),
        "removed": removed,
        "zeros": zeros,
        "sparsity": zeros / weight.numel(),
        "threshold": cut.threshold if cut else "",
    }


def _cut(weight: Tensor, scores: Tensor, cut: Cut) -> int:
    """Zero the weights below the cut, in place; use up the pool's ties. How many went."""
    removed = 0
    for part, score in zip(weight.view(-1).split(CHUNK), scores.view(-1).split(CHUNK), strict=True):
        gone = score < cut.threshold
        if cut.ties:
            equal = torch.nonzero(score == cut.threshold).flatten()[: cut.ties]
            gone[equal] = True
            cut.ties -= len(equal)
        part.masked_fill_(gone, 0)
        removed += int(np.count_nonzero(gone.numpy()))
    return removed


def _keep_pattern(weight: Tensor, scores: Tensor, level: str, transposed: bool) -> int:
    """Keep N of every M weights along a matrix's input, in place; of equal scores the later. How many went."""
    kept, group = map(int, level.split("of"))
    if transposed:
        weight, scores = weight.t(), scores.t()  # (out, in), the same memory
    rows = max(CHUNK // weight.shape[1], 1)
    for part, score in zip(weight.split(rows), scores.split(rows), strict=True):
        groups = score.reshape(len(part), -1, group)
        order = groups.argsort(dim=2, stable=True)[..., : group - kept]
        gone = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, order, True)
        part.masked_fill_(gone.reshape(part.shape), 0)
    return weight.numel() // group * (group - kept)
