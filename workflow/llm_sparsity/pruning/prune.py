"""Prune a model: exactly as many weights as asked for, with little more memory than one tensor.

The weights with the lowest scores go. Where scores are equal, the earlier weight goes: tensors in the order of their
names, weights in the order of their positions. Scores are non-negative float32, whose bits order like integers, so the
threshold is found without sorting and without holding all scores: a histogram of the upper 16 bits says in which bin
it lies, a histogram of the lower 16 bits inside that bin says where. All sparsities asked for share both passes, and a
third that writes them.

Three ways to remove: `Zeroing` leaves zeros where weights were, `Cutting` makes tensors smaller; `calibrate.Calibrated`
leaves zeros too, and needs a text to choose them.

Memory: one copy of a tensor, and strips of its rows, whatever the number of sparsities and however many scores are
equal. Scores are made strip by strip whenever they are needed: making them costs less than holding them.
"""

import importlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.loading import Place, family, heads, in_scope, narrower
from llm_sparsity.pruning.scores import Pool, Row, describe
from llm_sparsity.pruning.selection import lowest, pattern_of, removed_of
from llm_sparsity.storage.container import Reader, Writer, copy_companions
from llm_sparsity.storage.files import read_json, read_manifest, write_csv, write_json, write_manifest

BINS = 1 << 16
INFINITY = 0x7F80  # the upper 16 bits of float32 infinity; NaN and negative numbers are above
COLUMNS = [
    "name", "stack", "layer", "part", "shape", "dtype", "size", "removed", "zeros", "sparsity", "threshold", "error",
    "block_error",
]  # fmt: skip


@dataclass
class Cut:
    """Where a pool of scores is cut: all below `threshold` go, and the first `ties` of those equal to it."""

    threshold: float
    ties: int


def prune(
    model: Path,
    outputs: Mapping[str, Path],
    *,
    method: str,
    scope: str,
    seed: int = 0,
    floor: float = 0.0,
    budgets: str = "uniform",
    calibration: Mapping[str, int] | None = None,
    text: Path | None = None,
) -> None:
    """Prune a model to one sparsity or several, from one scoring pass; a calibrated method takes a pass for each.

    Args:
        model: the folder of a dense model.
        outputs: sparsity ("0.5": that fraction of the scope goes; "2of4": of every 4 weights along a matrix's input
            the 2 with the highest scores stay) -> folder that gets `model/` and `sparsity.csv`. In `sparsity.csv`,
            `removed` is what the method chose (the exact count asked for, where single weights go) and `zeros` what
            the tensor then lacks: more, where weights were zero before. Two columns are of calibrated methods, for the
            first calibration sequences: `error`, by how much pruning changed what the matrix gives, its inputs being
            those after the blocks before were pruned, and `block_error`, the same of the whole block: the norm of the
            change over that of what was given before.
        method: a module of `llm_sparsity.pruning.selection`.
        scope: see `models.in_scope`.
        seed: for methods that draw numbers; each tensor has its own generator, so their order does not matter.
        floor: the share of every tensor that stays, whatever its scores, so that no layer collapses.
        budgets: for calibrated methods: "uniform", or "owl": layers with more outliers lose less, see `pruning._owl`.
        calibration: for calibrated methods: samples, sequence_length and seed, see `calibrate.sequences`.
        text: for calibrated methods: the folder of a prepared language-model task that has a train split.

    Raises:
        UserError: no tensor in the scope, weights that no method can rank, a matrix that a pattern or a block does not
            divide, a sparsity that would leave a layer without heads or neurons, one that the floor forbids, or a text
            that is too short.
    """
    rule = importlib.import_module(f"llm_sparsity.pruning.methods.{method}")
    kind = family(model)
    facts = {key: value for key, value in read_manifest(model).items() if key not in ("files", "bytes")}
    with Reader(model) as reader:
        names = kind.without_aliases(reader.names)
        places = {name: place for name in names if (place := kind.place(name)) and in_scope(place, scope)}
        if not places:
            raise UserError(f"scope {scope}: {model} has no such tensors; choose another scope")
        groups = [pattern[1] for level in outputs if (pattern := pattern_of(level))]
        pool = Pool(reader, places, rule, seed, math.lcm((rule.UNIT or (1, 1))[0], *groups))
        _check(model, pool, list(outputs), floor)
        removal: Any
        if _calibrated(rule):
            if calibration is None or text is None:
                raise UserError(f"method {method}: needs a calibration text; give `calibration` and `text`")
            # By name: this module's code counts for the methods that need it, see `prune_code` of the rules.
            calibrate = importlib.import_module("llm_sparsity.pruning.calibration")
            removal = calibrate.Calibrated(model, pool, list(outputs), floor, budgets=budgets, text=text, **calibration)
        else:
            removal = (Zeroing if rule.UNIT else Cutting)(model, pool, list(outputs), floor)
        twins = _twins(reader, names, places)
        rows: dict[str, list[Row]] = {level: [] for level in outputs}
        with ExitStack() as stack:
            writers = {level: stack.enter_context(Writer(output / "model")) for level, output in outputs.items()}
            ours = sorted(set(names) - set(twins))
            said = f"prune {', '.join(outputs)}"
            bar = stack.enter_context(tqdm(total=len(ours) * len(outputs), desc=said, unit="tensor"))
            for level, name, weight, row in removal.results(ours):
                if row:
                    rows[level].append({"name": name, **asdict(places[name]), **row})
                for copy in [name, *(twin for twin, original in twins.items() if original == name)]:
                    writers[level].add(copy, weight)
                bar.update()
    for level, output in outputs.items():
        copy_companions(model, output / "model")
        if (config := removal.config(level)) is not None:
            write_json(output / "model" / "config.json", config)
        write_csv(output / "sparsity.csv", sorted(rows[level], key=lambda row: row["name"]), COLUMNS)
        size, removed, zeros = (sum(row[key] for row in rows[level]) for key in ("size", "removed", "zeros"))
        if "of" not in level and abs(removed / size - float(level)) > 0.0005:
            units = "blocks" if rule.UNIT else "heads and neurons"
            print(f"sparsity {level}: {removed / size:.4f} reached, as whole {units} go")
        pruned = {
            "method": method, "scope": scope, "sparsity": level, "seed": seed, "floor": floor,
            "size": size, "removed": removed, "measured_sparsity": zeros / size,
        }  # fmt: skip
        if _calibrated(rule):
            pruned |= {"budgets": budgets, "calibration": dict(calibration or {})}
        write_manifest(output / "model", **facts, pruned=pruned)


