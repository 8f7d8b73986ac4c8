"""Structured pruning: whole attention heads and feed-forward neurons are removed, and tensors become smaller."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.loading import load_skeleton
from llm_sparsity.models.narrowing import check_runs, differ_by, narrowed_config
from llm_sparsity.models.roles import PrunableAxis
from llm_sparsity.pruning.pruner import PrunedTensor, Pruner, tensor_row
from llm_sparsity.pruning.scores import ScoredTensors
from llm_sparsity.pruning.selection import removable
from llm_sparsity.study.sparsity import Sparsity


class StructuredPruner(Pruner):
    """Removes the same fraction of the heads and of the neurons of every layer in the scope.

    Args:
        tensors: the tensors of the scope.
        sparsities: fractions, no patterns.
        min_density: the fraction of the heads and of the neurons of every layer that is kept.

    Raises:
        UserError: a sparsity would remove all heads or all neurons of a layer, or transformers does not run the model
            without some of them.
    """

    def __init__(self, tensors: ScoredTensors, sparsities: Sequence[Sparsity], min_density: float = 0.0) -> None:
        self._tensors, self._sparsities = tensors, sparsities
        names = tensors.reader.names
        self._axes = {name: axis for name in names if (axis := tensors.model.structure.axis(name))}
        self._check_heads()
        self._scores = self._block_scores()
        self._kept = {
            (sparsity, block): _kept(block, scores, sparsity, min_density)
            for sparsity in sparsities
            for block, scores in self._scores.items()
        }
        largest = max(sparsities)
        if not largest.is_dense:
            config = self._known(self.config(largest))
            check_runs(load_skeleton(tensors.model, config), tensors.model.structure, self._shapes(largest))

    def config(self, sparsity: Sparsity) -> dict[str, Any]:
        """The configuration of the pruned model, as far as the configuration class can express it."""
        config = self._tensors.model.config
        blocks = {axis.block for axis in self._axes.values()}
        for stack, part in sorted({(role.stack, role.part) for role in self._tensors.roles.values()}):
            alike = [block for block in blocks if block.startswith(f"{stack}.") and part in block.split(".")]
            if all(block in self._scores for block in alike):  # otherwise some layers keep their width
                share = Fraction(len(self._kept[sparsity, alike[0]]), len(self._scores[alike[0]]))
                narrower = narrowed_config(config, stack, part, share)
                both = self._known(config), self._known(narrower)
                if narrower != config and differ_by(*both, self._shapes(sparsity, alike)):
                    config = narrower
        return config

    def _known(self, config: dict[str, Any]) -> Any:
        """A configuration as an object of transformers, which writes infinities in a way of its own."""
        known = type(self._tensors.model.model_config)
        return known.from_dict(known._decode_special_floats(config))

    def _shapes(self, sparsity: Sparsity, blocks: Collection[str] | None = None) -> dict[str, list[int]]:
        """Name in the model without a head -> shape after pruning, of tensors of all blocks in the scope, or some."""
        structure, found = self._tensors.model.structure, {}
        for name, axis in self._axes.items():
            if axis.block in (self._scores if blocks is None else blocks):
                shape = list(self._tensors.reader.shape(name))
                kept, units = len(self._kept[sparsity, axis.block]), len(self._scores[axis.block])
                shape[axis.dim] = shape[axis.dim] // units * kept
                found[structure.body_name(name)] = shape
        return found

    def results(self, names: Sequence[str]) -> Iterator[PrunedTensor]:
        """Yield every tensor at every sparsity, in the order of the names; biases shrink, but have no row."""
        for name, sparsity in itertools.product(names, self._sparsities):
            weight, row = self._tensors.reader.tensor(name), None
            axis = self._axes.get(name)
            if axis and axis.block in self._scores:
                size = weight.numel()
                weight = _narrowed(weight, axis, len(self._scores[axis.block]), self._kept[sparsity, axis.block])
                removed = size - weight.numel()
                if name in self._tensors.roles:
                    zeros = removed + int(np.count_nonzero((weight == 0).numpy()))
                    row = tensor_row(weight, size, removed, zeros) | {"threshold": ""}
            yield PrunedTensor(sparsity, name, weight, row)

    def _check_heads(self) -> None:
        """Refuse layers that have lost heads already: the configuration does not say how many are left."""
        structure, reader = self._tensors.model.structure, self._tensors.reader
        names = [name for name, role in self._tensors.roles.items() if role.part == "attention"]
        whole = dict(load_skeleton(self._tensors.model).named_parameters()) if names else {}
        for name in names:
            parameter, dim = whole.get(structure.body_name(name)), self._axes[name].dim
            if parameter is not None and reader.shape(name)[dim] != parameter.shape[dim]:
                raise UserError(
                    f"method structured: {name} has lost heads already, and how many does not stand in config.json; "
                    "prune the model that it was made from, or scope mlp"
                )

    def _block_scores(self) -> dict[str, Tensor]:
        """Attention or feed-forward block -> the score of each of its heads or neurons, float64."""
        tensors, groups = self._tensors, self._tensors.model.structure.groups
        scores: dict[str, Tensor] = {}
        for name, role in tensors.roles.items():
            axis = self._axes[name]
            weight = tensors.reader.tensor(name).movedim(axis.dim, 0)
            units = groups[role.stack] if role.part == "attention" else axis.sizes(len(weight))[0]
            score = scores.get(axis.block, torch.zeros(units, dtype=torch.float64))
            for part in weight.split(axis.sizes(len(weight))):
                score = score + tensors.method.score(part.reshape(units, -1))
            scores[axis.block] = score
        return scores


def _kept(block: str, scores: Tensor, sparsity: Sparsity, min_density: float) -> Tensor:
    """The positions of the heads or neurons of a block that are kept, in order; among equal scores the last ones."""
    units = len(scores)
    count = min(sparsity.count(units), removable(units, min_density))
    if count == units:
        word = "heads" if "attention" in block else "neurons"
        bound = (1 - Decimal("0.5") / units).quantize(Decimal("0.0001"), ROUND_FLOOR)  # above it, the count rounds up
        raise UserError(
            f"sparsity {sparsity}: this would remove all {units} {word} of {block}; choose one below {bound}"
        )
    return scores.argsort(stable=True)[count:].sort().values


def _narrowed(weight: Tensor, axis: PrunableAxis, units: int, kept: Tensor) -> Tensor:
    """Keep the weights of some heads or neurons.

    Args:
        weight: a weight or bias.
        axis: its axis of heads or neurons.
        units: number of heads or neurons along the axis.
        kept: their positions, (kept,).
    """
    length = weight.shape[axis.dim]
    parts = torch.arange(length).split(axis.sizes(length))
    order = torch.cat([part.view(units, -1)[kept].flatten() for part in parts])
    return weight.index_select(axis.dim, order) + 0.0  # -0.0 becomes 0.0
