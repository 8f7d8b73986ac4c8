"""Machine code for sparse layers, compiled for the processor at hand when it is first needed (llvmlite).

Each function is given as text in LLVM's language, and comes back as one of pointers and integers.
"""

import ctypes
from functools import cache
from typing import Any

import llvmlite.binding as llvm

TILE = 16  # rows and columns that are transposed at once, in registers


@cache
def multiply(rows: int, width: int) -> Any:
    """Sparse matrix times activations, for so many rows at once and so many tokens at once.

    Its arguments: pointers to `ends`, `columns`, `values`, `bias` (see `execution.Sparse`), to the first of the tokens
    in x (inputs, tokens) and in out (outputs, tokens), float32; the number of groups of rows, and of tokens in a row.
    """
    name = f"multiply_{rows}_{width}"
    return _compiled(name, _multiply(name, rows, width), pointers=6, integers=2)


@cache
def transpose() -> Any:
    """A matrix (rows, columns) float32 into (columns, rows); `TILE` divides both. torch takes 3 to 6 times as long.

    Its arguments: pointers to the two, and the numbers of rows and columns.
    """
    return _compiled("transpose", _transpose("transpose"), pointers=2, integers=2)


def _compiled(name: str, assembly: str, *, pointers: int, integers: int) -> Any:
    engine, machine = _engine(), _machine()
    module = llvm.parse_assembly(assembly)
    module.triple = llvm.get_default_triple()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    engine.add_module(module)
    engine.finalize_object()
    types = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * integers
    return ctypes.CFUNCTYPE(None, *types)(engine.get_function_address(name))


@cache
def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, codemodel="jitdefault", jit=True
    )


@cache
def _engine() -> Any:
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())


def _multiply(name: str, rows: int, width: int) -> str:
    """For each group of `rows` outputs: accumulators begin at the bias; for each survivor of the group, in order, the
    activations of `width` tokens are loaded once, and every row adds its weight times them.
    """
    vector = f"<{width} x float>"

    def each(line: str) -> str:
        return "\n".join(line.replace("#", str(row)) for row in range(rows))

    def splat(scalar: str, result: str) -> str:
        return (
            f"  {result}.one = insertelement {vector} poison, float {scalar}, i64 0\n"
            f"  {result} = shufflevector {vector} {result}.one, {vector} poison, <{width} x i32> zeroinitializer"
        )

    return f"""
define void @{name}(ptr %ends, ptr %columns, ptr %values, ptr %bias, ptr %x, ptr %out, i64 %groups, i64 %tokens) {{
entry:
  br label %group
group:
  %g = phi i64 [ 0, %entry ], [ %g.next, %store ]
  %g.next = add i64 %g, 1
  %first.row = mul i64 %g, {rows}
{
        each(f'''  %row.# = add i64 %first.row, #
  %bias.at.# = getelementptr float, ptr %bias, i64 %row.#
  %bias.# = load float, ptr %bias.at.#
{splat("%bias.#", "%start.#")}''')
    }
  %begin.at = getelementptr i32, ptr %ends, i64 %g
  %end.at = getelementptr i32, ptr %ends, i64 %g.next
  %begin.32 = load i32, ptr %begin.at
  %end.32 = load i32, ptr %end.at
  %begin = sext i32 %begin.32 to i64
  %end = sext i32 %end.32 to i64
  %none = icmp eq i64 %begin, %end
  br i1 %none, label %store, label %survivor
survivor:
  %k = phi i64 [ %begin, %group ], [ %k.next, %survivor ]
{each(f"  %sum.# = phi {vector} [ %start.#, %group ], [ %more.#, %survivor ]")}
  %column.at = getelementptr i32, ptr %columns, i64 %k
  %column.32 = load i32, ptr %column.at
  %column = sext i32 %column.32 to i64
  %x.offset = mul i64 %column, %tokens
  %x.at = getelementptr float, ptr %x, i64 %x.offset
  %activations = load {vector}, ptr %x.at, align 4
  %first.value = mul i64 %k, {rows}
{
        each(f'''  %index.# = add i64 %first.value, #
  %value.at.# = getelementptr float, ptr %values, i64 %index.#
  %value.# = load float, ptr %value.at.#
{splat("%value.#", "%weight.#")}
  %more.# = call {vector} @llvm.fma.v{width}f32({vector} %weight.#, {vector} %activations, {vector} %sum.#)''')
    }
  %k.next = add i64 %k, 1
  %last = icmp eq i64 %k.next, %end
  br i1 %last, label %store, label %survivor
store:
{each(f'''  %result.# = phi {vector} [ %start.#, %group ], [ %more.#, %survivor ]''')}
{
        each(f'''  %out.offset.# = mul i64 %row.#, %tokens
  %out.at.# = getelementptr float, ptr %out, i64 %out.offset.#
  store {vector} %result.#, ptr %out.at.#, align 4''')
    }
  %finished = icmp eq i64 %g.next, %groups
  br i1 %finished, label %exit, label %group
exit:
  ret void
}}
declare {vector} @llvm.fma.v{width}f32({vector}, {vector}, {vector})
"""


