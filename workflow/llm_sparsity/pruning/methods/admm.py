"""ADMM: the mask grows step by step, and after each step all weights that stay are fitted to the matrix's dense output
(Boža 2024, arXiv:2401.02938, gradual pruning).

Weights are multiplied with the norms of their inputs, the Hessian X'X divided by them; then the smallest go: Wanda's
score, compared over the whole matrix. The alternating direction method of multipliers fits the rest: one inverse for
all rows and steps, then a product of matrices a step.

The third calibrated method: in its paper it is ahead of SparseGPT, as every weight may answer for every other one, not
only for those to its left, and it is simple. ALPS (arXiv:2406.07831) goes further in this direction, but takes an
eigendecomposition of every Hessian.
"""

import torch
from torch import Tensor

from llm_sparsity.pruning.selection import lowest, pattern_of, removed_of

UNIT = (1, 1)
STEPS = 20  # the paper's, as the two below
GROWTH = 15  # steps after which the mask is whole; from the first, it grows by less and less
DAMPING = 0.1  # of the mean of the normalised Hessian's diagonal, added to the diagonal


def observe(inputs: Tensor) -> Tensor:
    """X'X: (tokens, in) -> (in, in)."""
    return inputs.t() @ inputs


def prepare(hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised and damped Hessian and the inverse of it plus 1, (in, in); the norms of the inputs, (in,)."""
    norms = hessian.diagonal().sqrt() + 1e-8
    hessian = hessian / norms / norms[:, None]
    hessian.diagonal().add_(DAMPING * float(hessian.diagonal().mean()))
    identity = torch.eye(len(norms), device=hessian.device)
    return hessian, torch.cholesky_inverse(torch.linalg.cholesky(hessian + identity)), norms


def prune(weight: Tensor, prepared: tuple[Tensor, Tensor, Tensor], sparsity: str) -> Tensor:
    """Remove weights step by step and fit the others.

    Args:
        weight: (out, in), float32.
        prepared: from `prepare`.
        sparsity: "0.5" or "2of4".
    """
    hessian, inverse, norms = prepared
    fitted = weight * norms
    wanted = fitted @ hessian
    dual = torch.zeros_like(fitted)
    for step in range(1, STEPS + 1):
        if step <= GROWTH:
            gone = _smallest(fitted + dual, sparsity, 1 - (1 - step / GROWTH) ** 3)
        kept = (fitted + dual).masked_fill(gone, 0)
        dual += fitted - kept
        fitted = (wanted + kept - dual) @ inverse
    return (fitted + dual).masked_fill(gone, 0) / norms


def _smallest(weight: Tensor, sparsity: str, share: float) -> Tensor:
    """Which weights go when so much of the mask is there: the smallest, of a pattern only those that it lets go."""
    sizes = weight.abs()
    count = removed_of(weight.numel(), sparsity) if "of" not in sparsity else 0
    if pattern := pattern_of(sparsity):
        kept, group = pattern
        free = lowest(sizes.reshape(-1, group), group - kept).reshape(weight.shape)
        sizes = sizes.masked_fill(~free, torch.inf)
        count = weight.numel() // group * (group - kept)
    return lowest(sizes.flatten(), round(share * count)).reshape(weight.shape)
