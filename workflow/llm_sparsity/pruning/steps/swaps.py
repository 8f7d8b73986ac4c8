"""SparseSwaps: exchanges a kept for a removed weight of the same row as long as this lowers the row's output error
(Zimmer et al. 2025, arXiv:2512.10922).

With inputs X, the squared output error of a row is e G e', where e is what its weights have changed by and G = X'X. To
add d to weight j changes it by 2 d (e G)_j + d^2 G_jj, and two changes interact by 2 d_i d_j G_ij. In each round, every
row makes its best exchange; a row without one is finished. Every exchange lowers the error by a fraction of what it was
before the first one, so this ends. Rows keep their numbers of weights. Under a pattern, exchanges stay within groups.

The best exchange is searched among the `CANDIDATES` weights that are cheapest to remove and as many that are best to
restore, each by itself; only pairs of these need an entry of G each.
"""

import torch
from torch import Tensor

from llm_sparsity.study.sparsity import Sparsity

GRANULARITY = (1, 1)
EXCHANGES = True
CANDIDATES = 16  # of a row, or of a group of a pattern
ROWS = 256  # searched at a time, which bounds the memory of the pairs
LEAST = 1e-6  # of a row's error before any exchange: smaller gains are rounding errors


def observe(inputs: Tensor) -> Tensor:
    """X'X: (tokens, in) -> (in, in)."""
    return inputs.t() @ inputs


def prepare(gram: Tensor) -> Tensor:
    """X'X as it is, (in, in)."""
    return gram


def repair(dense: Tensor, pruned: Tensor, gram: Tensor, sparsity: Sparsity) -> Tensor:
    """Exchange weights of each row; restored weights get their dense values.

    Args:
        dense: (out, in), float32.
        pruned: (out, in), float32.
        gram: from `prepare`, (in, in).
        sparsity: a fraction or a pattern.
    """
    group = sparsity.pattern[1] if sparsity.pattern else dense.shape[1]
    return torch.cat(
        [_exchange(*rows, gram, group) for rows in zip(dense.split(ROWS), pruned.split(ROWS), strict=True)]
    )


def _exchange(dense: Tensor, pruned: Tensor, gram: Tensor, group: int) -> Tensor:
    """`repair` of some rows."""
    repaired = pruned.clone()
    slopes = (pruned - dense) @ gram
    errors = ((pruned - dense) * slopes).sum(dim=1)
    least = LEAST * errors
    rows = torch.nonzero(least > 0).flatten()  # that are not finished
    while len(rows):
        change, removed, restored = _best(dense[rows], repaired[rows], slopes[rows], gram, group)
        # At most 1 / LEAST exchanges: where X'X has no full rank, errors reach 0, and rounding takes them below.
        better = (change < -least[rows]) & (errors[rows] > 0)
        rows, removed, restored = rows[better], removed[better], restored[better]
        errors[rows] += change[better]
        slopes[rows] += dense[rows, restored, None] * gram[restored] - repaired[rows, removed, None] * gram[removed]
        repaired[rows, removed] = 0
        repaired[rows, restored] = dense[rows, restored]
    return repaired


def _best(dense: Tensor, repaired: Tensor, slopes: Tensor, gram: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best exchange of each row.

    Args:
        dense, repaired: weights, (rows, in).
        slopes: half of the error's derivative by each weight, (rows, in).
        gram: (in, in).
        group: number of weights among which a row exchanges.

    Returns:
        The change of the row's error, infinite if no exchange is possible; the columns of the weight to remove and of
        the weight to restore: each (rows,).
    """
    kept = repaired != 0
    steps = torch.where(kept, -repaired, dense)
    alone = steps * (2 * slopes + steps * gram.diagonal())
    alone.masked_fill_(steps == 0, torch.inf)  # a dense zero that is "restored" would change the count
    count = min(group, CANDIDATES)
    shape = (len(dense), -1, group)

    def cheapest(costs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Costs, steps and columns of the candidates, (rows, groups, candidates)."""
        values, inside = costs.view(shape).topk(count, largest=False, sorted=False)
        starts = torch.arange(0, dense.shape[1], group, device=dense.device)[:, None]
        return values, steps.view(shape).gather(2, inside), inside + starts

    cost_out, step_out, out = cheapest(alone.masked_fill(~kept, torch.inf))
    cost_in, step_in, into = cheapest(alone.masked_fill(kept, torch.inf))
    together = 2 * step_out[..., None] * step_in[..., None, :] * gram[out[..., None], into[..., None, :]]
    change, pair = (cost_out[..., None] + cost_in[..., None, :] + together).flatten(1).min(dim=1)
    place, second = pair // count, pair % count
    block, first = place // count, place % count
    rows = torch.arange(len(dense), device=dense.device)
    return change, out[rows, block, first], into[rows, block, second]
