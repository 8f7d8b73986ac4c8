"""OWL: layers that hold more outliers keep more (Yin et al. 2023, arXiv:2310.05175).

An outlier is a weight whose size times the norm of its input is more than 5 times the mean of its layer. Layers'
sparsities differ by 0.16 at most, in the order of their shares of outliers, around the sparsity asked for: the paper's
M = 5 and lambda = 0.08.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

M = 5
LAMBDA = 0.08


def observe(inputs: Tensor) -> Tensor:
    """The sum of squares of each input feature: (tokens, in) -> (in,)."""
    return inputs.square().sum(dim=0)


def outliers(matrices: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The share of outliers in a layer, from each of its matrices (out, in) and what was observed of its inputs."""
    scores = [weight.abs() * squares.sqrt() for weight, squares in matrices]
    size = sum(score.numel() for score in scores)
    mean = sum(float(score.double().sum()) for score in scores) / size
    return sum(int((score > M * mean).sum()) for score in scores) / size


def budgets(shares: Mapping[str, float], sizes: Mapping[str, int], sparsity: str) -> dict[str, str]:
    """Layer -> its sparsity, from layer -> share of outliers; over all weights they come to the sparsity asked for."""
    low, high = min(shares.values()), max(shares.values())
    bonus = {layer: 2 * LAMBDA * (share - low) / (high - low) if high > low else 0.0 for layer, share in shares.items()}
    mean = sum(bonus[layer] * sizes[layer] for layer in bonus) / sum(sizes[layer] for layer in bonus)
    return {layer: f"{float(sparsity) + mean - bonus[layer]:.6f}" for layer in bonus}
