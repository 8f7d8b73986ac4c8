"""Kernels of sparse matrices, compiled by numba for this processor at first use and cached on disk.

A matrix is a bitmask and the values of its remaining weights, row by row (see packed.py). The kernels:

    product    times 1 to 16 tokens: values are expanded by the mask in vector registers, so memory is read once
    gather     the same by remaining weights only: the activations of their columns are gathered in registers
    expand     rows to dense memory, for a dense product on many tokens
    multiply   times a tile of many tokens, remaining weights only, by a list of columns
    transpose  activations, to the layout of `multiply`
    pack       dense rows to mask and values

numba has no type for a vector register, and sums kept in a numpy array go through memory at every step: 1.7 to 10 times
slower here. So the loops over registers are generated as LLVM code, by the functions at the end.

A kernel is a C function of one argument, the address of a `Job`: 64-bit integers, most of them addresses. Threads call
it with the same job and take chunks of rows from its counter until none is left; no two threads share a row, so outputs
do not depend on their number.

Everything is in one file because numba compiles a cached kernel again only when the file that holds it changes.
"""

import enum
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

BLOCK = 64  # columns of a mask word
PADDING = 64  # bytes that may be read after the last value
PREFETCH = 1024  # bytes that are prefetched ahead: each stream is read at the speed of memory, not at its latency
TILE = 16  # rows and columns of the square that `transpose` moves through registers
ROWS_TOGETHER = 4  # outputs that `multiply` computes at once where they keep the same columns
TILE_WIDTHS = {1: (128, 64, 16, 1), ROWS_TOGETHER: (64, 16, 1)}  # rows together -> tokens in a tile of `multiply`

# float32 values in a register -> {tokens: rows at once} of `product`: their sums have to fit into the registers.
TOKENS = {16: {1: 4, 2: 4, 4: 4, 8: 2, 16: 1}, 8: {1: 4, 2: 4, 4: 2, 8: 1}}

GATHERING = ("avx512",)  # the sets of instructions that `gather` needs one of


class Job(enum.IntEnum):
    """The fields of a job. Strides are in bytes."""

    NEXT = 0  # number of the next chunk
    CHUNK = enum.auto()  # rows in a chunk; of `multiply` groups of rows
    ROWS = enum.auto()
    MASKS = enum.auto()  # address of uint64 (rows, blocks)
    BLOCKS = enum.auto()
    VALUES = enum.auto()  # address
    STARTS = enum.auto()  # address of int64 (rows + 1): where the values of each row begin
    COLUMNS = enum.auto()  # address of int32: the column of each value; one list for rows that are computed together
    BIAS = enum.auto()  # address of float32 (rows)
    X = enum.auto()  # address of the activations
    X_STRIDE = enum.auto()
    OUT = enum.auto()  # address of the outputs
    OUT_STRIDE = enum.auto()
    TOKENS = enum.auto()  # tokens of `product`; of `multiply` and `transpose`, of a sequence
    INPUTS = enum.auto()  # columns of the matrix; of `transpose`, of the sequence
    SEQUENCES = enum.auto()
    TILE = enum.auto()  # first token of the first tile
    TILES = enum.auto()  # of a sequence


@cache
def instructions() -> tuple[str, ...]:
    """The sets of vector instructions of this processor that kernels can use, best first."""
    features = llvm.get_host_cpu_features()
    found = {
        "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512vbmi2", "bmi2"),
        "avx2": ("avx2", "fma"),
        "portable": (),
    }
    return tuple(name for name, needed in found.items() if all(features.get(feature) for feature in needed))


def most_tokens(path: str) -> int:
    """The number of tokens that `product` multiplies at once on a path of `instructions`."""
    return max(TOKENS[lanes(path)])


def tokens_for(path: str, tokens: int) -> int:
    """The tokens of the smallest `product` that multiplies as many at once."""
    return min(known for known in TOKENS[lanes(path)] if known >= tokens)


@cache
def product(path: str, bits: int, tokens: int) -> Any:
    """Matrix times tokens; rows of the matrix and tokens are both rows of memory.

    Weights and activations are float32 or bfloat16, as `bits` says; sums, bias and outputs are float32. Activations
    have BLOCKS * 64 columns, of which the last may be 0.

    Args:
        path: a set of instructions.
        bits: 32 or 16.
        tokens: at least those of the job, one of `TOKENS`.
    """
    return _product(path, bits, tokens, False)


