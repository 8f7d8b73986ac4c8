"""Distillation from the dense model, fine-tuned on the same task with the same seed.

Besides the labels, the sparse model learns the teacher's probabilities (Hinton et al. 2015, arXiv:1503.02531) and the
output of each of its layers (Jiao et al. 2020, arXiv:1909.10351), with the distance of Kurtic et al. (2023,
arXiv:2310.06927): squared distance relative to the square of the teacher's output. Neither model uses dropout. With
`unlabelled: true`, both are also learned on the sentences without labels that the task names.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout, Module

from llm_sparsity.training.objective import divergence, summed_loss


class Teacher:
    """A dense model that a sparse one of the same shape learns from.

    Args:
        net: the fine-tuned dense model; it is frozen, and its dropout is off.
        labels, logits, hidden: weights of the three losses.
        temperature: divides the logits of both models before they are compared.
    """

    def __init__(self, net: Module, *, labels: float, logits: float, hidden: float, temperature: float) -> None:
        self._net = net.eval().requires_grad_(False)
        self._labels, self._logits, self._hidden, self._temperature = labels, logits, hidden, temperature

    def loss(self, net: Module, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
        """The loss of a batch, summed over its sequences.

        Args:
            net: the student.
            inputs: input_ids and, if sequences are padded, attention_mask, (batch, length), int64; options.
            labels: (batch,), int64, or float32 of a regression; or the tokens of windows, (batch, length), int64.
        """
        student = net(**inputs, output_hidden_states=self._hidden > 0)
        with torch.no_grad():
            teacher = self._net(**inputs, output_hidden_states=self._hidden > 0)
        loss = self._labels * summed_loss(student.logits, labels)
        if self._logits:
            away = divergence(student.logits, teacher.logits, labels, self._temperature)
            loss = loss + self._logits * self._temperature**2 * away  # gradients as large as those of the labels
        if self._hidden:
            pairs = list(zip(_layer_outputs(student), _layer_outputs(teacher), strict=True))
            present = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))[..., None]
            loss = loss + self._hidden * sum(_distance(*pair, present) for pair in pairs) / len(pairs)
        return loss


def _layer_outputs(output: Any) -> list[Tensor]:
    """The output of each layer, (batch, length, width); of an encoder-decoder, those of both stacks."""
    stacks = [output.get(key) for key in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")]
    return [layer for stack in stacks if stack for layer in stack[1:]]  # index 0 is the embedding output


def _distance(ours: Tensor, theirs: Tensor, present: Tensor) -> Tensor:
    """Squared distance over the tokens of a sequence, relative to the teacher's square, summed over sequences."""
    ours, theirs = ours.float() * present, theirs.float() * present
    return ((ours - theirs).square().sum((1, 2)) / theirs.square().sum((1, 2))).sum()


def disable_dropout(net: Module) -> None:
    """Set every dropout probability of a model to 0, in place: the teacher is deterministic.

    Some layers read theirs from the configuration. They get one of their own; that of the model, which is saved, stays.
    """
    quiet: dict[int, Any] = {}

    def silence(owner: Any) -> None:
        for key, value in vars(owner).items():
            if isinstance(value, float) and ("drop" in key or isinstance(owner, Dropout)):
                setattr(owner, key, 0.0)

    for module in net.modules():
        silence(module)
        config = getattr(module, "config", None)
        if module is not net and config is not None:
            if id(config) not in quiet:
                quiet[id(config)] = copy.deepcopy(config)
                silence(quiet[id(config)])
            module.config = quiet[id(config)]
