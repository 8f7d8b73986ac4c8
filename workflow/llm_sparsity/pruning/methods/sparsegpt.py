"""SparseGPT: removes the weights that change the output least, and updates the weights to their right to compensate,
using the Hessian of the calibration inputs (Frantar & Alistarh 2023, arXiv:2301.00774).

With inputs X, the output error of a row is quadratic in its weights, and its Hessian X'X is the same for all rows.
Columns are pruned from left to right: to remove weight w of column j costs (w / U_jj)^2 and changes the columns after j
by -w / U_jj * U_j, where U is the upper Cholesky factor of the inverse Hessian. Weights are selected for 128 columns at
a time, or for each group of a pattern, from their updated values. The authors' code removes one weight more in every
128 columns; here the count is exact.
"""

import torch
from torch import Tensor

from llm_sparsity.pruning.selection import lowest, shares
from llm_sparsity.study.sparsity import Sparsity

GRANULARITY = (1, 1)
UPDATES = True
COLUMNS = 128  # selected and updated at a time; the block size of the paper
DAMPING = 0.01  # times the mean of the Hessian's diagonal, added to the diagonal; as in the paper


def observe(inputs: Tensor) -> Tensor:
    """X'X: (tokens, in) -> (in, in)."""
    return inputs.t() @ inputs


def prepare(hessian: Tensor) -> Tensor:
    """The upper triangular U, (in, in), with U'U the inverse of the damped Hessian.

    While the damped Hessian is singular, its damping is multiplied by ten, and a line is printed. The weights of an
    input that is always zero are removed first: their cost is close to 0.
    """
    dead = hessian.diagonal() == 0
    damping = DAMPING * float(hessian.diagonal().mean()) or 1.0
    # In reversed order the inverse of the factor is the factor of the inverse: one factorisation instead of two.
    reverse = hessian.flip((0, 1))
    diagonal = reverse.diagonal()
    diagonal += damping
    while True:
        lower, failed = torch.linalg.cholesky_ex(reverse)
        if not failed:
            break
        print(f"sparsegpt: a Hessian of {len(diagonal)} inputs is singular; its damping is raised to {10 * damping:g}")
        diagonal += 9 * damping
        damping *= 10
    inverse = torch.eye(len(diagonal), out=reverse).t()  # in place: with 8192 inputs a matrix takes 256 MiB
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    upper: Tensor = inverse.flip((0, 1))
    upper.diagonal()[dead] = 1e15
    return upper


def prune(weight: Tensor, upper: Tensor, sparsity: Sparsity) -> Tensor:
    """Remove weights column by column, and update the columns after them to compensate.

    Args:
        weight: (out, in), float32.
        upper: from `prepare`, (in, in).
        sparsity: a fraction or a pattern.
    """
    rows, columns = weight.shape
    kept, group = sparsity.pattern or (0, 1)
    step = max(COLUMNS // group, 1) * group
    work = weight.t().clone(memory_format=torch.contiguous_format)  # columns become rows, contiguous in memory
    starts = range(0, columns, step)
    counts = shares([rows * min(step, columns - start) for start in starts], sparsity) if group == 1 else []
    for number, start in enumerate(starts):
        part = work[start : start + step]
        end = start + len(part)
        own = upper[start:end, start:end]
        scale = own.diagonal()[:, None]
        if group == 1:
            removed = lowest((part / scale).square().reshape(-1), counts[number]).reshape(part.shape)
        else:
            removed = torch.zeros_like(part, dtype=torch.bool)
        errors = torch.zeros_like(part)
        for j in range(len(part)):
            if group > 1 and j % group == 0:
                costs = (part[j : j + group] / scale[j : j + group]).square()
                removed[j : j + group] = lowest(costs.t(), group - kept).t()
            errors[j] = (part[j] * removed[j]) / own[j, j]
            part[j + 1 :] -= own[j, j + 1 :, None] * errors[j]
            part[j].masked_fill_(removed[j], 0)
        work[end:] -= upper[start:end, end:].t() @ errors
    return work.t()