@cache
def gather(path: str, bits: int, tokens: int) -> Any:
    """`product` on a path of `GATHERING`, for mostly zeros: about 20 instructions for 64 columns instead of 36.

    Zeros are not multiplied, not even by infinity.
    """
    return _product(path, bits, tokens, True)


def _product(path: str, bits: int, tokens: int, gathered: bool) -> Any:
    rows = TOKENS[lanes(path)][tokens]

    def product(job: int) -> None:
        chunk, last = field(job, Job.CHUNK), field(job, Job.ROWS)
        while True:
            first = take(job) * chunk
            if first >= last:
                break
            end = min(first + chunk, last)
            step = (end - first + rows - 1) // rows
            for row in range(first, first + step):
                multiply_rows(job, row, step, end - 1, path, bits, tokens, rows, gathered)

    return _compiled(product)


@cache
def expand(path: str, bits: int) -> Any:
    """The rows of the job's matrix, dense, to OUT; OUT_STRIDE is at least BLOCKS * 64 values."""

    def expand(job: int) -> None:
        chunk, last = field(job, Job.CHUNK), field(job, Job.ROWS)
        while True:
            first = take(job) * chunk
            if first >= last:
                break
            for row in range(first, min(first + chunk, last)):
                expand_row(job, row, path, bits)

    return _compiled(expand)