class Zeroing:
    """Single weights, or square blocks of them, become zeros; tensors keep their shapes."""

    def __init__(self, model: Path, pool: Pool, levels: Sequence[str], floor: float) -> None:
        self._model, self._pool, self._levels = model, pool, levels
        self._cuts = _cuts(pool, [level for level in levels if "of" not in level], floor)

    def config(self, level: str) -> Any:
        """The model's configuration at a level; None: as it was."""
        return None

    def results(self, names: Sequence[str]) -> Iterator[tuple[str, str, Tensor, Row | None]]:
        """(level, name, pruned tensor, what happened to it; None for a tensor outside the scope)."""
        for name, level in itertools.product(names, self._levels):
            weight, row = self._pool.reader.tensor(name), None
            if name in self._pool.places:
                weight = weight.clone()  # what a reader gives may be the mapped file itself
                row = self._zero(name, weight, level)
            yield level, name, weight, row

    def _zero(self, name: str, weight: Tensor, level: str) -> Row:
        """Prune one tensor, in place; what happened to it."""
        cut = self._cuts.get((level, name))
        removed = zeros = 0
        for strip, scores in zip(self._pool.strips(weight), self._pool.scores(name), strict=True):
            if cut is None:
                removed += _keep_pattern(strip, scores, level, family(self._model).is_transposed(name))
            elif strip.shape == scores.shape:
                removed += _cut(strip, scores, cut)
            else:
                removed += _cut_blocks(strip, scores, cut)
            strip.add_(0.0)  # -0.0 becomes 0.0, every other value stays
            zeros += _zeros(strip)
        return describe(weight, weight.numel(), removed, zeros) | {"threshold": cut.threshold if cut else ""}


