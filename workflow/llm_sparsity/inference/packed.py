"""A matrix as a bitmask and its remaining weights, in memory, and its ways to multiply.

    product    expands weights in registers: one read of mask and values for the few tokens of generating text. With
               b bits a weight and a share s of zeros it can be b / ((1 - s) b + 1) times as fast as the dense product
               of the same dtype, which reads b bits for every weight.
    gathered   the same read, but looks up the activations of remaining weights instead of expanding these: more zeros
    expanded   expands a few rows at a time into the cache and multiplies them densely: many tokens, few zeros
    skipped    multiplies remaining weights only, by a list of their columns: many tokens, many zeros

The same sums in the same order for any number of threads, and in `product` and `gathered` for any number of tokens.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module, functional

from llm_sparsity.inference import kernels
from llm_sparsity.inference.kernels import BLOCK, PADDING, ROWS_TOGETHER, TILE, TILE_WIDTHS, Job
from llm_sparsity.inference.threads import run

SLAB = 1 << 24  # bytes of rows expanded at once: most matrices at once, and of larger ones as much as a cache holds
CHUNKS = 4  # of a matrix for each thread: one that is slower takes fewer of them


class Packed(Module):
    """A matrix (outputs, inputs) as mask and values, on a CPU.

    Args:
        weight: the dense matrix, float32, bfloat16 or float16; the last is stored as float32.
        path: set of instructions, one of `kernels.instructions()`.

    Attributes:
        dtype: of the weights, float32 or bfloat16.
        masks: int64 (outputs, blocks); bit b of block k says whether column 64 k + b remains.
        values: the bits of the remaining weights, row by row, as integers, which no cast of a model changes.
        starts: int64 (outputs + 1); where each row's values begin.
        columns: int32, the column of each remaining weight, once for rows that agree; None before `skipped` needs it.
        rows: 4 if the rows of each group of four keep the same columns, else 1.
    """

    masks: Tensor
    values: Tensor
    starts: Tensor
    columns: Tensor | None

    def __init__(self, weight: Tensor, path: str | None = None) -> None:
        super().__init__()
        self.path = path or kernels.instructions()[0]
        self.dtype = torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32
        self.bits = 8 * self.dtype.itemsize
        self.outputs, self.inputs = weight.shape
        self.blocks = -(-self.inputs // BLOCK)
        weight = weight.detach().to(self.dtype).contiguous()
        integer, unsigned = (torch.int16, np.uint16) if self.bits == 16 else (torch.int32, np.uint32)
        # By bits, as `pack` does: torch counts denormal numbers as zeros after `torch.set_flush_denormal(True)`.
        kept = int((weight.view(integer) & torch.iinfo(integer).max).count_nonzero())
        masks = torch.zeros(self.outputs, self.blocks, dtype=torch.int64)
        values = torch.zeros(kept + 8 * PADDING // self.bits, dtype=integer)
        starts = torch.empty(self.outputs + 1, dtype=torch.int64)
        arrays = (
            weight.view(integer).numpy().view(unsigned),
            masks.numpy().view(np.uint64),
            values.numpy().view(unsigned),
        )
        kernels.pack(self.bits)(*arrays, starts.numpy())
        self.rows = ROWS_TOGETHER if _rows_agree(masks) else 1
        for name, tensor in {"masks": masks, "values": values, "starts": starts, "columns": None}.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def _bytes(self) -> int:
        return self.masks.nbytes + self.values.nbytes

    @property
    def density(self) -> float:
        """The share of weights that remain."""
        return int(self.starts[-1]) / max(1, self.outputs * self.inputs)

    def dense(self) -> Tensor:
        """The matrix (outputs, inputs)."""
        out = torch.empty(self.outputs, BLOCK * self.blocks, dtype=self.dtype)
        self._expand(0, out)
        return out[:, : self.inputs].contiguous()

    def product(self, x: Tensor, bias: Tensor) -> Tensor:
        """(tokens, inputs) of the matrix's dtype -> (tokens, outputs) float32. `bias`: float32 (outputs)."""
        return self._of_few_tokens(kernels.product, x, bias)

    def gathered(self, x: Tensor, bias: Tensor) -> Tensor:
        """As `product`; the matrix's path is one of `kernels.GATHERING`."""
        return self._of_few_tokens(kernels.gather, x, bias)

    def _of_few_tokens(self, kernel: Callable[[str, int, int], Any], x: Tensor, bias: Tensor) -> Tensor:
        if self.inputs % BLOCK:
            x = functional.pad(x, (0, -self.inputs % BLOCK))
        x = x.contiguous()
        out = torch.empty(len(x), self.outputs)
        most = kernels.most_tokens(self.path)
        for first in range(0, len(x), most):
            tokens = min(most, len(x) - first)
            made = self._job(self.outputs, x[first:], out[first:], bias)
            made[Job.X_STRIDE], made[Job.OUT_STRIDE] = x.stride(0) * x.itemsize, out.stride(0) * out.itemsize
            made[Job.TOKENS] = tokens
            run(kernel(self.path, self.bits, kernels.tokens_for(self.path, tokens)), made, self._bytes)
        return out

    def expanded(self, x: Tensor, bias: Tensor) -> Tensor:
        """(tokens, inputs) -> (tokens, outputs), all of the matrix's dtype."""
        width = BLOCK * self.blocks
        height = min(self.outputs, max(TILE, SLAB // (width * self.dtype.itemsize)))
        out = torch.empty(len(x), self.outputs, dtype=self.dtype)
        slab = _scratch(height * width, self.dtype).view(height, width)
        for first in range(0, self.outputs, height):
            rows, part = slab[: self.outputs - first], slice(first, first + height)
            self._expand(first, rows)
            torch.addmm(bias[part], x, rows[:, : self.inputs].t(), out=out[:, part])
        return out

    def skipped(self, x: Tensor, bias: Tensor) -> Tensor:
        """float32 (sequences, inputs, tokens) -> float32 (sequences, outputs, tokens). `bias`: float32 (outputs)."""
        sequences, _, tokens = x.shape
        out = torch.empty(sequences, self.outputs, tokens)
        first = 0
        for width in TILE_WIDTHS[self.rows]:
            tiles = (tokens - first) // width
            if tiles and sequences:
                made = self._job(self.outputs // self.rows, x, out, bias)
                made[Job.COLUMNS], made[Job.INPUTS], made[Job.SEQUENCES] = (
                    self.listed_columns().data_ptr(),
                    self.inputs,
                    sequences,
                )
                made[Job.TOKENS], made[Job.TILE], made[Job.TILES] = tokens, first, tiles
                run(kernels.multiply(self.bits, self.rows, width), made, len(self.values) * 4 * width * tiles)
            first += tiles * width
        return out

    def listed_columns(self) -> Tensor:
        """The buffer `columns`, made where it is not yet."""
        if self.columns is None:
            kept = np.unpackbits(self.masks[:: self.rows].numpy().view(np.uint8), axis=1, bitorder="little")
            self.columns = torch.from_numpy(kept.nonzero()[1].astype(np.int32))
        return self.columns

    def _expand(self, first: int, out: Tensor) -> None:
        """Write the rows from `first` on to `out` (rows, columns of all blocks)."""
        made = self._job(len(out), out, out)
        made[Job.ROWS], made[Job.OUT_STRIDE] = len(out), out.stride(0) * out.itemsize
        made[Job.MASKS] += first * self.blocks * BLOCK // 8
        made[Job.STARTS] += first * self.starts.itemsize
        run(kernels.expand(self.path, self.bits), made, out.nbytes)

    def _job(self, units: int, x: Tensor, out: Tensor, bias: Tensor | None = None) -> NDArray[np.int64]:
        """A job on all rows, which threads share in chunks of `units`: rows, or groups of rows."""
        made = np.zeros(len(Job), np.int64)
        made[Job.CHUNK] = max(1, units // (CHUNKS * torch.get_num_threads()))
        made[Job.ROWS], made[Job.BLOCKS] = self.outputs, self.blocks
        made[Job.MASKS], made[Job.VALUES] = self.masks.data_ptr(), self.values.data_ptr()
        made[Job.STARTS], made[Job.X], made[Job.OUT] = self.starts.data_ptr(), x.data_ptr(), out.data_ptr()
        made[Job.BIAS] = 0 if bias is None else bias.data_ptr()
        return made


_held = threading.local()


def _scratch(size: int, dtype: torch.dtype) -> Tensor:
    """Memory for `size` values, the same one in all calls of a thread: new memory costs more than expanding into it."""
    if not hasattr(_held, "bytes") or len(_held.bytes) < size * dtype.itemsize:
        _held.bytes = torch.empty(size * dtype.itemsize, dtype=torch.uint8)
    held: Tensor = _held.bytes[: size * dtype.itemsize].view(dtype)
    return held


def transposed(x: Tensor) -> Tensor:
    """float32 (sequences, rows, columns) -> (sequences, columns, rows), contiguous."""
    sequences, rows, columns = x.shape
    view = x.transpose(1, 2)
    if view.is_contiguous() or not x.is_contiguous() or rows % TILE or columns % TILE:
        return view.contiguous()
    out = torch.empty(sequences, columns, rows)
    made = np.zeros(len(Job), np.int64)
    made[Job.X], made[Job.OUT], made[Job.SEQUENCES] = x.data_ptr(), out.data_ptr(), sequences
    made[Job.TOKENS], made[Job.INPUTS] = rows, columns
    run(kernels.transpose(), made, 2 * out.nbytes)
    return out


def _rows_agree(masks: Tensor) -> bool:
    """Whether the rows of every group of `ROWS_TOGETHER` keep the same columns."""
    if len(masks) % ROWS_TOGETHER:
        return False
    groups = masks.unflatten(0, (-1, ROWS_TOGETHER))
    return bool((groups == groups[:, :1]).all())