@cache
def multiply(bits: int, rows: int, width: int) -> Any:
    """Matrix times the tiles of the job's sequences, by remaining weights only.

    X is float32 (SEQUENCES, INPUTS, TOKENS), OUT is float32 (SEQUENCES, ROWS, TOKENS).

    Args:
        bits: of the weights, 32 or 16.
        rows: outputs computed together, 1 or `ROWS_TOGETHER`; they keep the same columns.
        width: tokens in a tile, at most 128 so that all sums fit into vector registers.
    """

    def multiply(job: int) -> None:
        chunk, groups, tiles = field(job, Job.CHUNK), field(job, Job.ROWS) // rows, field(job, Job.TILES)
        chunks = (groups + chunk - 1) // chunk
        while True:
            number = take(job)
            tile, first = number // chunks, number % chunks * chunk
            if tile >= field(job, Job.SEQUENCES) * tiles:
                break
            token = field(job, Job.TILE) + tile % tiles * width
            for group in range(first, min(first + chunk, groups)):
                multiply_tile(job, group, tile // tiles, token, bits, rows, width)

    return _compiled(multiply)


@cache
def transpose() -> Any:
    """X (SEQUENCES, TOKENS, INPUTS) to OUT (SEQUENCES, INPUTS, TOKENS), float32.

    torch's copy takes 3 to 6 times as long. `TILE` divides tokens and inputs.
    """

    def transpose(job: int) -> None:
        bands = field(job, Job.INPUTS) // TILE
        while True:
            number = take(job)
            if number >= field(job, Job.SEQUENCES) * bands:
                break
            for row in range(0, field(job, Job.TOKENS), TILE):
                transpose_tile(job, number // bands, row, number % bands * TILE)

    return _compiled(transpose)


@cache
def pack(bits: int) -> Any:
    """A function of a dense matrix that writes its mask and its values, and returns nothing.

    Its arguments: `dense` (rows, columns), the weights' bits as unsigned integers; `masks` uint64 (rows, blocks) of
    zeros; `values`, with room for one value more than remain; `starts` int64 (rows + 1). -0.0 counts as zero.
    """
    magnitude = (1 << (bits - 1)) - 1

    def pack(dense: Any, masks: Any, values: Any, starts: Any) -> None:
        rows, columns = dense.shape
        at = 0
        for row in range(rows):
            starts[row] = at
            for column in range(columns):
                values[at] = dense[row, column]
                kept = (dense[row, column] & magnitude) != 0  # no branch, which would be predicted wrongly
                masks[row, column // BLOCK] |= np.uint64(kept) << np.uint64(column % BLOCK)
                at += kept
        starts[rows] = at

    signature = f"void(uint{bits}[:,::1], uint64[:,::1], uint{bits}[::1], int64[::1])"
    return _compiled(pack, numba.njit, signature)


def _compiled(function: Callable[..., None], compiler: Any = numba.cfunc, signature: str = "void(intp)") -> Any:
    """Compile a kernel; where no folder takes numba's cache (`NUMBA_CACHE_DIR` names one), every process does so."""
    options = {"boundscheck": False, "error_model": "numpy"}
    try:
        return compiler(signature, cache=True, **options)(function)
    except (RuntimeError, OSError):  # no writable folder; a full disk
        return compiler(signature, **options)(function)


# What numba has no words for, as LLVM code. Addresses are integers.

POINTER, NUMBER, FLOAT = ir.IntType(64), ir.IntType(64), ir.FloatType()


def lanes(path: str) -> int:
    """float32 values in a register."""
    return {"avx512": 16, "avx2": 8, "portable": 16}[path]


def _operation(typing: Callable[..., Any]) -> Any:
    """Make an operation for kernels from a function: types of arguments -> signature, generator of LLVM code."""
    return intrinsic(prefer_literal=True)(typing)


@_operation
def field(_: Any, job: Any, number: Any) -> Any:
    """A field of a job."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        job, number = arguments
        return _load(builder, builder.add(job, builder.mul(number, NUMBER(8))), NUMBER)

    return types.intp(types.intp, number), generate


@_operation
def take(_: Any, job: Any) -> Any:
    """The number of the next chunk, which no other thread gets."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, arguments[0], NUMBER), NUMBER(1), "monotonic")

    return types.intp(types.intp), generate


@_operation
def multiply_rows(
    _: Any, job: Any, first: Any, step: Any, last: Any, path: Any, bits: Any, tokens: Any, rows: Any, gathered: Any
) -> Any:
    """The products of `product`, or of `gather`, for the rows first, first + step, ...

    Several rows at once, so that one's next position does not wait for its population count, and far apart, so that
    each is one long stream. Rows after `last` and tokens that the job has not are computed again as its last one.
    """
    machine = Machine(path.literal_value, bits.literal_value)
    add_block = _add_gathered if gathered.literal_value else _add_expanded

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        job, first, step, last = arguments[:4]
        get = partial(_field, builder, job)
        numbers = [
            _least(builder, builder.add(first, builder.mul(step, NUMBER(r))), last) for r in range(rows.literal_value)
        ]
        streams = [Stream(machine, builder, job, number) for number in numbers]
        final = builder.sub(get(Job.TOKENS), NUMBER(1))
        present = [_least(builder, NUMBER(t), final) for t in range(tokens.literal_value)]
        inputs = [builder.add(get(Job.X), builder.mul(get(Job.X_STRIDE), token)) for token in present]
        zero = ir.Constant(machine.floats, None)
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in present] for _ in numbers]
        with cgutils.for_range(builder, get(Job.BLOCKS)) as loop:
            add_block(machine, builder, loop.index, streams, inputs, sums)
        for number, totals in zip(numbers, sums, strict=True):
            offset = builder.mul(number, NUMBER(4))
            bias = _load(builder, builder.add(get(Job.BIAS), offset), FLOAT)
            for token, total in zip(present, totals, strict=True):
                out = builder.add(builder.add(get(Job.OUT), builder.mul(get(Job.OUT_STRIDE), token)), offset)
                _store(builder, builder.fadd(_sum(builder, builder.load(total)), bias), out)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, path, bits, tokens, rows, gathered), generate


def _add_expanded(machine: "Machine", builder: Any, block: Any, streams: Any, inputs: Any, sums: Any) -> None:
    """Add the products of a block of columns to the sums (rows, tokens), by expanding its weights."""
    for part in range(0, BLOCK, machine.width):
        at = machine.place(builder, block, part)
        loaded = [machine.floats_of(builder, _load(builder, builder.add(x, at), machine.raw)) for x in inputs]
        for stream, totals in zip(streams, sums, strict=True):
            weights = machine.floats_of(builder, stream.next(block, part))
            for activations, total in zip(loaded, totals, strict=True):
                _add_products(builder, weights, activations, total)


