"""What a recipe adds to fine-tuning, so that a sparse model recovers what pruning took: a schedule, a teacher.

Both need the dense model, fine-tuned on the same task with the same seed: training starts from its weights.

A schedule removes weights little by little, along the cubic curve of Zhu and Gupta (2017, arXiv:1710.01878), until each
tensor lacks as many as in the variant: those with the smallest magnitude at that time, or with the smallest movement
(Sanh et al. 2020, arXiv:2005.07683): the sum over all steps so far of -weight x gradient, which is large where training
moves a weight away from zero. What is removed stays removed.

A teacher is that dense model itself. Besides the labels the sparse one learns the teacher's probabilities (Hinton et
al. 2015, arXiv:1503.02531) and the output of each of its layers (Jiao et al. 2020, arXiv:1909.10351), measured as by
Kurtic et al. (2023, arXiv:2310.06927): squared distance, relative to the square of the teacher's output. Neither model
has dropout then.
"""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Dropout, Module, Parameter
from torch.nn.functional import kl_div, log_softmax, softmax

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.container import WEIGHTS
from llm_sparsity.storage.files import sha256
from llm_sparsity.training.objective import predictions, summed_loss

UPDATES = 50  # of the mask, over a schedule; a finer curve costs time and changes nothing
MOVEMENT = "movement"


class Schedule:
    """Which weights are removed at each step.

    Args:
        weights: name -> parameter of the scope, float, whole.
        counts: name -> how many of its weights the variant lacks.
        steps: optimizer steps of the whole run.
        begin, end: the parts of all steps after which the first and the last weights go.
        scores: "magnitude" or "movement".

    Raises:
        UserError: weights that are spread over processes.
    """

    def __init__(
        self,
        weights: Mapping[str, Parameter],
        counts: Mapping[str, int],
        steps: int,
        *,
        begin: float,
        end: float,
        scores: str,
    ) -> None:
        if any(isinstance(weight, DTensor) for weight in weights.values()):
            raise UserError(
                "schedule: ranks whole tensors, but weights are spread over processes (FSDP); use a GPU each"
            )
        self._weights, self._counts = weights, counts
        self._first, self._last = math.floor(begin * steps), math.ceil(end * steps)
        self._every = max(1, (self._last - self._first) // UPDATES)
        self._movement = {name: torch.zeros_like(weight) for name, weight in weights.items() if scores == MOVEMENT}

    def state(self) -> dict[str, Tensor]:
        """What cannot be told from the weights: movement so far, "{name} movement" -> float, the weight's shape."""
        return {f"{name} {MOVEMENT}": value for name, value in self._movement.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; other entries are not looked at."""
        for name, value in self._movement.items():
            value.copy_(state[f"{name} {MOVEMENT}"])

    @torch.no_grad()
    def observe(self) -> None:
        """Add a step's movement, from its gradients, before the optimizer uses them."""
        for name, value in self._movement.items():
            if (grad := self._weights[name].grad) is not None:
                value.addcmul_(self._weights[name], grad, value=-1)

    @torch.no_grad()
    def removed(self, step: int) -> dict[str, Tensor] | None:
        """Where weights are removed from a step (from 1) on, name -> bool; None while that stays as it is."""
        if not self._first < step <= self._last or (self._last - step) % self._every:
            return None
        left = 1 - (step - self._first) / (self._last - self._first)
        found = {}
        for name, weight in self._weights.items():
            scores = self._movement.get(name, weight.abs()).masked_fill(weight == 0, -math.inf)
            count = round((1 - left**3) * self._counts[name])
            found[name] = _lowest(scores, max(count, int((weight == 0).sum())))
        return found


def _lowest(scores: Tensor, count: int) -> Tensor:
    """Where the `count` lowest scores are, bool; of equal ones the earlier."""
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    flat = scores.flatten()
    threshold = flat.kthvalue(count).values
    lowest = flat < threshold
    equal = (flat == threshold).nonzero().flatten()
    lowest[equal[: count - int(lowest.sum())]] = True
    return lowest.view_as(scores)


class Teacher:
    """A dense model that a sparse one of the same shape learns from.

    Args:
        net: the dense model, fine-tuned; it is frozen, and its dropout is off.
        labels, logits, hidden: weights of the three losses.
        temperature: divides both models' logits where they are compared.
    """

    def __init__(self, net: Module, *, labels: float, logits: float, hidden: float, temperature: float) -> None:
        self._net = net.eval().requires_grad_(False)
        self._labels, self._logits, self._hidden, self._temperature = labels, logits, hidden, temperature

    def loss(self, net: Module, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
        """The loss of a batch, summed over its sequences.

        Args:
            net: the model that learns.
            inputs: input_ids and, where some are padding, attention_mask, (batch, length), int64; options.
            labels: (batch,), or of a language model the tokens, (batch, length), int64.
        """
        found = net(**inputs, output_hidden_states=self._hidden > 0)
        with torch.no_grad():
            wanted = self._net(**inputs, output_hidden_states=self._hidden > 0)
        loss = self._labels * summed_loss(found.logits, labels)
        if self._logits:
            ours, theirs = (predictions(output.logits, labels) / self._temperature for output in (found, wanted))
            divergence = kl_div(log_softmax(ours, -1), softmax(theirs, -1), reduction="sum") * len(labels) / len(ours)
            loss = loss + self._logits * self._temperature**2 * divergence  # gradients as large as those of the labels
        if self._hidden:
            pairs = list(zip(_layers(found), _layers(wanted), strict=True))
            seen = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))[..., None]
            loss = loss + self._hidden * sum(_distance(*pair, seen) for pair in pairs) / len(pairs)
        return loss


def _layers(output: Any) -> list[Tensor]:
    """The output of each layer, (batch, length, width); of an encoder-decoder, those of both stacks."""
    stacks = [output.get(key) for key in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")]
    return [layer for stack in stacks if stack for layer in stack[1:]]  # the first is what the embeddings say


def _distance(ours: Tensor, theirs: Tensor, seen: Tensor) -> Tensor:
    """Squared distance relative to the teacher's square, of each example's tokens, summed over examples."""
    ours, theirs = ours.float() * seen, theirs.float() * seen
    return ((ours - theirs).square().sum((1, 2)) / theirs.square().sum((1, 2))).sum()


def without_dropout(net: Module) -> None:
    """Turn a model's dropout off, in place: its layers are to match a teacher's, which do not vary."""
    for module in net.modules():
        for key, value in vars(module).items():
            if isinstance(value, float) and ("drop" in key or isinstance(module, Dropout)):
                setattr(module, key, 0.0)


def dense_weights(checkpoints: Path) -> Path:
    """The folder of a dense run's last weights, from the list of its checkpoints.

    Raises:
        UserError: they are gone from the cache, or are others than the list says.
    """
    with checkpoints.open(newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    folder = Path(last["path"])
    found = sha256(folder / WEIGHTS) if (folder / WEIGHTS).exists() else None
    if found != last["sha256"]:
        raise UserError(
            f"{folder}: {'other weights than' if found else 'no weights, but they are'} listed in {checkpoints}; this "
            "recipe needs them: delete that list, and the next run fine-tunes the dense model again"
        )
    return folder
