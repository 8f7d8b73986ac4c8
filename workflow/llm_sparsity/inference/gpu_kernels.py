"""Sparse matrix times a few tokens, on a GPU, in Triton. Only the remaining weights are read.

Generating a token reads each weight once, so memory decides. Here a remaining weight of 16 bits takes 4 bits for its
place: the number of zeros before it in its row (Macko and Boža 2025, arXiv:2511.13061, store distances as well). Each
thread decodes four weights; a scan over the threads of a warp gives their columns; sums are in float32.

On a machine without a GPU, Triton's interpreter runs the kernels: `TRITON_INTERPRET=1`.
"""

import subprocess
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

QUAD = 4  # weights of a thread: 4 distances of 4 bits are one word of 16 bits
CHUNK = 32  # quads of a warp; the column before each chunk is stored
LONGEST_RUN = 15  # zeros between two stored weights; a longer run stores a zero
COLUMNS = 1 << 16  # fewer than this, as columns are stored in 16 bits
TOKENS = 16  # at most so many at once


class SparseMatrix(NamedTuple):
    """A matrix of (rows, columns) whose remaining weights, and a few zeros among them, are stored in quads.

    Attributes:
        shape: rows, columns.
        values: (quads, 4) float16 or bfloat16, row by row.
        gaps: (quads,) int16: for each of the four, 4 bits with the number of zeros before it, the lowest bits first.
        bases: (chunks,) int16, unsigned: the column before which no weight of this chunk of a row stands.
        ends: (rows + 1, 2) int32: where each row's quads, and its chunks, begin; the last row of it is their number.
    """

    shape: tuple[int, int]
    values: Tensor
    gaps: Tensor
    bases: Tensor
    ends: Tensor


def unsupported_reason(device: torch.device) -> str | None:
    """Why the kernels cannot be compiled here, tried on a small matrix; None if they can."""
    matrix = torch.eye(QUAD, dtype=torch.float16, device=device)
    try:
        multiply(sparse_matrix(matrix), matrix[:1])
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return (
            f"sparse: left out, as Triton cannot compile ({error}); install a C compiler and Python's headers (Debian: "
            "gcc, python3-dev)"
        )
    return None


def sparse_matrix(weight: Tensor) -> SparseMatrix:
    """Store a matrix.

    Args:
        weight: (rows, columns), float16 or bfloat16.

    Raises:
        ValueError: the weights are of another dtype; the matrix has fewer than 4 columns, or 65,536 or more; a row has
            too few zeros to fill up its last quad.
    """
    if weight.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"weights of {str(weight.dtype).removeprefix('torch.')}, where 16 bits can be stored")
    rows, columns = weight.shape
    if not QUAD <= columns < COLUMNS:
        raise ValueError(f"{columns:,} columns, where {QUAD} to {COLUMNS - 1:,} can be stored")
    stored = weight != 0
    place = torch.arange(columns, device=weight.device)
    run = place - torch.where(stored, place, -1).cummax(1).values  # zeros up to here, this one included
    stored |= (run % (LONGEST_RUN + 1) == 0) & (run > 0)
    missing = -stored.sum(1, keepdim=True) % QUAD
    zeros_from_here = (~stored).flip(1).cumsum(1).flip(1)
    if bool((zeros_from_here[:, :1] < missing).any()):
        raise ValueError("a row has too few zeros to fill up its last four weights")
    stored |= ~stored & (zeros_from_here <= missing)
    counts = stored.sum(1)
    _, column = stored.nonzero(as_tuple=True)
    before = torch.cat([column.new_full((1,), -1), column[:-1]])
    first = counts.cumsum(0) - counts
    before[first[counts > 0]] = -1
    nibbles = (column - before - 1).reshape(-1, QUAD)
    gaps = (nibbles << torch.arange(0, 4 * QUAD, 4, device=weight.device)).sum(1)
    quads = counts // QUAD
    chunks = (quads + CHUNK - 1) // CHUNK
    starts = torch.stack([quads, chunks], 1).cumsum(0)
    ends = torch.cat([starts.new_zeros(1, 2), starts]).int()
    number = torch.arange(int(chunks.sum()), device=weight.device)
    of_row = torch.repeat_interleave(torch.arange(rows, device=weight.device), chunks)
    entry = first[of_row] + (number - ends[of_row, 1]) * CHUNK * QUAD
    return SparseMatrix(
        (rows, columns),
        weight[stored].reshape(-1, QUAD),
        gaps.to(torch.int16),
        (before[entry] + 1).to(torch.int16),
        ends,
    )