def _add_gathered(machine: "Machine", builder: Any, block: Any, streams: Any, inputs: Any, sums: Any) -> None:
    """The same, by gathering the activations of its remaining weights."""
    places = [machine.place(builder, block, part) for part in range(0, BLOCK, machine.width)]
    loaded = [[_load(builder, builder.add(x, at), machine.raw) for at in places] for x in inputs]
    for stream, totals in zip(streams, sums, strict=True):
        with stream.remaining(block) as (values, columns, chosen):
            weights = machine.floats_of(builder, values)
            for registers, total in zip(loaded, totals, strict=True):
                activations = machine.gather(builder, registers, columns, chosen)
                _add_products(builder, weights, machine.floats_of(builder, activations), total)


def _add_products(builder: Any, weights: list[Any], activations: list[Any], total: Any) -> None:
    for pair in zip(weights, activations, strict=True):
        builder.store(_multiply_add(builder, *pair, builder.load(total)), total)


@_operation
def expand_row(_: Any, job: Any, row: Any, path: Any, bits: Any) -> Any:
    """Write one row of the matrix, with its zeros."""
    machine = Machine(path.literal_value, bits.literal_value)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        job, row = arguments[:2]
        stream = Stream(machine, builder, job, row)
        out = builder.add(_field(builder, job, Job.OUT), builder.mul(row, _field(builder, job, Job.OUT_STRIDE)))
        with cgutils.for_range(builder, _field(builder, job, Job.BLOCKS)) as loop:
            for part in range(0, BLOCK, machine.width):
                at = machine.place(builder, loop.index, part)
                _store(builder, stream.next(loop.index, part), builder.add(out, at))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, path, bits), generate


@_operation
def multiply_tile(_: Any, job: Any, group: Any, sequence: Any, token: Any, bits: Any, rows: Any, width: Any) -> Any:
    """The products of `multiply` for one group of rows and one tile of tokens."""
    vector = ir.VectorType(FLOAT, width.literal_value)
    together, size = rows.literal_value, bits.literal_value // 8

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        job, group, sequence, token = arguments[:4]
        get = partial(_field, builder, job)
        first = builder.mul(group, NUMBER(together))
        length = builder.mul(get(Job.TOKENS), NUMBER(4))  # bytes between two rows of activations
        tile = builder.mul(token, NUMBER(4))

        def row_of(matrix: Job, rows: Job, row: Any) -> Any:
            number = builder.add(builder.mul(sequence, get(rows)), row)
            return builder.add(builder.add(get(matrix), builder.mul(number, length)), tile)

        starts = [
            builder.add(get(Job.STARTS), builder.mul(builder.add(first, NUMBER(r)), NUMBER(8))) for r in range(together)
        ]
        begins = [_load(builder, start, NUMBER) for start in starts]
        count = builder.sub(_load(builder, builder.add(starts[0], NUMBER(8)), NUMBER), begins[0])
        columns = builder.add(get(Job.COLUMNS), builder.mul(builder.sdiv(begins[0], NUMBER(together)), NUMBER(4)))
        values = [builder.add(get(Job.VALUES), builder.mul(begin, NUMBER(size))) for begin in begins]
        sums = []
        for r in range(together):
            bias = _load(
                builder, builder.add(get(Job.BIAS), builder.mul(builder.add(first, NUMBER(r)), NUMBER(4))), FLOAT
            )
            sums.append(cgutils.alloca_once_value(builder, _repeated(builder, bias, vector)))
        with cgutils.for_range(builder, count) as loop:
            column = builder.zext(
                _load(builder, builder.add(columns, builder.mul(loop.index, NUMBER(4))), ir.IntType(32)), NUMBER
            )
            activations = _load(builder, row_of(Job.X, Job.INPUTS, column), vector)
            for value, total in zip(values, sums, strict=True):
                bits = _load(builder, builder.add(value, builder.mul(loop.index, NUMBER(size))), ir.IntType(8 * size))
                if size == 2:
                    bits = builder.shl(builder.zext(bits, ir.IntType(32)), ir.IntType(32)(16))
                weight = _repeated(builder, builder.bitcast(bits, FLOAT), vector)
                builder.store(_multiply_add(builder, weight, activations, builder.load(total)), total)
        for r, total in enumerate(sums):
            _store(builder, builder.load(total), row_of(Job.OUT, Job.ROWS, builder.add(first, NUMBER(r))))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, bits, rows, width), generate


