"""What a model is trained to say, and how what it says is scored: the label of a sentence, or each next token.

A classifier is scored by accuracy, F1 and their mean. A language model is scored by perplexity, as `evaluate` measures
it: windows that do not overlap, each predicted from its own tokens only.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy

from llm_sparsity.data.tokens import Encoded
from llm_sparsity.models.loading import load_causal, load_classifier


class Labels:
    """Which of the task's labels a sentence, or a pair of them, has."""

    options: ClassVar[dict[str, Any]] = {}  # of the model's call

    def __init__(self, train: Encoded, validation: Encoded) -> None:
        self._train, self._validation = train, validation

    def load(self, folder: Path, seed: int) -> Any:
        """A variant with a new head, drawn with the seed."""
        return load_classifier(folder, labels=self._train.classes, seed=seed)

    def is_new(self, net: Module, name: str) -> bool:
        """Whether a parameter was never trained before: the head's."""
        return not name.startswith(f"{net.base_model_prefix}.")

    def answers(self, logits: Tensor, labels: Tensor) -> list[Any]:
        """What each sequence of a batch is scored by."""
        del labels
        found: list[Any] = logits.argmax(-1).tolist()
        return found

    def metrics(self, answers: Sequence[Any]) -> dict[str, float]:
        """The score of all answers, in the validation split's order."""
        from llm_sparsity.evaluation.metrics import score

        return score(answers, self._validation.labels.tolist(), self._validation.classes)  # type: ignore[union-attr]

    def baseline(self) -> dict[str, float]:
        """The score of what takes no model."""
        from llm_sparsity.evaluation.metrics import majority

        train, validation = (split.labels.tolist() for split in (self._train, self._validation))  # type: ignore[union-attr]
        return majority(train, validation, self._train.classes)


class NextTokens:
    """Each token of a window but the first, from those before it."""

    options: ClassVar[dict[str, Any]] = {"use_cache": False}  # keys and values of a text that is not continued

    def load(self, folder: Path, seed: int) -> Any:
        """A variant as it is."""
        del seed
        return load_causal(folder)

    def is_new(self, net: Module, name: str) -> bool:
        """No parameter is."""
        del net, name
        return False

    def answers(self, logits: Tensor, labels: Tensor) -> list[Any]:
        """The mean negative log-likelihood of each window, nats."""
        return [float(summed_loss(*window)) for window in zip(logits.split(1), labels.split(1), strict=True)]

    def metrics(self, answers: Sequence[Any]) -> dict[str, float]:
        """Perplexity: windows are equally long."""
        return {"perplexity": perplexity(sum(answers) / len(answers))}

    def baseline(self) -> dict[str, float]:
        """None is of use."""
        return {}


def objective(train: Encoded, validation: Encoded) -> Labels | NextTokens:
    """What a task asks for."""
    return NextTokens() if train.labels is None else Labels(train, validation)


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over a batch's sequences; of a window its mean over the tokens.

    Args:
        logits: (batch, classes), or (batch, length, vocabulary).
        labels: (batch,), or the window's tokens, (batch, length).
    """
    said, wanted = predictions(logits, labels), labels if labels.dim() == 1 else labels[:, 1:].flatten()
    return cross_entropy(said, wanted, reduction="sum") * len(labels) / len(said)


def predictions(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits that are compared with something, float32, (predictions, classes)."""
    return (logits if labels.dim() == 1 else logits[:, :-1].flatten(0, 1)).float()


def perplexity(nll: float) -> float:
    """The exponential of a mean negative log-likelihood in nats."""
    return math.exp(nll) if nll < 700 else math.inf
