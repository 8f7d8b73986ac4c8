"""Training objectives and their metrics: the label of a sentence, a class or a number; each next token of a window.

Labels are scored as `scores` says. A language model is scored by perplexity, with the protocol of `evaluate`: windows
do not overlap, and each is predicted from its own tokens only, in float32.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss, softmax

from llm_sparsity.data.tokens import Tokens, TokenSplit
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_causal, load_classifier


class Labels:
    """Predict the label of a sentence or pair: a class, or of a regression task (one label) a number."""

    options: ClassVar[dict[str, Any]] = {}  # of the model's forward pass

    def __init__(self, tokens: Tokens) -> None:
        self._num_labels, self._task, self._score = tokens.num_labels, tokens.task, tokens.score
        self._scored = {"": tokens.validation, **{f"_{name}": split for name, split in tokens.others.items()}}

    def load(self, folder: ModelFolder, seed: int, *, values: bool) -> Any:
        """A model with a new head, drawn with the seed, unless the folder's was trained on this task."""
        net = load_classifier(folder, labels=self._num_labels, seed=seed, task=self._task, values=values)
        if self._num_labels == 1:
            net.config.problem_type = "regression"  # or transformers' pipelines would squash the number
        elif net.config.problem_type:  # of another head: its pipelines would give shares that do not add up to 1
            net.config.problem_type = "single_label_classification"
        return net

    def is_new(self, net: Module, name: str) -> bool:
        """Whether a parameter belongs to the new head."""
        return not name.startswith(f"{net.base_model_prefix}.")

    @property
    def scored(self) -> Mapping[str, TokenSplit]:
        """The splits that are scored, by what their metrics' names end in: nothing for validation."""
        return self._scored

    def predictions(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The predicted label of each sequence of a batch, (batch,), float64; NaN where a logit is not finite."""
        del labels
        found = logits.squeeze(-1) if self._num_labels == 1 else logits.argmax(-1)
        return found.double().where(logits.isfinite().all(-1), math.nan)

    def metrics(self, predictions: Sequence[float], ending: str = "") -> dict[str, float | None]:
        """Metrics of the predictions for a split of `scored`, in its order.

        For the validation split, with the standard error of the score that the task is judged by.
        """
        from llm_sparsity.evaluation.scores import scores

        ours = predictions if self._num_labels == 1 else [int(label) for label in predictions]
        references = self._scored[ending].labels or []
        found = scores(ours, references, self._num_labels, self._score, error=not ending)
        return {f"{metric}{ending}": value for metric, value in found.items()}

    def rows(self, predictions: Sequence[float]) -> list[dict[str, float]]:
        """Rows of predictions.csv, of the validation split, in its order."""
        labels = self._scored[""].labels or []
        kind = float if self._num_labels == 1 else int
        pairs = zip(labels, predictions, strict=True)
        return [{"label": kind(label), "prediction": kind(prediction)} for label, prediction in pairs]

    def baseline(self) -> dict[str, float]:
        """Metrics of the best constant prediction."""
        from llm_sparsity.evaluation.scores import baseline

        return {
            f"{metric}{ending}": value
            for ending, split in self._scored.items()
            for metric, value in baseline(split.labels or [], self._num_labels, self._score).items()
        }


class NextTokens:
    """Predict each token of a window but the first from the tokens before it."""

    options: ClassVar[dict[str, Any]] = {"use_cache": False}  # no text is continued

    def __init__(self, tokens: Tokens) -> None:
        self.scored = {"": tokens.validation}

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

    def metrics(self, predictions: Sequence[float], ending: str = "") -> dict[str, float | None]:
        """Perplexity; windows are equally long, so the mean over windows is that over tokens."""
        from llm_sparsity.evaluation.perplexity import perplexity

        del ending
        return {"perplexity": perplexity(sum(predictions) / len(predictions))}

    def rows(self, predictions: Sequence[float]) -> list[dict[str, float]]:
        """Rows of predictions.csv: the mean negative log-likelihood of each window, in nats a token."""
        return [{"nll": nll} for nll in predictions]

    def baseline(self) -> dict[str, float]:
        """There is no baseline."""
        return {}


Objective = Labels | NextTokens


def objective(tokens: Tokens) -> Objective:
    """The objective of a task."""
    return NextTokens(tokens) if tokens.train.labels is None else Labels(tokens)


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the sequences of a batch; that of a window is the mean over its tokens.

    Of numbers, the squared error. A sequence without a label counts nothing.

    Args:
        logits: (batch, classes), (batch, 1) of a regression, or (batch, length, vocabulary).
        labels: (batch,), floats of a regression; or the tokens of windows, (batch, length).
    """
    if labels.is_floating_point():
        known = ~labels.isnan()
        return mse_loss(logits.squeeze(-1).float()[known], labels[known], reduction="sum")
    found, targets = aligned(logits, labels)
    return cross_entropy(found, targets, reduction="sum") * len(labels) / len(found)


def divergence(logits: Tensor, teachers: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """How far a model's logits are from its teacher's, summed over the sequences of a batch.

    The Kullback-Leibler divergence of their probabilities; of numbers, the squared difference.

    Args:
        logits, teachers, labels: see `summed_loss`.
        temperature: divides the logits, and so the gradients by its square.
    """
    if labels.is_floating_point():
        return mse_loss(logits.float() / temperature, teachers.float() / temperature, reduction="sum")
    ours, theirs = (aligned(each, labels)[0] / temperature for each in (logits, teachers))
    return kl_div(log_softmax(ours, -1), softmax(theirs, -1), reduction="sum") * len(labels) / len(ours)


def aligned(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, float32, (predictions, classes), and targets, (predictions,): shifted by one token for windows."""
    if labels.dim() == 1:
        return logits.float(), labels
    return logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