@_operation
def transpose_tile(_: Any, job: Any, sequence: Any, row: Any, column: Any) -> Any:
    """Transpose one tile of a sequence.

    In log2(TILE) rounds, each pair of rows exchanges the halves that belong to the other (Eklundh 1972).
    """

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        job, sequence, row, column = arguments
        tokens, inputs = _field(builder, job, Job.TOKENS), _field(builder, job, Job.INPUTS)
        size = builder.mul(sequence, builder.mul(tokens, inputs))
        kind = ir.VectorType(FLOAT, TILE)

        def address(matrix: Job, width: Any, row: Any, i: int, column: Any) -> Any:
            place = builder.add(builder.mul(builder.add(row, NUMBER(i)), width), column)
            return builder.add(_field(builder, job, matrix), builder.mul(builder.add(size, place), NUMBER(4)))

        rows = [_load(builder, address(Job.X, inputs, row, i, column), kind) for i in range(TILE)]
        step = 1
        while step < TILE:
            upper = [j + TILE - step if j & step else j for j in range(TILE)]
            lower = [j + TILE if j & step else j + step for j in range(TILE)]
            for i in range(TILE):
                if not i & step:
                    pair = rows[i], rows[i + step]
                    rows[i] = builder.shuffle_vector(*pair, _numbers(upper))
                    rows[i + step] = builder.shuffle_vector(*pair, _numbers(lower))
            step *= 2
        for i in range(TILE):
            _store(builder, rows[i], address(Job.OUT, tokens, column, i, row))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


