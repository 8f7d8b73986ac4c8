"""OWL, outlier-weighted layerwise sparsity: layers with more outliers keep more weights (Yin et al. 2023,
arXiv:2310.05175).

An outlier is a weight whose absolute value times the norm of its input is more than 5 times the mean of its layer. The
sparsities of the layers decrease linearly with their shares of outliers, around the sparsity asked for, and differ by
0.16 at most: M = 5 and lambda = 0.08 in the paper.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from llm_sparsity.study.sparsity import Sparsity

OUTLIER = 5  # times the mean
LAMBDA = 0.08


def outlier_share(matrices: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The share of outliers among the weights of a layer.

    Args:
        matrices: for each matrix, its weight (out, in) and the sums of squares of its inputs, (in,).
    """
    scores = [weight.abs() * squares.sqrt() for weight, squares in matrices]
    size = sum(score.numel() for score in scores)
    mean = sum(float(score.double().sum()) for score in scores) / size
    return sum(int((score > OUTLIER * mean).sum()) for score in scores) / size


def layer_fractions(shares: Mapping[str, float], sizes: Mapping[str, int], sparsity: Sparsity) -> dict[str, float]:
    """The fraction to remove from each layer, to 6 digits; its mean over all weights is the sparsity.

    Args:
        shares: layer -> share of outliers.
        sizes: layer -> number of weights.
        sparsity: a fraction, no pattern.

    Returns:
        Layer -> fraction. It may be outside [0, 1) if the sparsity is near 0 or 1.
    """
    low, high = min(shares.values()), max(shares.values())
    bonus = {layer: 2 * LAMBDA * (share - low) / (high - low) if high > low else 0.0 for layer, share in shares.items()}
    mean = sum(bonus[layer] * sizes[layer] for layer in bonus) / sum(sizes[layer] for layer in bonus)
    return {layer: round(sparsity.fraction + mean - bonus[layer], 6) + 0.0 for layer in bonus}  # no -0.0
