"""Kernels of sparse layers, compiled by numba for this processor at first use and cached on disk.

numba has no type for a vector register, and sums kept in a numpy array go through memory at every step: 1.7 to 10 times
slower here. So this module adds such a type, `Vector`, with four operations on it.

Everything is in one file because numba compiles a cached kernel again only when the file that holds it changes.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

Kernel = Callable[..., None]

TILE = 16  # rows and columns of the square that `transpose` moves through registers
ROWS_TOGETHER = 4  # outputs that a kernel for rows with the same kept columns computes at once
INDEX = ir.IntType(64)
index = np.uint64  # numba wraps signed subscripts around, which costs an instruction each


@cache
def multiply(rows: int, width: int) -> Kernel:
    """Sparse matrix times activations, for one tile of tokens; see `multiply_reference`.

    Args:
        rows: outputs computed together, 1 or `ROWS_TOGETHER`; they keep the same columns.
        width: tokens in the tile, at most 128 so that all sums fit into vector registers.

    Returns:
        A function of `ends`, `columns`, `values` and `bias` as in `multiply_reference`, `x` (sequences, inputs, tokens)
        and `out` (sequences, outputs, tokens) float32, the number of the sequence, and the tile's first token. It
        releases Python's lock.
    """
    kernel = {1: _multiply_single_rows, ROWS_TOGETHER: _multiply_four_rows}[rows](width)
    return _compiled(
        kernel,
        "void(int32[::1], int32[::1], float32[::1], float32[::1], float32[:,:,::1], float32[:,:,::1], intp, intp)",
    )


@cache
def transpose() -> Kernel:
    """The transpose of one sequence's matrix; torch's copy takes 3 to 6 times as long.

    Returns:
        A function of `x` (sequences, rows, columns) and `out` (sequences, columns, rows), float32, and of the number of
        the sequence. `TILE` divides rows and columns. It releases Python's lock.
    """
    return _compiled(_transpose, "void(float32[:,:,::1], float32[:,:,::1], intp)")


def multiply_reference(
    ends: NDArray[np.int32],
    columns: NDArray[np.int32],
    values: NDArray[np.float32],
    bias: NDArray[np.float32],
    x: NDArray[np.float32],
) -> NDArray[np.float32]:
    """What the kernels of `multiply` compute, with numpy: weight @ x + bias.

    Args:
        ends: (groups + 1); group g of consecutive outputs keeps the columns `columns[ends[g] : ends[g + 1]]`.
        columns: (kept), the kept columns of each group in turn.
        values: (kept * rows), for each kept column its weight in every row of the group.
        bias: (groups * rows).
        x: (inputs, tokens).

    Returns:
        (outputs, tokens).
    """
    groups = len(ends) - 1
    rows = len(bias) // groups
    weight = np.zeros((groups, rows, len(x)), np.float32)
    weight[np.repeat(np.arange(groups), np.diff(ends)), :, columns] = values.reshape(-1, rows)
    return weight.reshape(-1, len(x)) @ x + bias[:, None]


def _multiply_single_rows(width: int) -> Kernel:
    def multiply_single_rows(
        ends: Any, columns: Any, values: Any, bias: Any, x: Any, out: Any, sequence: int, token: int
    ) -> None:
        inputs, outputs = x[sequence], out[sequence]
        for row in range(len(ends) - 1):
            total = splat(bias[row], width)
            for k in range(index(ends[row]), index(ends[row + 1])):
                total = multiply_add(values[k], load(inputs, columns[k], token, width), total)
            store(outputs, row, token, total)

    return multiply_single_rows


def _multiply_four_rows(width: int) -> Kernel:
    def multiply_four_rows(
        ends: Any, columns: Any, values: Any, bias: Any, x: Any, out: Any, sequence: int, token: int
    ) -> None:
        inputs, outputs = x[sequence], out[sequence]
        for group in range(len(ends) - 1):
            row = 4 * group
            total_0 = splat(bias[row], width)
            total_1 = splat(bias[row + 1], width)
            total_2 = splat(bias[row + 2], width)
            total_3 = splat(bias[row + 3], width)
            for k in range(index(ends[group]), index(ends[group + 1])):
                activations = load(inputs, columns[k], token, width)
                first = index(4) * k
                total_0 = multiply_add(values[first], activations, total_0)
                total_1 = multiply_add(values[first + index(1)], activations, total_1)
                total_2 = multiply_add(values[first + index(2)], activations, total_2)
                total_3 = multiply_add(values[first + index(3)], activations, total_3)
            store(outputs, row, token, total_0)
            store(outputs, row + 1, token, total_1)
            store(outputs, row + 2, token, total_2)
            store(outputs, row + 3, token, total_3)

    return multiply_four_rows


def _transpose(x: Any, out: Any, sequence: int) -> None:
    matrix, transposed = x[sequence], out[sequence]
    rows, columns = matrix.shape
    for column in range(0, columns, TILE):
        for row in range(0, rows, TILE):
            transpose_tile(matrix, row, column, transposed)


def _compiled(function: Kernel, signature: str) -> Kernel:
    """Compile a kernel; where no folder takes numba's cache (`NUMBA_CACHE_DIR` names one), every process does so."""
    options = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
    try:
        kernel: Kernel = numba.njit(signature, cache=True, **options)(function)
    except (RuntimeError, OSError):  # no writable folder; a full disk
        kernel = numba.njit(signature, **options)(function)
    return kernel


