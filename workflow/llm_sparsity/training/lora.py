"""Low-rank updates (LoRA, Hu et al. 2021, arXiv:2106.09685) that keep the mask, also once they are merged.

A frozen matrix W computes as W + alpha / rank * B A where W is not zero, and as zero elsewhere; A and B are trained.
Added to a sparse W as it is, a product of two dense matrices would fill every zero. Masking it (as Muñoz et al. 2024,
arXiv:2410.03750, do) makes the merged matrix as sparse as W. Gradients and moments are those of A and B alone, a
percent of W's; activations of a training step hold one masked matrix a layer, unless gradients are checkpointed.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.utils import parametrize

PARTS = ".parametrizations.weight."  # torch's names for what a matrix is computed from: W, and A and B
ORIGINAL, ADDED = f"{PARTS}original", f"{PARTS}0."


class Delta(Module):
    """What a matrix computes as.

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
        """W and its update, where W is not zero."""
        return (weight + self._scale * (self.b @ self.a)).masked_fill(weight == 0, 0)


def attach(net: Module, names: list[str], *, rank: int, alpha: float, seed: int) -> None:
    """Freeze a model, in place, and give these of its matrices an update each; A is drawn with the seed."""
    net.requires_grad_(requires_grad=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            module = net.get_submodule(name.removesuffix(".weight"))
            delta = Delta(net.get_parameter(name), rank, alpha)
            parametrize.register_parametrization(module, "weight", delta, unsafe=True)


def plain(name: str) -> str:
    """What a parameter was called before its model got updates."""
    return name.replace(ORIGINAL, ".weight")


def added(net: Module) -> Iterator[tuple[str, Parameter]]:
    """A and B of every update, with their names."""
    return ((name, weight) for name, weight in net.named_parameters() if ADDED in name)


def updated(net: Module) -> dict[str, Any]:
    """The matrices that have updates, by name -> the module that computes with each. Empty without LoRA."""
    modules = net.named_modules()
    return {f"{name}.weight": module for name, module in modules if parametrize.is_parametrized(module, "weight")}


@torch.no_grad()
def merged(net: Module) -> dict[str, Tensor]:
    """The matrices that have updates, as they compute; sharded where they are."""
    return {name: module.weight for name, module in updated(net).items()}