def _transpose(name: str) -> str:
    """Tile after tile, down the columns: its rows are loaded, in log2(TILE) rounds each pair of rows exchanges what
    belongs to the other (Eklundh 1972), and they are stored as columns.
    """
    vector = f"<{TILE} x float>"

    def address(matrix: str, i: int, row: str, length: str, column: str) -> str:
        """Where row `row` + i of a matrix, whose rows are `length` long, has its element `column`."""
        at = f"%{matrix}.{i}"
        return f"""  {at}.row = add i64 {row}, {i}
  {at}.start = mul i64 {at}.row, {length}
  {at}.offset = add i64 {at}.start, {column}
  {at} = getelementptr float, ptr %{matrix}, i64 {at}.offset"""

    rows, lines = [f"%row.{i}" for i in range(TILE)], []
    for i in range(TILE):
        lines.append(address("from", i, "%r", "%columns", "%c"))
        lines.append(f"  {rows[i]} = load {vector}, ptr %from.{i}, align 4")
    step = 1
    while step < TILE:
        upper = [j if not j & step else TILE + j - step for j in range(TILE)]
        lower = [j + step if not j & step else TILE + j for j in range(TILE)]
        masks = [f"<{TILE} x i32> <{', '.join(f'i32 {j}' for j in mask)}>" for mask in (upper, lower)]
        for i in range(TILE):
            if not i & step:
                pair = rows[i], rows[i + step]
                rows[i], rows[i + step] = f"%round.{step}.{i}", f"%round.{step}.{i + step}"
                for row, mask in zip((rows[i], rows[i + step]), masks, strict=True):
                    lines.append(f"  {row} = shufflevector {vector} {pair[0]}, {vector} {pair[1]}, {mask}")
        step *= 2
    for i in range(TILE):
        lines.append(address("to", i, "%c", "%rows", "%r"))
        lines.append(f"  store {vector} {rows[i]}, ptr %to.{i}, align 4")
    body = "\n".join(lines)
    return f"""
define void @{name}(ptr %from, ptr %to, i64 %rows, i64 %columns) {{
entry:
  br label %tile
tile:
  %r = phi i64 [ 0, %entry ], [ %r.next, %tile ]
  %c = phi i64 [ 0, %entry ], [ %c.next, %tile ]
{body}
  %r.more = add i64 %r, {TILE}
  %bottom = icmp eq i64 %r.more, %rows
  %r.next = select i1 %bottom, i64 0, i64 %r.more
  %c.more = add i64 %c, {TILE}
  %c.next = select i1 %bottom, i64 %c.more, i64 %c
  %finished = icmp eq i64 %c.next, %columns
  br i1 %finished, label %exit, label %tile
exit:
  ret void
}}
"""
