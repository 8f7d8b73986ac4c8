"""Repair by training: sub-blocks of a pruned model learn to give the dense model's outputs on the calibration text.

Two models run side by side, one block at a time: the dense one gives the outputs to reach, the pruned one the inputs,
which have passed through the blocks that are repaired already. All sub-blocks of a block but the last learn the output
of their own last matrix. The last one learns the output of the block, and so makes up for what those before it lost.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.pruning.calibrated import CalibratedPruner
from llm_sparsity.pruning.calibration import Blocks, hidden
from llm_sparsity.pruning.pruner import PrunedTensor
from llm_sparsity.pruning.scores import ScoredTensors
from llm_sparsity.storage.container import Reader
from llm_sparsity.study.sparsity import Sparsity

TOKENS = 512  # of a batch: smaller ones than for observing
BATCHES = 8  # at least, if there are that many sequences


class ReconstructionPruner(CalibratedPruner):
    """Trains the weights that a pruned model keeps, one sub-block at a time.

    Args:
        tensors: of the dense model; their method is the step.
        before: the weights of the pruned model.
        sparsity: of the pruned model.
        text, calibration: see `CalibratedPruner`.

    Raises:
        UserError: too few sequences to hold one out.
    """

    def __init__(self, tensors: ScoredTensors, before: Reader, sparsity: Sparsity, **sampling: Any) -> None:
        if sampling["calibration"]["samples"] < 2:
            raise UserError("calibration.samples: found 1, but reconstruct holds a sequence out; give at least 2")
        super().__init__(tensors, [sparsity], bounds={"tokens": TOKENS, "least": BATCHES}, **sampling)
        self._before, self._seed = before, int(sampling["calibration"]["seed"])
        self._dense = Blocks(tensors.model, tensors.reader, self._blocks.batches)
        self._trained: dict[str, Tensor] = {}

    def _observe(self, inputs: Tensor) -> Tensor:
        """Sums of squares, which show whether the inputs are finite; training reads the inputs themselves."""
        return inputs.square().sum(dim=0)

    def _prepare(self, total: Tensor) -> None:
        return None

    def _changed(self, name: str, dense: Tensor, prepared: None, sparsity: Sparsity) -> Tensor:
        return self._trained.pop(name)

    def _prune_block(self, block: str, sparsity: Sparsity, layer_sparsity: Sparsity) -> list[PrunedTensor]:
        """Train the sub-blocks of a loaded block; then as for any calibrated method."""
        self._blocks.observed(self._matrices[block], self._observe)  # a matrix that does not run cannot be trained
        parts = self._sub_blocks(block)
        with self._dense.loaded(block):
            modules = self._dense.matrices(block)
            wanted = [self._dense.outputs(modules[self._last(names)]) for names in list(parts.values())[:-1]]
            self._dense.advance()
            wanted += [self._dense.latest()] * bool(parts)
        matrices = self._matrices[block]
        dense = {name: module.weight for name, module in matrices.items()}
        for (part, names), targets in zip(parts.items(), wanted, strict=True):
            end = None if targets is wanted[-1] else matrices[self._last(names)]
            self._train(part, {name: matrices[name] for name in names}, targets, end)
        for name, module in matrices.items():
            self._trained[name] = self._oriented(name, module)
            module.weight = dense[name]
        return super()._prune_block(block, sparsity, layer_sparsity)

    def _train(self, part: str, matrices: dict[str, Any], wanted: list[Tensor], end: Module | None) -> None:
        """Put the pruned weights of a sub-block into the loaded block, and train them.

        Args:
            part: the name of the sub-block.
            matrices: name -> module.
            wanted: outputs of the dense model, of each batch.
            end: the module that gives them; None if the block does.
        """
        for name, module in matrices.items():
            module.weight = Parameter(self._before.tensor(name).to(module.weight.device, torch.float32, copy=True))
        weights = [module.weight for module in matrices.values()]
        start, best = self._tensors.method.train(
            weights, lambda number: hidden(self._blocks.output(number, end)), wanted, self._seed
        )
        for weight in weights:
            weight.requires_grad_(False)
        kept = "" if best < start else "; training did not lower it, so the weights stay"
        print(f"{part}: relative squared error of held-out sequences {start:.4g} -> {best:.4g}{kept}", flush=True)

    def _sub_blocks(self, block: str) -> dict[str, list[str]]:
        """Attention or feed-forward block -> its matrices in the scope, in the order in which they run."""
        parts: dict[str, list[str]] = {}
        for name in self._matrices[block]:
            matrix = self._tensors.model.structure.matrix(name)
            parts.setdefault(matrix.block if matrix else "", []).append(name)
        return parts

    def _last(self, names: list[str]) -> str:
        """The matrix of a sub-block that gives its output: its inputs are the heads or neurons."""
        matrices = {name: self._tensors.model.structure.matrix(name) for name in names}
        return next((name for name, matrix in matrices.items() if matrix and matrix.ends_block), names[-1])


step = ReconstructionPruner