class Vector(types.Type):  # type: ignore[misc]
    """numba's type of `width` float32 values in vector registers."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(f"Vector({width})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    """A `Vector` is a vector of LLVM's."""

    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, ir.VectorType(ir.FloatType(), vector.width))


def _operation(typing: Callable[..., Any]) -> Any:
    """Make an operation for kernels from a function: types of arguments -> signature, generator of LLVM code."""
    return intrinsic(prefer_literal=True)(typing)


@_operation
def splat(_: Any, scalar: Any, width: Any) -> Any:
    """A vector that holds one number `width` times."""
    vector = Vector(width.literal_value)

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return _repeated(builder, arguments[0], vector.width)

    return vector(types.float32, width), generate


@_operation
def load(_: Any, matrix: Any, row: Any, column: Any, width: Any) -> Any:
    """The vector matrix[row, column : column + width]."""
    vector = Vector(width.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        matrix, row, column, _ = arguments
        return builder.load(_pointer(context, builder, signature.args[0], matrix, row, column, vector.width), align=4)

    return vector(matrix, types.intp, types.intp, width), generate


@_operation
def store(_: Any, matrix: Any, row: Any, column: Any, vector: Any) -> Any:
    """Set matrix[row, column : column + width] to a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        matrix, row, column, values = arguments
        builder.store(values, _pointer(context, builder, signature.args[0], matrix, row, column, vector.width), align=4)
        return context.get_dummy_value()

    return types.void(matrix, types.intp, types.intp, vector), generate


@_operation
def multiply_add(_: Any, scalar: Any, vector: Any, total: Any) -> Any:
    """scalar * vector + total, rounded once."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        scalar, factor, total = arguments
        kind = ir.FunctionType(factor.type, [factor.type] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{vector.width}f32")
        return builder.call(fma, [_repeated(builder, scalar, vector.width), factor, total])

    return vector(types.float32, vector, vector), generate


@_operation
def transpose_tile(_: Any, matrix: Any, row: Any, column: Any, out: Any) -> Any:
    """Set out[column : column + TILE, row : row + TILE] to the transpose of that tile of `matrix`.

    In log2(TILE) rounds, each pair of rows exchanges the halves that belong to the other (Eklundh 1972).
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, top, left, target = arguments

        def pointer(kind: Any, array: Any, row: Any, i: int, column: Any) -> Any:
            return _pointer(context, builder, kind, array, builder.add(row, INDEX(i)), column, TILE)

        rows = [builder.load(pointer(signature.args[0], source, top, i, left), align=4) for i in range(TILE)]
        step = 1
        while step < TILE:
            upper = [j + TILE - step if j & step else j for j in range(TILE)]
            lower = [j + TILE if j & step else j + step for j in range(TILE)]
            for i in range(TILE):
                if not i & step:
                    pair = rows[i], rows[i + step]
                    rows[i] = builder.shuffle_vector(*pair, _lanes(upper))
                    rows[i + step] = builder.shuffle_vector(*pair, _lanes(lower))
            step *= 2
        for i in range(TILE):
            builder.store(rows[i], pointer(signature.args[3], target, left, i, top), align=4)
        return context.get_dummy_value()

    return types.void(matrix, types.intp, types.intp, out), generate


def _repeated(builder: Any, scalar: Any, width: int) -> Any:
    nothing = ir.Constant(ir.VectorType(ir.FloatType(), width), ir.Undefined)
    first = builder.insert_element(nothing, scalar, INDEX(0))
    return builder.shuffle_vector(first, nothing, _lanes([0] * width))


def _lanes(numbers: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


def _pointer(context: Any, builder: Any, kind: Any, matrix: Any, row: Any, column: Any, width: int) -> Any:
    """The address of `width` numbers from matrix[row, column] on."""
    array = context.make_array(kind)(context, builder, matrix)
    address = cgutils.get_item_pointer(context, builder, kind, array, [row, column])
    return builder.bitcast(address, ir.VectorType(ir.FloatType(), width).as_pointer())
