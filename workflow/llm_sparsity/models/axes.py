"""Which dimension of a matrix is heads or neurons, for methods that remove whole ones.

A block of attention or a feed-forward block has one matrix that takes its heads or neurons as inputs. All others give
them as outputs. The configuration's plan for tensor parallelism tells which is which, where it has one; else the
shapes, where one side alone has the model's width; else the order, in which the output projection is the last.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llm_sparsity.models.roles import PrunableAxis

# Ends of names of matrices that fuse query, key and value -> whether all queries come first, then all keys, then all
# values; if not, each head's three lie together.
FUSED_ATTENTION = {"Wqkv": True, "self_attn.qkv_proj": True, "query_key_value": False}
# Names of matrices that fuse a gate and what it multiplies, one after the other.
FUSED_GATES = ("gate_up_proj", "Wi")

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
    groups: int,
) -> dict[str, PrunableAxis] | str:
    """The axes of the weights and biases of a block, or the reason why heads or neurons cannot be told apart.

    Args:
        block: its name.
        part: "attention" or "mlp".
        matrices: of the block, in the model's order.
        readers: those of them that take heads or neurons as inputs.
        others: its other parameters, without biases of matrices -> their number of dimensions.
        heads: of an attention block.
        groups: of heads that share a key; as many as heads without grouped queries.
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
    units = groups if part == "attention" else width
    parts = _parts_of_heads(writers, width, heads, groups) if part == "attention" else _parts_of_neurons(writers, width)
    if parts is None:
        return f"the layout of {writers[0].name}, {writers[0].shape}, is not known"
    if uneven := [m.name for m in writers if _outputs(m) % (sum(parts) * units)] or [reader.name] * bool(width % units):
        return f"{uneven[0]} does not divide into {units} {UNITS[part]}"
    axes = {f"{reader.name}.weight": PrunableAxis(block, int(not reader.transposed), (1,))}
    for matrix in writers:
        axes[f"{matrix.name}.weight"] = PrunableAxis(block, int(matrix.transposed), parts)
        axes[f"{matrix.name}.bias"] = PrunableAxis(block, 0, parts)
    return axes


def _parts_of_heads(writers: Sequence[Matrix], width: int, heads: int, groups: int) -> tuple[int, ...] | None:
    """The relative sizes of what is concatenated in each writer of attention; None if its order is not known."""
    if len(writers) > 1:
        return (1,)
    name = f".{writers[0].name}"
    in_turn = next((in_turn for end, in_turn in FUSED_ATTENTION.items() if name.endswith(f".{end}")), None)
    if writers[0].transposed:  # GPT-2's Conv1D; a `c_attn` that is no Conv1D, as GPT-BigCode's, has another order
        in_turn = True
    if in_turn is None or _outputs(writers[0]) * heads != width * (heads + 2 * groups):
        return None
    return (heads // groups, 1, 1) if in_turn else (1,)


def _parts_of_neurons(writers: Sequence[Matrix], width: int) -> tuple[int, ...] | None:
    """The relative sizes of what is concatenated in each writer of a feed-forward block; None if it is not known."""
    if all(_outputs(matrix) == width for matrix in writers):
        return (1,)
    fused = writers[0].name.rpartition(".")[2] in FUSED_GATES and all(_outputs(each) == 2 * width for each in writers)
    return (1, 1) if fused else None


def _is_norm(name: str) -> bool:
    """Whether a parameter is of a norm, and of one for all heads."""
    return re.search(r"(?i)norm|\bln", name) is not None and re.search(r"norms?\.\d", name) is None


def _outputs(matrix: Matrix) -> int:
    return matrix.shape[0] if matrix.shape else 0


def _inputs(matrix: Matrix) -> int:
    return matrix.shape[1] if matrix.shape else 0
