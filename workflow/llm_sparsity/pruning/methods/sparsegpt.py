"""SparseGPT: what a removed weight did is taken over by the weights to its right, as well as the calibration inputs say
(Frantar & Alistarh 2023, arXiv:2301.00774).

With inputs X the error of a row is quadratic, its Hessian X'X for every row the same. Columns are pruned from left to
right: removing weight w of column j costs (w / U_jj)^2 and moves the columns after j by -w / U_jj * U_j, where U is the
upper Cholesky factor of the inverse Hessian. The weights that go are chosen for 128 columns at a time, a pattern's for
its group, always with the weights as they are by then. The authors' code removes one weight more in every 128 columns;
here the count is exact.
"""

import torch
from torch import Tensor

from llm_sparsity.pruning.selection import lowest, pattern_of, shares

UNIT = (1, 1)
COLUMNS = 128  # chosen and updated at a time; the paper's block size
DAMPING = 0.01  # of the mean of the Hessian's diagonal, added to the diagonal; the paper's


def observe(inputs: Tensor) -> Tensor:
    """X'X: (tokens, in) -> (in, in)."""
    return inputs.t() @ inputs


def prepare(hessian: Tensor) -> Tensor:
    """The upper triangular U, (in, in), with U'U the inverse of the damped Hessian.

    A Hessian that is singular all the same is damped ten times as much, again and again, and this is said. An input
    that is always zero makes its weights free: their cost is made 0, so that they go first.
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
    inverse = torch.eye(len(diagonal), out=reverse).t()  # in its place: of 8192 inputs each such matrix has 256 MiB
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    upper: Tensor = inverse.flip((0, 1))
    upper.diagonal()[dead] = 1e15
    return upper


def prune(weight: Tensor, upper: Tensor, sparsity: str) -> Tensor:
    """Remove weights column by column and let the columns after them make up for it.

    Args:
        weight: (out, in), float32.
        upper: (in, in), from `prepare`.
        sparsity: "0.5" or "2of4".
    """
    rows, columns = weight.shape
    kept, group = pattern_of(sparsity) or (0, 1)
    step = max(COLUMNS // group, 1) * group
    work = weight.t().clone(memory_format=torch.contiguous_format)  # a column is a row here, so it lies together
    starts = range(0, columns, step)
    counts = shares([rows * min(step, columns - start) for start in starts], sparsity) if group == 1 else []
    for number, start in enumerate(starts):
        part = work[start : start + step]
        end = start + len(part)
        own = upper[start:end, start:end]
        scale = own.diagonal()[:, None]
        if group == 1:
            gone = lowest((part / scale).square().reshape(-1), counts[number]).reshape(part.shape)
        else:
            gone = torch.zeros_like(part, dtype=torch.bool)
        errors = torch.zeros_like(part)
        for j in range(len(part)):
            if group > 1 and j % group == 0:
                costs = (part[j : j + group] / scale[j : j + group]).square()
                gone[j : j + group] = lowest(costs.t(), group - kept).t()
            errors[j] = (part[j] * gone[j]) / own[j, j]
            part[j + 1 :] -= own[j, j + 1 :, None] * errors[j]
            part[j].masked_fill_(gone[j], 0)
        work[end:] -= upper[start:end, end:].t() @ errors
    return work.t()
