"""Which dimension of a matrix is heads or neurons, for methods that remove whole ones.

A block of attention or a feed-forward block has one matrix that takes its heads or neurons as inputs. All others give
them as outputs. The configuration's plan for tensor parallelism tells which is which, where it has one; else the
shapes, where one side alone has the model's width; else the order, in which the output projection is the last.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llm_sparsity.models.roles import PrunableAxis

# Names of matrices that fuse query, key and value -> how many matrices lie one after the other: query, key and value,
# or 1 if each head's three lie together.
FUSED_ATTENTION = {"c_attn": 3, "Wqkv": 3, "query_key_value": 1}
# Names of matrices that fuse a gate and what it multiplies, one after the other.
FUSED_GATES = {"gate_up_proj": 2, "Wi": 2}


UNITS = {"attention": "heads", "mlp": "neurons"}


class Matrix(NamedTuple):
    """A matrix of a layer.

    name: of its module; of a parameter without a module of its own, such as packed experts, the parameter's.
    shape: (outputs, inputs); None of such parameters.
    transposed: whether it is stored as (inputs, outputs).
    """

    name: str
    shape: tuple[int, int] | None
    transposed: bool = False


def readers_of(matrices: Sequence[Matrix], plan: Mapping[str, str], hidden: int) -> list[Matrix]:
    """The matrices of a block that take its heads or neurons as inputs, and so give the block's output.

    Args:
        matrices: of the block, in the model's order.
        plan: name of a module, with * for numbers -> its style of tensor parallelism.
        hidden: the model's width.
    """
    return [matrix for matrix in matrices if _reads_units(matrix, matrices[-1], plan, hidden)]


def _reads_units(matrix: Matrix, last: Matrix, plan: Mapping[str, str], hidden: int) -> bool:
    style = plan.get(re.sub(r"\d+", "*", matrix.name), "")
    if style.startswith(("rowwise", "colwise", "packed_colwise")):
        return style.startswith("rowwise")
    if matrix.shape and (_inputs(matrix) == hidden) != (_outputs(matrix) == hidden):
        return _outputs(matrix) == hidden
    return matrix is last


def block_axes(
    block: str,
    part: str,
    matrices: Sequence[Matrix],
    *,
    readers: Sequence[Matrix],
    others: Mapping[str, int],
    heads: int,
) -> dict[str, PrunableAxis] | str:
    """The axes of the weights and biases of a block, or the reason why heads or neurons cannot be told apart.

    Args:
        block: its name.
        part: "attention" or "mlp".
        matrices: of the block, in the model's order.
        readers: those of them that take heads or neurons as inputs.
        others: its other parameters, without biases of matrices -> their number of dimensions.
        heads: of an attention block; with grouped queries, groups.
    """
    if packed := [matrix.name for matrix in matrices if matrix.shape is None]:
        return f"{packed[0]} packs several matrices"
    if len(readers) != 1 or len(matrices) == 1:
        return f"{block} has not one matrix that takes its {UNITS[part]} as inputs, but {len(readers)}"
    if part == "attention" and (spanning := [name for name, dims in others.items() if dims > 1 or not _is_norm(name)]):
        return f"{spanning[0]} belongs to several heads"
    reader = readers[0]
    writers = [matrix for matrix in matrices if matrix is not reader]
    width = _inputs(reader)
    units = heads if part == "attention" else width
    fused = _fused(part, writers, width)
    if fused is None:
        return f"the layout of {writers[0].name}, {writers[0].shape}, is not known"
    if uneven := [m.name for m in writers if _outputs(m) % (fused * units)] or [reader.name] * bool(width % units):
        return f"{uneven[0]} does not divide into {units} {UNITS[part]}"
    axes = {f"{reader.name}.weight": PrunableAxis(block, int(not reader.transposed), 1)}
    for matrix in writers:
        axes[f"{matrix.name}.weight"] = PrunableAxis(block, int(matrix.transposed), fused)
        axes[f"{matrix.name}.bias"] = PrunableAxis(block, 0, fused)
    return axes


def _fused(part: str, writers: Sequence[Matrix], width: int) -> int | None:
    """How many matrices lie one after the other in each writer; None if their order is not known."""
    word = writers[0].name.rpartition(".")[2]
    if part == "attention":
        if len(writers) > 1:
            return 1
        return FUSED_ATTENTION.get(word) if _outputs(writers[0]) == 3 * width else None
    times = 1 if all(_outputs(matrix) == width for matrix in writers) else FUSED_GATES.get(word)
    return times if times and all(_outputs(matrix) == times * width for matrix in writers) else None


def _is_norm(name: str) -> bool:
    """Whether a parameter is of a norm, and of one for all heads."""
    return re.search(r"(?i)norm|\bln", name) is not None and re.search(r"norms?\.\d", name) is None


def _outputs(matrix: Matrix) -> int:
    return matrix.shape[0] if matrix.shape else 0


def _inputs(matrix: Matrix) -> int:
    return matrix.shape[1] if matrix.shape else 0
