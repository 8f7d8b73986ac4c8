"""The mask of removed weights, held at zero while a model trains.

A removed weight is zero, and so are its gradient (before clipping and before the optimizer sees it) and its moments.
AdamW leaves such a weight at zero, weight decay included, so a step costs one pass over the gradients and no more.
Zeroing gradients alone is not enough if weights are removed during training: AdamW's moments would bring them back in
one step. `remove` clears all three.

Weights that are sharded over processes (FSDP) are held shard by shard: each process holds its own.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer


class Mask:
    """The removed weights of a model.

    Args:
        weights: name -> parameter of the pruned scope, after `accelerator.prepare`.

    Attributes:
        kept: name -> bool, of the shape of this process's shard; False where a weight is removed.
    """

    def __init__(self, weights: Mapping[str, Parameter]) -> None:
        self._weights = weights
        self.kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def remove(self, removed: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        """Set these weights and their moments to zero; `hold` then applies to them and to no others."""
        self.kept = {name: ~gone for name, gone in removed.items()}
        for name, kept in self.kept.items():
            weight = self._weights[name]
            moments = [each for each in optimizer.state.get(weight, {}).values() if each.shape == weight.shape]
            for tensor in (weight, *moments):
                local(tensor).mul_(kept)  # a quarter of the time of masked_fill_
            local(weight).add_(0)  # a -0.0, of the file or of this product, becomes 0.0

    def remove_zeros(self, optimizer: Optimizer) -> None:
        """Remove the weights that are zero."""
        self.remove(zeros(self._weights), optimizer)

    def hold(self) -> None:
        """Zero the gradients of removed weights."""
        for name, kept in self.kept.items():
            grad = self._weights[name].grad
            if grad is not None:
                local(grad).mul_(kept)

    def check(self, saved: Mapping[str, Tensor] | None = None) -> None:
        """Raise RuntimeError if a removed weight is not zero in the model, or in the tensors about to be saved."""
        for name, kept in self.kept.items():
            found = local((saved or self._weights)[name].detach())[~kept]
            if bool(found.any() or found.signbit().any()):  # -0.0 equals 0, but its bits differ: a larger file
                raise RuntimeError(
                    f"{name}: a removed weight has grown back although the mask is kept; this is a fault of the program"
                )


def zeros(weights: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """The zeros of each weight, bool, in this process's shards."""
    return {name: local(weight.detach()) == 0 for name, weight in weights.items()}


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