class Cutting:
    """Heads and neurons are cut out, the same share of every layer; tensors get smaller."""

    def __init__(self, model: Path, pool: Pool, levels: Sequence[str], floor: float) -> None:
        self._model, self._pool, self._levels = model, pool, levels
        kind, reader = family(model), pool.reader
        self._slots = {name: slot for name in reader.names if (slot := kind.slot(name))}
        self._units: dict[str, int] = {}
        sums: dict[str, Tensor] = {}
        for name, place in pool.places.items():
            slot = self._slots[name]
            units = heads(model, place.stack) if place.part == "attention" else reader.shape(name)[slot.dim]
            self._units[slot.block] = units
            weight = reader.tensor(name).movedim(slot.dim, 0).reshape(slot.fused, units, -1)
            sums[slot.block] = sums.get(slot.block, torch.zeros(units, dtype=torch.float64)) + pool.rule.score(weight)
        self._kept: dict[tuple[str, str], Tensor] = {}
        for level in levels:
            for block, units in self._units.items():
                count = removed_of(units, level)
                if count == units:
                    word = "heads" if "attention" in block else "neurons"
                    raise UserError(
                        f"sparsity {level}: this would remove all {units} {word} of {block}; "
                        f"the highest that leaves one is {Decimal(units - 1) / units:.4f}"
                    )
                self._kept[level, block] = sums[block].argsort(stable=True)[count:].sort().values

    def config(self, level: str) -> Any:
        """The model's configuration at a level, as far as transformers has words for it."""
        config = read_json(self._model / "config.json")
        blocks = {slot.block for slot in self._slots.values()}
        for stack, part in sorted({(place.stack, place.part) for place in self._pool.places.values()}):
            mine = [block for block in blocks if block.startswith(f"{stack}.") and part in block.split(".")]
            if all(block in self._units for block in mine):  # else some layers stay as wide as they were
                block = mine[0]
                share = Fraction(len(self._kept[level, block]), self._units[block])
                config = narrower(config, stack, part, share)
        return config

    def results(self, names: Sequence[str]) -> Iterator[tuple[str, str, Tensor, Row | None]]:
        """(level, name, smaller tensor, what happened to it; None for a tensor outside the scope, or a bias)."""
        for name, level in itertools.product(names, self._levels):
            weight, row = self._pool.reader.tensor(name), None
            slot = self._slots.get(name)
            if slot and slot.block in self._units:
                size = weight.numel()
                order = torch.arange(weight.shape[slot.dim]).view(slot.fused, self._units[slot.block], -1)
                weight = weight.index_select(slot.dim, order[:, self._kept[level, slot.block]].flatten()) + 0.0
                removed = size - weight.numel()
                if name in self._pool.places:
                    row = describe(weight, size, removed, removed + _zeros(weight)) | {"threshold": ""}
            yield level, name, weight, row


def _calibrated(rule: ModuleType) -> bool:
    """Whether a method needs to see what matrices are given to work on."""
    return hasattr(rule, "observe")


