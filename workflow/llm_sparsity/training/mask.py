"""Removed weights that stay removed while a model trains.

A removed weight is zero, and so are its gradient (before clipping and before the optimizer sees it) and its moments.
AdamW leaves such a weight where it is, weight decay included, so a step costs one pass over the gradients and no more.
Zeroing gradients alone is not enough where weights are removed in mid-training: AdamW's moments would bring them back
in one step. `remove` clears all three.

Weights that are spread over processes (FSDP) are held shard by shard: each process sees to its own.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer


class Mask:
    """Which weights of a model are removed.

    Args:
        weights: name -> parameter of the scope, after it was prepared for training.

    Attributes:
        kept: name -> where a weight is not removed, bool, of the shape of this process's shard.
    """

    def __init__(self, weights: Mapping[str, Parameter]) -> None:
        self._weights = weights
        self.kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def remove(self, removed: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        """From now on hold these weights, and no others, at zero: weights, moments, later gradients."""
        self.kept = {name: ~gone for name, gone in removed.items()}
        for name, gone in removed.items():
            weight = self._weights[name]
            local(weight).masked_fill_(gone, 0)  # a -0.0 in the file becomes 0.0
            for moment in optimizer.state.get(weight, {}).values():
                if moment.shape == weight.shape:
                    local(moment).masked_fill_(gone, 0)

    def hold(self) -> None:
        """Zero the gradients of removed weights."""
        for name, kept in self.kept.items():
            grad = self._weights[name].grad
            if grad is not None:
                local(grad).mul_(kept)  # half the time of masked_fill_

    def check(self, saved: Mapping[str, Tensor] | None = None) -> None:
        """Raise RuntimeError where a removed weight is not zero, in the model or in what is to be saved."""
        for name, kept in self.kept.items():
            found = local((saved or self._weights)[name].detach())[~kept]
            if bool(found.any() or found.signbit().any()):  # -0.0 is equal to 0, but its bits are not: a larger file
                raise RuntimeError(
                    f"{name}: a removed weight has grown back although the mask is kept; this is a fault of the program"
                )


def zeros(weights: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """Where weights are zero, in this process's shards."""
    return {name: local(weight.detach()) == 0 for name, weight in weights.items()}


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, which may be all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
