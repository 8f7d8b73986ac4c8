import math

import evaluate
import pytest

from llm_sparsity.evaluation.classification import majority, score
from llm_sparsity.evaluation.metrics import overflow_note, perplexity


def test_by_hand() -> None:
    # predicted 1: three times, twice rightly; missed one: precision 2/3, recall 2/3
    result = score([1, 1, 1, 0, 0], [1, 1, 0, 1, 0])
    assert result["accuracy"] == pytest.approx(0.6)
    assert result["f1"] == pytest.approx(2 / 3)
    assert result["combined"] == pytest.approx((0.6 + 2 / 3) / 2)


def test_more_than_two_labels_are_macro_averaged() -> None:
    assert score([0, 1, 2], [0, 1, 1], labels=3)["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_the_average_does_not_depend_on_which_labels_occur() -> None:
    """Epochs in which the third of three labels does not occur are scored like the others: macro, (2/3 + 0) / 2."""
    assert score([0, 1, 0], [0, 0, 0], labels=3)["f1"] == pytest.approx(0.4)
    assert score([0, 1, 0], [0, 0, 0], labels=2)["f1"] == 0


def test_the_majority_class_of_mrpc() -> None:
    """The majority baseline of the report: .6838 and .8122 on MRPC's 129 + 279 validation pairs."""
    result = majority([1] * 2474 + [0] * 1194, [0] * 129 + [1] * 279)
    assert result["accuracy"] == pytest.approx(0.6838, abs=5e-5)
    assert result["f1"] == pytest.approx(0.8122, abs=5e-5)


def test_nothing_is_written_outside_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute nodes may have no writable home folder, where evaluate keeps its cache by default."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", "/proc/none")
    assert score([0, 1], [0, 1]) == {"accuracy": 1, "f1": 1, "combined": 1}


def test_perplexity() -> None:
    assert perplexity(0.0) == 1
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(1e4) is None
    assert overflow_note({"perplexity": None})["note"].startswith("perplexity: null")
    assert overflow_note({"perplexity": 3.0}) == overflow_note({"accuracy": 0.5}) == {}