def multiply(matrix: SparseMatrix, x: Tensor, bias: Tensor | None = None, **tuning: int) -> Tensor:
    """x @ matrix.T + bias.

    Args:
        matrix: (rows, columns).
        x: (tokens, columns), in the matrix's dtype, at most `TOKENS` of them.
        bias: (rows,).
        tuning: of the kernel.

    Returns:
        (tokens, rows).
    """
    tokens, (rows, _) = len(x), matrix.shape
    batch = 1 if tokens == 1 else max(4, triton.next_power_of_2(tokens))
    if batch > tokens:
        x = torch.nn.functional.pad(x, (0, 0, 0, batch - tokens))
    x = x.t().contiguous()  # the activations of one column lie together
    out = x.new_empty(tokens, rows)
    chosen = {"CHUNKS": 4 if batch == 1 else 2, "num_warps": 2, **tuning}  # the fastest of ten on an H100
    _multiply[(rows,)](
        x, matrix.values.view(torch.int64), matrix.gaps, matrix.bases, matrix.ends, x if bias is None else bias, out,
        tokens, rows, HAS_BIAS=bias is not None, BATCH=batch, **chosen,
    )  # fmt: skip
    return out


def dense(matrix: SparseMatrix) -> Tensor:
    """The dense matrix, (rows, columns)."""
    out = matrix.values.new_zeros(matrix.shape)
    _expand[(matrix.shape[0],)](
        matrix.values.view(torch.int64),
        matrix.gaps,
        matrix.bases,
        matrix.ends,
        out,
        matrix.shape[1],
        CHUNKS=4,
        num_warps=4,
    )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _load(values, gaps, bases, quad, chunk, end, CHUNKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Some chunks of a row, a quad for each thread: values (chunks, 32) int64, gaps, and the column before each quad.

    Quads behind the row's last count as four zeros in the first columns.
    """
    number = tl.arange(0, CHUNKS)[:, None]
    place = quad + 32 * number + tl.arange(0, 32)[None, :]
    inside = place < end
    value = tl.load(values + place, mask=inside, other=0)
    gap = tl.load(gaps + place, mask=inside, other=0).to(tl.int32)
    base = tl.load(bases + chunk + number, mask=quad + 32 * number < end, other=0).to(tl.int32) & 0xFFFF
    pairs = (gap & 0x0F0F) + ((gap >> 4) & 0x0F0F)
    taken = (pairs & 0xFF) + (pairs >> 8) + 4
    return value, gap, tl.where(inside, base + tl.cumsum(taken, 1) - taken, 0), inside


@triton.jit  # type: ignore[untyped-decorator]
def _half(value, k: tl.constexpr, kind: tl.constexpr):  # type: ignore[no-untyped-def]
    """The k-th of the four 16-bit numbers of each word."""
    return (value >> (16 * k)).to(tl.int16).to(kind, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    x, values, gaps, bases, ends, bias, out, tokens, rows,
    HAS_BIAS: tl.constexpr, BATCH: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """One row, `CHUNKS` chunks at a time."""
    row = tl.program_id(0)
    token = tl.arange(0, BATCH)
    quad = tl.load(ends + 2 * row)
    chunk = tl.load(ends + 2 * row + 1)
    end = tl.load(ends + 2 * row + 2)
    total = tl.zeros([CHUNKS, 32, BATCH], tl.float32)
    for _ in range(0, tl.cdiv(end - quad, 32 * CHUNKS)):
        value, gap, column, _inside = _load(values, gaps, bases, quad, chunk, end, CHUNKS)
        for k in tl.static_range(4):
            column += (gap >> (4 * k)) & 15
            weight = _half(value, k, x.dtype.element_ty).to(tl.float32)
            place = x + (column[:, :, None] * BATCH + token[None, None, :])
            # The hint gives the threads of a warp neighbouring quads; it does not widen the loads.
            activation = tl.load(tl.max_contiguous(place, [1, 32 if BATCH == 1 else 2, BATCH])).to(tl.float32)
            total += weight[:, :, None] * activation
            column += 1
        quad += 32 * CHUNKS
        chunk += CHUNKS
    result = tl.sum(tl.sum(total, 1), 0)
    if HAS_BIAS:
        result += tl.load(bias + row).to(tl.float32)
    tl.store(out + token * rows + row, result.to(out.dtype.element_ty), mask=token < tokens)


@triton.jit  # type: ignore[untyped-decorator]
def _expand(values, gaps, bases, ends, out, columns, CHUNKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the stored weights of one row."""
    row = tl.program_id(0)
    quad = tl.load(ends + 2 * row)
    chunk = tl.load(ends + 2 * row + 1)
    end = tl.load(ends + 2 * row + 2)
    for _ in range(0, tl.cdiv(end - quad, 32 * CHUNKS)):
        value, gap, column, inside = _load(values, gaps, bases, quad, chunk, end, CHUNKS)
        for k in tl.static_range(4):
            column += (gap >> (4 * k)) & 15
            tl.store(out + row.to(tl.int64) * columns + column, _half(value, k, out.dtype.element_ty), mask=inside)
            column += 1
        quad += 32 * CHUNKS
        chunk += CHUNKS
