"""The teacher's loss on hand-made tensors and on tiny models with RANDOM weights."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_classifier
from llm_sparsity.training.distillation import Teacher, disable_dropout
from tests import zoo

DISTILL = {"labels": 1.0, "logits": 1.0, "hidden": 10.0, "temperature": 2.0}


def batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    ids = torch.tensor([[2, 8, 9, 10, 5], [2, 8, 5, 0, 0], [2, 11, 12, 5, 0]])  # BART needs its last token, 5
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}, torch.tensor([0, 1, 1])


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama", "bart"])
def test_a_model_that_equals_its_teacher_has_nothing_to_learn_from_it(
    kind: str, dense: Callable[[str], ModelFolder]
) -> None:
    one, other = (load_classifier(dense(kind), labels=2, seed=0).train() for _ in range(2))
    teacher = Teacher(one, **DISTILL | {"labels": 0.0})
    assert kind == "llama" or float(teacher.loss(other, *batch()).detach()) > 1e-3  # dropout; Llama has none
    disable_dropout(other)
    assert float(teacher.loss(other, *batch()).detach()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.05)
    assert float(teacher.loss(other, *batch()).detach()) > 1e-3
    assert not any(weight.requires_grad for weight in one.parameters())


def test_a_teachers_loss_is_a_sum_over_examples(dense: Callable[[str], ModelFolder]) -> None:
    net = load_classifier(dense("bert"), labels=2, seed=1).eval()
    teacher = Teacher(load_classifier(dense("bert"), labels=2, seed=0), **DISTILL)
    inputs, labels = batch()
    whole = teacher.loss(net, inputs, labels)
    alone = [
        teacher.loss(net, {key: value[row : row + 1] for key, value in inputs.items()}, labels[row : row + 1])
        for row in range(3)
    ]
    assert torch.allclose(whole, sum(alone))


def test_the_hidden_loss_by_hand_ignores_padding() -> None:
    def model(*layers: list[list[float]]) -> Any:
        states = tuple(torch.tensor([layer]) for layer in ([[9.0], [9.0]], *layers))

        class Net(torch.nn.Module):
            def forward(self, **_: Any) -> Any:
                return Output(logits=torch.zeros(1, 2), hidden_states=states)

        return Net()

    class Output(SimpleNamespace):
        def get(self, key: str) -> Any:
            return getattr(self, key, None)

    teacher = Teacher(model([[2.0], [7.0]], [[4.0], [1.0]]), labels=0.0, logits=0.0, hidden=3.0, temperature=1.0)
    inputs = {"input_ids": torch.tensor([[5, 0]]), "attention_mask": torch.tensor([[1, 0]])}
    loss = teacher.loss(model([[1.0], [0.0]], [[4.0], [0.0]]), inputs, torch.tensor([0]))
    assert float(loss) == pytest.approx(3.0 * (1 / 4 + 0) / 2)


def test_a_batch_without_padding_needs_no_mask(dense: Callable[[str], ModelFolder]) -> None:
    net = load_classifier(dense("bert"), labels=2, seed=1).eval()
    teacher = Teacher(load_classifier(dense("bert"), labels=2, seed=0), **DISTILL)
    inputs, labels = batch()
    inputs = {key: value[:1] for key, value in inputs.items()}
    alone = {"input_ids": inputs["input_ids"]}
    assert torch.equal(teacher.loss(net, inputs, labels[:1]), teacher.loss(net, alone, labels[:1]))


def test_dropout_of_layers_that_read_the_configuration(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Falcon's layers ask it in each forward pass. The configuration of the model, which is saved, stays."""
    folder = ModelFolder(zoo.save("falcon", tmp_path, tiny_model("llama"), hidden_dropout=0.3, attention_dropout=0.3))
    net, (inputs, _) = load_classifier(folder, labels=2, seed=0).train(), batch()
    assert not torch.equal(net(**inputs).logits, net(**inputs).logits)
    disable_dropout(net)
    assert torch.equal(net(**inputs).logits, net(**inputs).logits)
    assert net.config.hidden_dropout == 0.3
