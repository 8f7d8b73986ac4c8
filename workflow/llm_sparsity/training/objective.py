"""Training objectives and their metrics: the label of a sentence, or each next token of a window.

A classifier is scored by accuracy, F1 and their mean. A language model is scored by perplexity, with the protocol of
`evaluate`: windows do not overlap, and each is predicted from its own tokens only, in float32.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy

from llm_sparsity.data.tokens import Tokens
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_causal, load_classifier


class Labels:
    """Predict the label of a sentence or pair."""

    options: ClassVar[dict[str, Any]] = {}  # of the model's forward pass

    def __init__(self, tokens: Tokens) -> None:
        self._num_labels, self._task = tokens.num_labels, tokens.task
        self._train: list[int] = tokens.train.labels or []
        self._validation: list[int] = tokens.validation.labels or []

    def load(self, folder: ModelFolder, seed: int, *, values: bool) -> Any:
        """A model with a new head, drawn with the seed, unless the folder's was trained on this task."""
        return load_classifier(folder, labels=self._num_labels, seed=seed, task=self._task, values=values)

    def is_new(self, net: Module, name: str) -> bool:
        """Whether a parameter belongs to the new head."""
        return not name.startswith(f"{net.base_model_prefix}.")

    def predictions(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The predicted label of each sequence of a batch, (batch,), float64; NaN where a logit is not finite."""
        del labels
        return logits.argmax(-1).double().where(logits.isfinite().all(-1), math.nan)

    def metrics(self, predictions: Sequence[float]) -> dict[str, float | None]:
        """Metrics of the predictions for the validation split, in its order."""
        from llm_sparsity.evaluation.classification import score

        return {**score([int(label) for label in predictions], self._validation, self._num_labels)}

    def baseline(self) -> dict[str, float]:
        """Metrics of the most frequent training label."""
        from llm_sparsity.evaluation.classification import majority

        return majority(self._train, self._validation, self._num_labels)


class NextTokens:
    """Predict each token of a window but the first from the tokens before it."""

    options: ClassVar[dict[str, Any]] = {"use_cache": False}  # no text is continued

    def load(self, folder: ModelFolder, seed: int, *, values: bool) -> Any:
        """A causal language model."""
        del seed
        return load_causal(folder, values=values)

    def is_new(self, net: Module, name: str) -> bool:
        """Whether a parameter belongs to a new head; none does."""
        del net, name
        return False

    def predictions(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean negative log-likelihood of each window, nats, (batch,), float64."""
        windows = zip(logits.split(1), labels.split(1), strict=True)
        return torch.stack([summed_loss(*window) for window in windows]).double()

    def metrics(self, predictions: Sequence[float]) -> dict[str, float | None]:
        """Perplexity; windows are equally long, so the mean over windows is that over tokens."""
        from llm_sparsity.evaluation.metrics import perplexity

        return {"perplexity": perplexity(sum(predictions) / len(predictions))}

    def baseline(self) -> dict[str, float]:
        """There is no baseline."""
        return {}


Objective = Labels | NextTokens


def objective(tokens: Tokens) -> Objective:
    """The objective of a task."""
    return NextTokens() if tokens.train.labels is None else Labels(tokens)


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the sequences of a batch; that of a window is the mean over its tokens.

    Args:
        logits: (batch, classes), or (batch, length, vocabulary).
        labels: (batch,), or the tokens of windows, (batch, length).
    """
    found, targets = aligned(logits, labels)
    return cross_entropy(found, targets, reduction="sum") * len(labels) / len(found)


def aligned(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, float32, (predictions, classes), and targets, (predictions,): shifted by one token for windows."""
    if labels.dim() == 1:
        return logits.float(), labels
    return logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