def _check(model: Path, pool: Pool, levels: Sequence[str], floor: float) -> None:
    """Refuse, before anything is written, what cannot be ranked, divided or reached."""
    kind, method = family(model), pool.rule.__name__.rpartition(".")[2]
    rows, columns = pool.rule.UNIT or (1, 1)
    patterns = [level for level in levels if "of" in level]
    if patterns and pool.rule.UNIT != (1, 1):
        raise UserError(f"sparsity {patterns[0]}: a pattern is of single weights, method {method} removes more at once")
    for level in levels:
        if "of" not in level and float(level) > 1 - floor:
            raise UserError(f"sparsity {level}: the floor {floor} keeps that share of every tensor; lower one of them")
    for name in pool.places:
        shape, dtype = pool.reader.shape(name), pool.reader.dtype(name)
        size = "x".join(map(str, shape))
        if not dtype.is_floating_point:
            raise UserError(
                f"{model}: tensor {name} is {str(dtype).removeprefix('torch.')}, a quantised weight; "
                "prune the model before it is quantised"
            )
        if not all(torch.isfinite(strip).all() for strip in pool.strips(pool.reader.tensor(name))):
            raise UserError(
                f"{model}: tensor {name} has NaN or infinite weights, which no method can rank; use a sound checkpoint"
            )
        if (not pool.rule.UNIT or _calibrated(pool.rule)) and kind.slot(name) is None:
            does = "prunes matrices of layers" if pool.rule.UNIT else "cuts heads and neurons"
            raise UserError(
                f"scope: method {method} {does}, tensor {name} has none; choose scope linear, "
                "attention, mlp, encoder, decoder or a list of layers"
            )
        if rows * columns > 1 and (len(shape) != 2 or shape[0] % rows or shape[1] % columns):
            raise UserError(
                f"method {method}: blocks of {rows}x{columns} do not divide tensor {name}, which is {size}; "
                "choose scope linear, or another method"
            )
        for level in patterns:
            group = int(level.split("of")[1])
            if len(shape) != 2 or shape[0 if kind.is_transposed(name) else 1] % group:
                raise UserError(
                    f"sparsity {level}: {group} does not divide the input dimension of tensor {name}, which is "
                    f"{size}; choose scope linear, or another pattern"
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


def _cuts(pool: Pool, levels: Sequence[str], floor: float) -> dict[tuple[str, str], Cut]:
    """(sparsity, tensor) -> the cut of the pool that the tensor competes in; tensors of one pool share their cut."""
    unit = math.prod(pool.rule.UNIT)
    sizes = {name: math.prod(pool.reader.shape(name)) // unit for name in pool.places}
    cuts: dict[tuple[str, str], Cut] = {}
    for names in [list(sizes)] if pool.rule.POOL == "scope" else [[name] for name in sizes]:
        counts = {level: removed_of(sum(sizes[name] for name in names), level) for level in levels}
        for level, cut in _solve(pool, names, counts).items():
            cuts |= {(level, name): cut for name in names}
            if floor and pool.rule.POOL == "scope":
                limits = {name: math.ceil(size * (1 - Decimal(str(floor)))) for name, size in sizes.items()}
                cuts |= {(level, name): cut for name, cut in _floored(pool, limits, counts[level], cut).items()}
    return cuts


def _solve(pool: Pool, names: Sequence[str], counts: Mapping[str, int]) -> dict[str, Cut]:
    """key -> the cut that removes so many of the tensors' scores, all keys from the same two passes."""
    if not counts:
        return {}
    upper = np.zeros(BINS, np.int64)
    for name in names:
        for bits in pool.bits(name):
            upper += np.bincount(bits >> 16, minlength=BINS)
    if upper[INFINITY + 1 :].any():
        raise ValueError(f"{pool.rule.__name__}: scores must be non-negative numbers")
    bins = {key: _bin(upper, count) for key, count in counts.items()}
    lower = {number: np.zeros(BINS, np.int64) for number, _ in bins.values()}
    for name in names:
        for bits in pool.bits(name):
            numbers = bits >> 16
            for number in lower:
                lower[number] += np.bincount(bits[numbers == number] & (BINS - 1), minlength=BINS)
    cuts = {}
    for key, count in counts.items():
        number, rank = bins[key]
        low, ties = _bin(lower[number], rank)
        threshold = np.uint32(number << 16 | low).view(np.float32)
        cuts[key] = Cut(float(threshold) if count else 0.0, ties)
    return cuts


def _floored(pool: Pool, limits: Mapping[str, int], count: int, cut: Cut) -> dict[str, Cut]:
    """The cuts when no tensor may lose more than its limit: who would is cut there, the others make up for it."""
    cuts = dict.fromkeys(limits, cut)
    free = list(limits)
    while over := [name for name, taken in _taken(pool, free, cut).items() if taken > limits[name]]:
        cuts |= {name: _solve(pool, [name], {"": limits[name]})[""] for name in over}
        count -= sum(limits[name] for name in over)
        free = [name for name in free if name not in over]
        cut = _solve(pool, free, {"": count})[""]
        cuts |= dict.fromkeys(free, cut)
    return cuts


def _taken(pool: Pool, names: Sequence[str], cut: Cut) -> dict[str, int]:
    """How many scores a cut takes from each tensor."""
    taken, ties = dict.fromkeys(names, 0), cut.ties
    for name in names:
        for scores in pool.scores(name):
            equal = min(int((scores == cut.threshold).sum()), ties)
            ties -= equal
            taken[name] += int((scores < cut.threshold).sum()) + equal
    return taken


def _bin(histogram: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """The bin that holds the rank-th smallest value (rank 1 is the smallest), and its rank inside that bin."""
    ends = np.cumsum(histogram)
    number = int(np.searchsorted(ends, max(rank, 1)))
    return number, rank - int(ends[number] - histogram[number]) if rank else 0


def _zeros(weight: Tensor) -> int:
    """How many weights are zero."""
    return int(np.count_nonzero((weight == 0).numpy()))


def _cut(weight: Tensor, scores: Tensor, cut: Cut) -> int:
    """Zero the weights below the cut, in place; use up the pool's ties. How many went."""
    gone = scores < cut.threshold
    if cut.ties:
        equal = torch.nonzero((scores == cut.threshold).view(-1)).flatten()[: cut.ties]
        gone.view(-1)[equal] = True
        cut.ties -= len(equal)
    weight.masked_fill_(gone, 0)
    return int(np.count_nonzero(gone.numpy()))


def _cut_blocks(weight: Tensor, scores: Tensor, cut: Cut) -> int:
    """Zero whole blocks, each with one score, in place. How many weights went."""
    alive = torch.ones_like(scores)
    blocks = _cut(alive, scores, cut)
    gone = alive == 0
    for dim in (0, 1):
        gone = gone.repeat_interleave(weight.shape[dim] // scores.shape[dim], dim)
    weight.masked_fill_(gone, 0)
    return blocks * weight.numel() // scores.numel()


def _keep_pattern(weight: Tensor, scores: Tensor, level: str, transposed: bool) -> int:
    """Keep N of every M weights along a matrix's input, in place; of equal scores the later. How many went."""
    kept, group = map(int, level.split("of"))
    if transposed:
        weight, scores = weight.t(), scores.t()  # (out, in), the same memory
    gone = lowest(scores.reshape(len(weight), -1, group), group - kept)
    weight.masked_fill_(gone.reshape(weight.shape), 0)
    return weight.numel() // group * (group - kept)
