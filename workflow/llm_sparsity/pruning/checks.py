"""Checks before anything is written: can a method prune these tensors to these sparsities?"""

import math
from collections.abc import Sequence

import torch

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.pruning.scores import ScoredTensors
from llm_sparsity.pruning.selection import removable
from llm_sparsity.study.sparsity import Sparsity


def check(tensors: ScoredTensors, sparsities: Sequence[Sparsity], *, min_density: float, layerwise: str) -> None:
    """Refuse sparsities that cannot be reached, and tensors that cannot be ranked or divided.

    Raises:
        UserError: the first problem found.
    """
    method = _name(tensors)
    for sparsity in sparsities:
        if sparsity.is_pattern and tensors.granularity != (1, 1):
            raise UserError(
                f"sparsity {sparsity}: a pattern is of single weights, but method {method} removes several together; "
                "choose a fraction"
            )
        if sparsity.is_pattern and layerwise != "uniform":
            raise UserError(
                f"sparsity {sparsity}: a pattern removes the same fraction of every layer, but layerwise is "
                f"{layerwise}; choose a fraction, or layerwise uniform"
            )
        if not sparsity.fits(min_density):
            raise UserError(
                f"sparsity {sparsity}: min_density {min_density} keeps this fraction of every tensor; lower one of them"
            )
    for name in tensors.roles:
        _check_shape(tensors, name, sparsities)
        if tensors.is_calibrated and layerwise == "uniform":
            _check_density(tensors, name, sparsities, min_density)


def check_values(tensors: ScoredTensors) -> None:
    """Refuse quantised and non-finite weights, and tensors without weights. Reads the scope once.

    Raises:
        UserError: the first problem found.
    """
    for name in tensors.roles:
        _check_values(tensors, name)


def _check_values(tensors: ScoredTensors, name: str) -> None:
    dtype = tensors.reader.dtype(name)
    if 0 in tensors.reader.shape(name):
        raise UserError(f"{tensors.model}: tensor {name} has no weights; choose a scope without it")
    if not dtype.is_floating_point:
        raise UserError(
            f"{tensors.model}: tensor {name} is {str(dtype).removeprefix('torch.')}, a quantised weight; "
            "prune the model before it is quantised"
        )
    if not all(torch.isfinite(strip).all() for strip in tensors.strips(tensors.reader.tensor(name))):
        raise UserError(
            f"{tensors.model}: tensor {name} has NaN or infinite weights, which no method can rank; "
            "use a sound checkpoint"
        )


def _check_shape(tensors: ScoredTensors, name: str, sparsities: Sequence[Sparsity]) -> None:
    """Refuse tensors that the method does not apply to, or whose shape it does not divide."""
    method, shape = _name(tensors), tensors.reader.shape(name)
    size = "x".join(map(str, shape))
    if (tensors.granularity is None or tensors.is_calibrated) and not tensors.roles[name].is_matrix:
        does = "prunes matrices of layers" if tensors.granularity else "removes heads and neurons"
        raise UserError(
            f"scope: method {method} {does}, tensor {name} has none; choose scope linear, "
            "attention, mlp, encoder, decoder or a list of layers"
        )
    matrix = tensors.model.structure.matrix(name)
    if tensors.granularity is None and matrix and matrix.why_whole:
        raise UserError(
            f"method {method}: heads or neurons of {name} cannot be told apart: {matrix.why_whole}; "
            "choose another scope, or another method"
        )
    if tensors.is_calibrated and (reason := tensors.model.why_unobserved(name, tensors.reader.names)):
        raise UserError(f"method {method}: the inputs of {name} are not observed: {reason}; choose another method")
    rows, columns = tensors.granularity or (1, 1)
    if rows * columns > 1 and (len(shape) != 2 or shape[0] % rows or shape[1] % columns):
        raise UserError(
            f"method {method}: blocks of {rows}x{columns} do not divide tensor {name}, which is {size}; "
            "choose scope linear, or another method"
        )
    for sparsity in sparsities:
        if sparsity.pattern:
            _, group = sparsity.pattern
            if len(shape) != 2 or shape[0 if tensors.model.structure.is_transposed(name) else 1] % group:
                raise UserError(
                    f"sparsity {sparsity}: {group} does not divide the input dimension of tensor {name}, which is "
                    f"{size}; choose scope linear, or another pattern"
                )


def _check_density(tensors: ScoredTensors, name: str, sparsities: Sequence[Sparsity], min_density: float) -> None:
    """Refuse a sparsity that rounds to more weights of a matrix than `min_density` allows to remove."""
    size = math.prod(tensors.reader.shape(name))
    for sparsity in sparsities:
        if sparsity.count(size) > removable(size, min_density):
            raise UserError(
                f"sparsity {sparsity}: removes {sparsity.count(size)} of {size} weights of tensor {name}, but "
                f"min_density {min_density} allows {removable(size, min_density)}; lower one of them"
            )


def _name(tensors: ScoredTensors) -> str:
    """The word for the method in a config."""
    return tensors.method.__name__.rpartition(".")[2]
