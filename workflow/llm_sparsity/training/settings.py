"""The settings of a fine-tuning run: everything but model, task and code that its result depends on."""

import hashlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

from llm_sparsity.jobs.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Settings of `finetune`, as the config's `finetune:` and its recipe give them.

    start: "pretrained" (the variant is of the model as it came) or "finetuned" (of the dense model, fine-tuned).
    mask: "kept" (removed weights stay zero) or "released" (all weights are trained).
    schedule: begin, end and scores of `GradualSchedule`; None: all weights are removed before training.
    distill: arguments of `Teacher`; None: the loss is that of the labels alone.
    lora: rank and alpha of low-rank updates to the matrices of the layers; None: the weights themselves are trained.
    evaluation: sequence_length (tokens) and max_tokens of a language model's perplexity; None for classifiers.
    seed: of the new head, the order of sentences, LoRA's first factors and dropout.
    epochs: passes over the training split; 0: the model is evaluated as it is.
    learning_rate: the maximum of AdamW's learning rate, which falls linearly to 0.
    batch_size: sequences per optimizer step, over all processes.
    micro_batch_size: sequences in memory at once, per process.
    max_length: tokens per sentence or pair, which are truncated; or per training window of a language model.
    weight_decay: decoupled, applied to matrices only.
    warmup_ratio: fraction of all steps over which the learning rate rises.
    max_grad_norm: the norm that gradients are clipped to.
    freeze_embeddings: do not train embeddings.
    gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
    """

    start: str = "pretrained"
    mask: str
    schedule: Mapping[str, Any] | None = None
    distill: Mapping[str, Any] | None = None
    lora: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    seed: int
    epochs: int
    learning_rate: float
    batch_size: int
    micro_batch_size: int
    max_length: int
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    freeze_embeddings: bool
    gradient_checkpointing: bool

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Settings of a JSON object.

        Raises:
            UserError: an unknown or a missing key.
        """
        known = {field.name: field.default is MISSING for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise UserError(f"settings: unknown key {unknown[0]!r}; known: {', '.join(known)}")
        if missing := [key for key, required in known.items() if required and key not in values]:
            raise UserError(f"settings: no {missing[0]!r}; add it")
        return cls(**values)

    @property
    def needs_dense(self) -> bool:
        """Whether training reads the fine-tuned dense model."""
        return bool(self.schedule or self.distill)

    def derived_seed(self, *parts: int | str) -> int:
        """A seed for one purpose; those of neighbouring steps or seeds are unrelated."""
        return int.from_bytes(hashlib.sha256(repr((self.seed, *parts)).encode()).digest()[:7], "little")
