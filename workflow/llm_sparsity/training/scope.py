"""The scope that a variant was pruned in, while it trains: its parameters and its measured sparsity."""

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module, Parameter

from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.training.lora import plain_name
from llm_sparsity.training.mask import local


class PrunedScope:
    """The tensors that a variant was pruned in; a dense model has none.

    Args:
        model: the variant.
        accelerator: sums counts over the processes where weights are sharded.
    """

    def __init__(self, model: ModelFolder, accelerator: Accelerator) -> None:
        self._model, self._accelerator = model, accelerator

    def parameters(self, net: Module) -> dict[str, Parameter]:
        """The parameters of the scope, by the names that they have without low-rank updates."""
        if not self._model.pruned:
            return {}
        named = ((plain_name(name), weight) for name, weight in net.named_parameters())
        return {name: weight for name, weight in named if self._contains(name)}

    def facts(self, weights: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """The manifest's entry `pruned`, measured anew on a model's tensors; None for a dense model."""
        pruned = self._model.pruned
        if not pruned:
            return None
        scoped = [weight for name, weight in weights.items() if self._contains(name)]
        left = sum(local(weight).count_nonzero() for weight in scoped)
        if any(isinstance(weight, DTensor) for weight in scoped):
            left = self._accelerator.reduce(left, "sum")
        gone = pruned["size"] - int(left)  # zero, or cut out with a head or neuron
        return pruned | {"measured_sparsity": gone / pruned["size"]}

    def sparsity(self, weights: Mapping[str, Tensor]) -> float:
        """The fraction of the scope's weights that are zero or gone; 0 for a dense model."""
        facts = self.facts(weights)
        return float(facts["measured_sparsity"]) if facts else 0.0

    def _contains(self, name: str) -> bool:
        assert self._model.pruned
        return self._model.in_scope(name, self._model.pruned["scope"])
