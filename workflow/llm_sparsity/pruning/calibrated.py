"""Calibrated pruning and repair: what happens to a weight depends on the inputs of its matrix on a calibration text.

A block is loaded; the calibration sequences run through it while the inputs of its matrices are observed; the matrices
are pruned; the sequences run through the pruned block, so that the next block sees the inputs it will get in the pruned
model; the block is dropped (Frantar & Alistarh 2023, arXiv:2301.00774). A step that repairs a pruned model does the
same, and changes the pruned weights instead of the dense ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.pruning import owl
from llm_sparsity.pruning.calibration import Blocks, Observation, batches
from llm_sparsity.pruning.methods import wanda
from llm_sparsity.pruning.pruner import PrunedTensor, Pruner, tensor_row
from llm_sparsity.pruning.scores import ScoredTensors
from llm_sparsity.storage.container import Reader
from llm_sparsity.study.sparsity import Sparsity


class CalibratedPruner(Pruner):
    """Sets weights to zero by a method that observes the inputs of matrices; it may change the weights that it keeps.

    Args:
        tensors: the tensors of the scope, all of them matrices of transformer blocks.
        sparsities: fractions and patterns.
        text: the calibration text.
        calibration: samples, sequence_length and seed, see `calibration.batches`.
        min_density: the fraction of every tensor that is kept.
        layerwise: "uniform" or "owl", see `owl`.
        bounds: of the batches: tokens and least, see `calibration.batches`.

    Raises:
        UserError: the text is too short, or a sequence is longer than the model allows.
    """

    def __init__(
        self,
        tensors: ScoredTensors,
        sparsities: Sequence[Sparsity],
        *,
        text: TaskFolder,
        calibration: Mapping[str, int],
        min_density: float = 0.0,
        layerwise: str = "uniform",
        bounds: Mapping[str, int] | None = None,
    ) -> None:
        self._tensors, self._sparsities, self._min_density = tensors, sparsities, min_density
        self._layerwise = layerwise
        drawn = batches(tensors.model, text, **calibration, **(bounds or {}))
        self._blocks = Blocks(tensors.model, tensors.reader, drawn)
        self._matrices: dict[str, dict[str, Module]] = {
            block: {name: module for name, module in self._blocks.matrices(block).items() if name in tensors.roles}
            for block in self._blocks.names
        }
        while not self._matrices[block := next(reversed(self._matrices))]:  # blocks after the scope need not run
            del self._matrices[block]

    def results(self, names: Sequence[str]) -> Iterator[PrunedTensor]:
        """Yield every tensor at every sparsity: first the tensors outside the scope, then block after block.

        Raises:
            UserError: OWL would remove too much of a layer, a matrix has no inputs, or ones that are not finite, or the
                method or the step keeps too many weights of it.
        """
        layers = self._layer_sparsities() if self._layerwise == "owl" else {}
        for sparsity in self._sparsities:
            for name in names:
                if name not in self._tensors.roles:
                    yield PrunedTensor(sparsity, name, self._tensors.reader.tensor(name), None)
            self._blocks.restart()
            for block in self._matrices:
                with self._blocks.loaded(block):
                    results = self._prune_block(block, sparsity, layers.get((sparsity, block), sparsity))
                while results:  # free each tensor before the next block is read
                    yield results.pop(0)

    def _prune_block(self, block: str, sparsity: Sparsity, layer_sparsity: Sparsity) -> list[PrunedTensor]:
        """Prune the matrices of a loaded block, and run the sequences through the pruned block.

        Args:
            block: its name.
            sparsity: of the model, for the results.
            layer_sparsity: of this block.
        """
        if not self._matrices[block]:
            self._blocks.advance()
            return []
        dense_output, observations = self._blocks.observed(self._matrices[block], self._observe)
        results: list[PrunedTensor] = []
        while observations:  # free each one after its matrices are pruned
            results += self._prune_together(block, observations.pop(0), sparsity, layer_sparsity)
        error = {"block_error": relative_error(self._blocks.advance(), dense_output)}
        return [result._replace(row=(result.row or {}) | error) for result in results]

    def _prune_together(
        self, block: str, observation: Observation, sparsity: Sparsity, layer_sparsity: Sparsity
    ) -> Iterator[PrunedTensor]:
        """Prune the matrices that have the same inputs."""
        prepared = self._prepare(observation.total)
        for name in observation.names:
            module = self._matrices[block][name]
            dense = self._oriented(name, module)
            weight = self._prune_matrix(name, module, prepared, layer_sparsity)
            size, zeros = weight.numel(), int((weight == 0).sum())
            error = relative_error(
                observation.inputs @ self._oriented(name, module).t(), observation.inputs @ dense.t()
            )
            row = tensor_row(weight, size, layer_sparsity.count(size), zeros) | {"error": error}
            yield PrunedTensor(sparsity, name, weight, row)

    def _prune_matrix(self, name: str, module: Any, prepared: Any, sparsity: Sparsity) -> Tensor:
        """Prune a matrix of the loaded block; the values to store, which the block then computes with."""
        pruned = self._changed(name, self._oriented(name, module), prepared, sparsity)
        if self._tensors.model.structure.is_transposed(name):
            pruned = pruned.t()
        stored: Tensor = pruned.contiguous().to(self._tensors.reader.dtype(name)) + 0.0  # -0.0 becomes 0.0
        module.weight = Parameter(stored.float(), requires_grad=False)
        return stored.cpu()

    def _observe(self, inputs: Tensor) -> Tensor:
        """The statistic of inputs (tokens, in) of a matrix that is summed over all batches."""
        seen: Tensor = self._tensors.method.observe(inputs)
        return seen

    def _prepare(self, total: Tensor) -> Any:
        """`prepared` of `_changed`, from the sum; computed once for all matrices with the same inputs."""
        return self._tensors.method.prepare(total)

    def _changed(self, name: str, dense: Tensor, prepared: Any, sparsity: Sparsity) -> Tensor:
        """The new weight of a matrix, (out, in), float32; `dense` has the same shape."""
        pruned: Tensor = self._tensors.method.prune(dense, prepared, sparsity)
        self._check_zeros(name, pruned, sparsity.count(pruned.numel()), "prune")
        return pruned

    def _check_zeros(self, name: str, weight: Tensor, expected: int, function: str) -> None:
        """Refuse the new weight of a matrix if a function of the method, or of the step, has kept too many weights."""
        if (found := int((weight == 0).sum())) < expected:
            word = self._tensors.method.__name__.rpartition(".")[2]
            raise UserError(
                f"method {word}: sets {found} weights of {name} to zero, expected {expected}; correct its `{function}`"
            )

    def _oriented(self, name: str, module: Any) -> Tensor:
        """The weight of a matrix as (out, in)."""
        weight: Tensor = module.weight.data
        return weight.t() if self._tensors.model.structure.is_transposed(name) else weight

    def _layer_sparsities(self) -> dict[tuple[Sparsity, str], Sparsity]:
        """(sparsity, block) -> the sparsity of this block by OWL, from one pass through the dense model."""
        shares, sizes = {}, {}
        self._blocks.restart()
        for block, modules in self._matrices.items():
            with self._blocks.loaded(block):
                if modules:
                    _, observations = self._blocks.observed(modules, wanda.observe)
                    squares = {name: seen.total for seen in observations for name in seen.names}
                    matrices = [(self._oriented(name, modules[name]), squares[name]) for name in modules]
                    shares[block] = owl.outlier_share(matrices)
                    sizes[block] = sum(weight.numel() for weight, _ in matrices)
                self._blocks.advance()
        found = {}
        for sparsity in self._sparsities:
            for block, fraction in owl.layer_fractions(shares, sizes, sparsity).items():
                if not 0 <= fraction < 1 or fraction > 1 - self._min_density:
                    raise UserError(
                        f"sparsity {sparsity}: layerwise owl would remove {fraction:.6f} of {block} "
                        f"(min_density: {self._min_density}); choose a sparsity nearer to 0.5, or layerwise uniform"
                    )
                found[sparsity, block] = Sparsity(f"{fraction:.6f}")
        return found


class RepairPruner(CalibratedPruner):
    """Exchanges weights of a pruned model by a step that observes the inputs of matrices.

    Args:
        tensors: of the dense model.
        before: the weights of the pruned model.
        sparsity: of the pruned model.
        sampling: text and calibration, see `CalibratedPruner`.
    """

    def __init__(self, tensors: ScoredTensors, before: Reader, sparsity: Sparsity, **sampling: Any) -> None:
        super().__init__(tensors, [sparsity], **sampling)
        self._before = before

    def _changed(self, name: str, dense: Tensor, prepared: Any, sparsity: Sparsity) -> Tensor:
        pruned = self._before.tensor(name).to(dense.device, torch.float32)
        if self._tensors.model.structure.is_transposed(name):
            pruned = pruned.t()
        repaired: Tensor = self._tensors.method.repair(dense, pruned, prepared, sparsity)
        self._check_zeros(name, repaired, int((pruned == 0).sum()), "repair")
        return repaired


step = RepairPruner


def relative_error(pruned: Tensor, dense: Tensor) -> float:
    """The norm of the difference between two outputs, divided by the norm of the dense one; 0 if both are zero."""
    difference = (pruned - dense).norm()
    return float(difference / dense.norm()) if difference else 0.0
