"""LoRA (Hu et al. 2021, arXiv:2106.09685) that keeps the mask, also after merging.

A frozen matrix W computes as W + alpha / rank * B A where W is not zero, and as zero elsewhere; A and B are trained.
B A is dense, so adding it to a sparse W would fill every zero. With the product masked (as in Muñoz et al. 2024,
arXiv:2410.03750), the merged matrix is as sparse as W. Only A and B have gradients and moments, a percent of W's size.
A training step holds one masked matrix per layer among its activations, unless gradients are checkpointed.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils import parametrize

PARTS = ".parametrizations.weight."  # torch's prefix for W, A and B
ORIGINAL, FACTORS = f"{PARTS}original", f"{PARTS}0."


class LowRankUpdate(Module):
    """The masked low-rank update of a matrix.

    Args:
        weight: W, float, (rows, columns).
        rank: of B A.
        alpha: B A is multiplied by alpha / rank.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.a = Parameter(torch.empty(rank, weight.shape[1]).uniform_(-1, 1) / math.sqrt(weight.shape[1]))
        self.b = Parameter(torch.zeros(weight.shape[0], rank))  # training starts at W itself
        self._scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """W plus its update where W is not zero, (rows, columns)."""
        return (weight + self._scale * (self.b @ self.a)).masked_fill(weight == 0, 0)


def attach(net: Module, names: list[str], *, rank: int, alpha: float, seed: int) -> None:
    """Freeze a model, in place, and attach an update to each named matrix; A is drawn with the seed."""
    net.requires_grad_(requires_grad=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            module = net.get_submodule(name.removesuffix(".weight"))
            update = LowRankUpdate(net.get_parameter(name), rank, alpha)
            parametrize.register_parametrization(module, "weight", update, unsafe=True)


def plain_name(name: str) -> str:
    """The name of a parameter before `attach`."""
    return name.replace(ORIGINAL, ".weight")


def factors(net: Module) -> Iterator[tuple[str, Parameter]]:
    """A and B of every update, with their names."""
    return ((name, weight) for name, weight in net.named_parameters() if FACTORS in name)


def updated_modules(net: Module) -> dict[str, Any]:
    """The modules whose matrices have updates, by the name of the matrix; empty without LoRA."""
    modules = net.named_modules()
    return {f"{name}.weight": module for name, module in modules if parametrize.is_parametrized(module, "weight")}


@torch.no_grad()
def merged(net: Module) -> dict[str, Tensor]:
    """The matrices that have updates, with the updates merged; sharded if the model is."""
    return {name: module.weight for name, module in updated_modules(net).items()}
