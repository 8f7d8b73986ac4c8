"""ADMM: removes weights in several steps, and after each step fits all remaining weights to the output of the dense
matrix (Boža 2024, arXiv:2401.02938, gradual pruning).

Weights are multiplied by the norms of their inputs, and the Hessian X'X is divided by them. The smallest products are
removed: Wanda's score, compared across the whole matrix. The alternating direction method of multipliers fits the
remaining weights, with one matrix inverse for all rows and steps and one matrix product for each step.

In its paper, ADMM is ahead of SparseGPT: every remaining weight can compensate for every removed one, not only for
those to its left. ALPS (arXiv:2406.07831) is a successor that needs an eigendecomposition of every Hessian.
"""

import torch
from torch import Tensor

from llm_sparsity.pruning.selection import lowest
from llm_sparsity.study.sparsity import Sparsity

GRANULARITY = (1, 1)
UPDATES = True
STEPS = 20  # as in the paper, like the two constants below
GROWTH = 15  # steps in which weights are removed, fewer in each than in the one before
DAMPING = 0.1  # times the mean of the normalised Hessian's diagonal, added to the diagonal


def observe(inputs: Tensor) -> Tensor:
    """X'X: (tokens, in) -> (in, in)."""
    return inputs.t() @ inputs


def prepare(hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise, damp and invert a Hessian.

    Args:
        hessian: X'X, (in, in).

    Returns:
        The normalised and damped Hessian H, (in, in); the inverse of H plus the identity, (in, in); the norms of the
        inputs, (in,).
    """
    norms = hessian.diagonal().sqrt() + 1e-8
    hessian = hessian / norms / norms[:, None]
    hessian.diagonal().add_(DAMPING * float(hessian.diagonal().mean()))
    identity = torch.eye(len(norms), device=hessian.device)
    return hessian, torch.cholesky_inverse(torch.linalg.cholesky(hessian + identity)), norms


def prune(weight: Tensor, prepared: tuple[Tensor, Tensor, Tensor], sparsity: Sparsity) -> Tensor:
    """Remove weights step by step, and fit the remaining weights.

    Args:
        weight: (out, in), float32.
        prepared: from `prepare`.
        sparsity: a fraction or a pattern.
    """
    hessian, inverse, norms = prepared
    fitted = weight * norms
    wanted = fitted @ hessian
    dual = torch.zeros_like(fitted)
    for step in range(1, STEPS + 1):
        if step <= GROWTH:
            removed = _smallest(fitted + dual, sparsity, 1 - (1 - step / GROWTH) ** 3)
        kept = (fitted + dual).masked_fill(removed, 0)
        dual += fitted - kept
        fitted = (wanted + kept - dual) @ inverse
    return (fitted + dual).masked_fill(removed, 0) / norms


def _smallest(weight: Tensor, sparsity: Sparsity, share: float) -> Tensor:
    """Select the smallest weights; for a pattern, among the M - N smallest of every M.

    Args:
        weight: (out, in).
        sparsity: a fraction or a pattern.
        share: the part of `sparsity.count` to select.

    Returns:
        bool, (out, in).
    """
    sizes = weight.abs()
    if sparsity.pattern:
        kept, group = sparsity.pattern
        free = lowest(sizes.reshape(-1, group), group - kept).reshape(weight.shape)
        sizes = sizes.masked_fill(~free, torch.inf)
    return lowest(sizes.flatten(), round(share * sparsity.count(weight.numel()))).reshape(weight.shape)
