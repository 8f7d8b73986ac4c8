"""Gradual pruning: weights are removed during training, along a cubic curve (Zhu and Gupta 2017, arXiv:1710.01878).

Training starts from the dense model, fine-tuned on the same task with the same seed. It ends when each tensor has as
many removed weights as in the variant, and so has each expert: those of the smallest magnitude at that time, or of the
smallest movement (Sanh et al. 2020, arXiv:2005.07683), the sum over all steps so far of -weight x gradient. Movement is
large where training moves a weight away from zero. Removed weights stay removed.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.pruning.selection import lowest

UPDATES = 50  # of the mask, over a schedule; a finer curve costs time and does not change the outcome
MOVEMENT = "movement"


class GradualSchedule:
    """The weights that are removed at each step.

    Args:
        weights: name -> parameter of the scope, float, not sharded.
        counts: name -> number of weights to remove in each of the equal parts of a tensor, along its first dimension.
        steps: optimizer steps of the whole run.
        begin, end: fractions of all steps after which the first and the last weights are removed.
        scores: "magnitude" or "movement".

    Raises:
        UserError: weights are sharded over processes.
    """

    def __init__(
        self,
        weights: Mapping[str, Parameter],
        counts: Mapping[str, Sequence[int]],
        steps: int,
        *,
        begin: float,
        end: float,
        scores: str,
    ) -> None:
        if any(isinstance(weight, DTensor) for weight in weights.values()):
            raise UserError(
                "schedule: ranks whole tensors, but weights are sharded over processes (FSDP); use one GPU per run"
            )
        self._weights, self._counts = weights, counts
        self._first, self._last = math.floor(begin * steps), math.ceil(end * steps)
        self._every = max(1, (self._last - self._first) // UPDATES)
        self._movement = {name: torch.zeros_like(weight) for name, weight in weights.items() if scores == MOVEMENT}

    def state(self) -> dict[str, Tensor]:
        """Movement so far, "{name} movement" -> float, of the weight's shape. The weights tell everything else."""
        return {f"{name} {MOVEMENT}": value for name, value in self._movement.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; other entries are ignored."""
        for name, value in self._movement.items():
            value.copy_(state[f"{name} {MOVEMENT}"])

    @torch.no_grad()
    def observe(self) -> None:
        """Add the movement of a step, after its backward pass and before the optimizer's step."""
        for name, value in self._movement.items():
            if (grad := self._weights[name].grad) is not None:
                value.addcmul_(self._weights[name], grad, value=-1)

    @torch.no_grad()
    def removed(self, step: int) -> dict[str, Tensor] | None:
        """The weights that are removed from a step (from 1) on, name -> bool; None if the mask does not change."""
        if not self._first < step <= self._last or (self._last - step) % self._every:
            return None
        left = 1 - (step - self._first) / (self._last - self._first)
        found = {}
        for name, weight in self._weights.items():
            gone = weight == 0
            scores = self._movement[name].masked_fill(gone, -math.inf) if self._movement else weight.abs()
            counts = [round((1 - left**3) * count) for count in self._counts[name]]
            parts = zip(scores.reshape(len(counts), -1), gone.reshape(len(counts), -1), counts, strict=True)
            chosen = [lowest(part, max(count, int(zeros.sum()))) for part, zeros, count in parts]
            found[name] = torch.stack(chosen).view_as(scores)
        return found