class Machine:
    """How a set of instructions holds weights of a width.

    Attributes:
        width: values expanded at once.
        bytes: of a value.
        raw: the type of a register of values as they are stored.
        floats: the type of a register of float32.
    """

    def __init__(self, path: str, bits: int) -> None:
        self.path, self.bits, self.bytes = path, bits, bits // 8
        self.width = lanes(path) * (2 if bits == 16 and path != "avx2" else 1)
        self.raw = ir.VectorType(FLOAT if bits == 32 else ir.IntType(16), self.width)
        self.floats = ir.VectorType(FLOAT, lanes(path))

    def floats_of(self, builder: Any, raw: Any) -> list[Any]:
        """float32 registers of the values of a raw register, in an order that is the same for weights and activations.

        A bfloat16 is the upper half of a float32. Of pairs of them, one stays where it is.
        """
        if self.bits == 32:
            return [raw]
        words = ir.VectorType(ir.IntType(32), lanes(self.path))
        if self.width == lanes(self.path):
            return [builder.bitcast(builder.shl(builder.zext(raw, words), _constant(words, 16)), self.floats)]
        pairs = builder.bitcast(raw, words)
        halves = builder.shl(pairs, _constant(words, 16)), builder.and_(pairs, _constant(words, 0xFFFF0000))
        return [builder.bitcast(half, self.floats) for half in halves]

    def place(self, builder: Any, block: Any, part: int) -> Any:
        """Bytes from the first column of a dense row to column `part` of a block."""
        return builder.mul(builder.add(builder.mul(block, NUMBER(BLOCK)), NUMBER(part)), NUMBER(self.bytes))

    def gather(self, builder: Any, registers: list[Any], columns: Any, chosen: Any) -> Any:
        """The activations of columns, from the raw registers of their block; zeros in lanes that are not chosen.

        One instruction looks up two registers, by the lower bits of the columns.
        """
        name, element = ("ps", ir.IntType(32)) if self.bits == 32 else ("hi", ir.IntType(16))
        columns = builder.zext(columns, ir.VectorType(element, self.width))
        kind = ir.FunctionType(self.raw, [self.raw, columns.type, self.raw])
        permute = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.avx512.vpermi2var.{name}.512")
        zero = ir.Constant(self.raw, None)
        found = [
            builder.select(chosen, builder.call(permute, [low, columns, high]), zero)
            for low, high in zip(registers[::2], registers[1::2], strict=True)
        ]
        if len(found) == 1:
            return found[0]
        return builder.select(builder.icmp_unsigned("<", columns, _constant(columns.type, BLOCK // 2)), *found)

    def expand(self, builder: Any, values: Any, mask: Any) -> Any:
        """The values at an address, moved to the places of the mask's ones, zeros elsewhere, as a raw register."""
        if self.path == "portable":
            return self._expand_by_one(builder, values, mask)
        if self.path == "avx512":
            packed, chosen = (
                _load(builder, values, self.raw),
                builder.bitcast(mask, ir.VectorType(ir.IntType(1), self.width)),
            )
            name = f"llvm.x86.avx512.mask.expand.v{self.width}{'f32' if self.bits == 32 else 'i16'}"
            kind = ir.FunctionType(self.raw, [self.raw, self.raw, chosen.type])
            expand = cgutils.get_or_insert_function(builder.module, kind, name)
            return builder.call(expand, [packed, ir.Constant(self.raw, None), chosen])
        words = ir.VectorType(ir.IntType(32), 8)
        packed = _load(builder, values, self.raw)
        packed = builder.bitcast(packed, words) if self.bits == 32 else builder.zext(packed, words)
        table = builder.ptrtoint(_places(builder), POINTER)
        places = _load(builder, builder.add(table, builder.mul(builder.zext(mask, NUMBER), NUMBER(32))), words)
        permute = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(words, [words, words]), "llvm.x86.avx2.permd"
        )
        moved = builder.call(permute, [packed, places])
        moved = builder.and_(moved, builder.not_(builder.ashr(places, _constant(words, 31))))
        return builder.bitcast(moved, self.raw) if self.bits == 32 else builder.trunc(moved, self.raw)

    def _expand_by_one(self, builder: Any, values: Any, mask: Any) -> Any:
        """The same without vector instructions, and without branches, which would be predicted wrongly."""
        out, element = ir.Constant(self.raw, None), self.raw.element
        for lane in range(self.width):
            bit = builder.trunc(builder.lshr(mask, mask.type(lane)), ir.IntType(1))
            value = builder.select(bit, _load(builder, values, element), ir.Constant(element, 0))
            out = builder.insert_element(out, value, NUMBER(lane))
            values = builder.add(values, builder.mul(builder.zext(bit, NUMBER), NUMBER(self.bytes)))
        return out


class Stream:
    """The weights of one row of the job's matrix, a register at a time."""

    def __init__(self, machine: Machine, builder: Any, job: Any, row: Any) -> None:
        get = partial(_field, builder, job)
        self.machine, self.builder = machine, builder
        self.mask = builder.add(get(Job.MASKS), builder.mul(row, builder.mul(get(Job.BLOCKS), NUMBER(BLOCK // 8))))
        start = _load(builder, builder.add(get(Job.STARTS), builder.mul(row, NUMBER(8))), NUMBER)
        begin = builder.add(get(Job.VALUES), builder.mul(start, NUMBER(machine.bytes)))
        self.values = cgutils.alloca_once_value(builder, begin)

    def next(self, block: Any, part: int) -> Any:
        """The weights from column `part` of a block on."""
        builder, machine = self.builder, self.machine
        place = builder.add(builder.mul(block, NUMBER(BLOCK // 8)), NUMBER(part // 8))
        mask = _load(builder, builder.add(self.mask, place), ir.IntType(machine.width))
        values = builder.load(self.values)
        if part % 32 == 0:
            _prefetch(builder, builder.add(values, NUMBER(PREFETCH)))
        kept = _count(builder, mask)
        builder.store(builder.add(values, builder.mul(kept, NUMBER(machine.bytes))), self.values)
        return machine.expand(builder, values, mask)

    @contextmanager
    def remaining(self, block: Any) -> Iterator[tuple[Any, Any, Any]]:
        """Code that runs for each register of the remaining weights of a block; where most are zeros, mostly once.

        Yields:
            a raw register of weights; their columns in the block, as bytes; which lanes are chosen. In the others,
            weights are zero, whatever memory holds there, and columns are any.
        """
        builder, machine, width = self.builder, self.machine, self.machine.width
        mask = _load(builder, builder.add(self.mask, builder.mul(block, NUMBER(BLOCK // 8))), NUMBER)
        kept, begin = _count(builder, mask), builder.load(self.values)
        _prefetch(builder, builder.add(begin, NUMBER(PREFETCH)))
        builder.store(builder.add(begin, builder.mul(kept, NUMBER(machine.bytes))), self.values)
        packed = _places_of_ones(builder, mask)
        left, values, columns = (cgutils.alloca_once_value(builder, value) for value in (kept, begin, packed))
        body, more, end = (builder.append_basic_block(name) for name in ("body", "more", "end"))
        builder.branch(body)
        builder.position_at_end(body)
        lowest = builder.trunc(_ones(builder, builder.load(left)), ir.IntType(width))
        chosen = builder.bitcast(lowest, ir.VectorType(ir.IntType(1), width))
        loaded = _load(builder, builder.load(values), machine.raw)
        weights = builder.select(chosen, loaded, ir.Constant(machine.raw, None))
        yield weights, builder.shuffle_vector(builder.load(columns), packed, _numbers(range(width))), chosen
        builder.cbranch(builder.icmp_signed(">", builder.load(left), NUMBER(width)), more, end)
        builder.position_at_end(more)
        builder.store(builder.sub(builder.load(left), NUMBER(width)), left)
        builder.store(builder.add(builder.load(values), NUMBER(width * machine.bytes)), values)
        later = _numbers(range(width, width + BLOCK))
        builder.store(builder.shuffle_vector(builder.load(columns), packed, later), columns)
        builder.branch(body)
        builder.position_at_end(end)


def _count(builder: Any, mask: Any) -> Any:
    """The number of a mask's ones."""
    kind = ir.FunctionType(mask.type, [mask.type])
    count = cgutils.get_or_insert_function(builder.module, kind, f"llvm.ctpop.i{mask.type.width}")
    return builder.zext(builder.call(count, [mask]), NUMBER)


def _ones(builder: Any, count: Any) -> Any:
    """A number of which the lowest `count` bits are 1, of 0 to 64: a shift by 64 is undefined."""
    kind = ir.FunctionType(NUMBER, [NUMBER, NUMBER])
    lowest = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.bmi.bzhi.64")
    return builder.call(lowest, [NUMBER(-1), count])


def _places_of_ones(builder: Any, mask: Any) -> Any:
    """The places of a mask's ones in order, as bytes, and after them any numbers.

    Not zeros: on Zen 5, the instruction that fills up with zeros waits for what its register held before, which took
    away all that gathering gains.
    """
    places, chosen = ir.VectorType(ir.IntType(8), BLOCK), ir.VectorType(ir.IntType(1), BLOCK)
    kind = ir.FunctionType(places, [places, places, chosen])
    compress = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.mask.compress.v64i8")
    every = ir.Constant(places, list(range(BLOCK)))
    return builder.call(compress, [every, every, builder.bitcast(mask, chosen)])


def _places(builder: Any) -> Any:
    """For each mask of 8 lanes, which of the next values each lane gets; -1: none."""
    masks = np.arange(256)[:, None] >> np.arange(8) & 1
    places = np.where(masks, np.cumsum(masks, 1) - 1, -1).astype(np.int32)
    return cgutils.global_constant(
        builder, "places", ir.Constant(ir.ArrayType(ir.IntType(8), places.nbytes), bytearray(places.tobytes()))
    )


def _field(builder: Any, job: Any, number: Job) -> Any:
    return _load(builder, builder.add(job, NUMBER(8 * number)), NUMBER)


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(_pointer(builder, address, kind), align=1)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, _pointer(builder, address, value.type), align=1)


def _prefetch(builder: Any, address: Any) -> None:
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(prefetch, [builder.inttoptr(address, byte), number(0), number(3), number(1)])  # to read, keep, data


def _least(builder: Any, left: Any, right: Any) -> Any:
    return builder.select(builder.icmp_signed("<", left, right), left, right)


def _multiply_add(builder: Any, left: Any, right: Any, total: Any) -> Any:
    """left * right + total, rounded once."""
    kind = ir.FunctionType(left.type, [left.type] * 3)
    name = f"llvm.fma.v{left.type.count}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [left, right, total])


def _sum(builder: Any, vector: Any) -> Any:
    """The sum of a register, in pairs."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        low, high = (builder.shuffle_vector(vector, vector, _numbers(range(i, i + half))) for i in (0, half))
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, NUMBER(0))


def _repeated(builder: Any, scalar: Any, vector: Any) -> Any:
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, scalar, NUMBER(0))
    return builder.shuffle_vector(first, nothing, _numbers([0] * vector.count))


def _numbers(numbers: Iterable[int]) -> Any:
    numbers = list(numbers)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


def _constant(vector: Any, number: int) -> Any:
    return ir.Constant(vector, [number] * vector.count)
