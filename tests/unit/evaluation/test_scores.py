"""Scores of labels: against numbers by hand and scikit-learn's and scipy's own."""

import math
from typing import get_args

import evaluate
import numpy as np
import pytest
from scipy import stats

from llm_sparsity.evaluation.scores import (
    FUNCTIONS,
    OF_NUMBERS,
    LocalMetric,
    baseline,
    metrics_of,
    scores,
    standard_error,
)
from llm_sparsity.study.sources import SCORES, Score


def test_by_hand() -> None:
    # predicted 1: three times, twice rightly; missed one: precision 2/3, recall 2/3
    result = scores([1, 1, 1, 0, 0], [1, 1, 0, 1, 0])
    assert result["accuracy"] == pytest.approx(0.6)
    assert result["f1"] == pytest.approx(2 / 3)
    assert result["combined"] == pytest.approx((0.6 + 2 / 3) / 2)
    assert result.keys() == {"accuracy", "f1", "combined"}


def test_f1_of_more_than_two_labels_is_macro_averaged_and_says_so() -> None:
    result = scores([0, 1, 2], [0, 1, 1], labels=3)
    assert result.keys() == {"accuracy", "macro_f1", "combined"}
    assert result["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert result["combined"] == pytest.approx((2 / 3 + result["macro_f1"]) / 2)


def test_the_average_does_not_depend_on_which_labels_occur() -> None:
    """Epochs in which the third of three labels does not occur are scored like the others: macro, (2/3 + 0) / 2."""
    assert scores([0, 1, 0], [0, 0, 0], labels=3)["macro_f1"] == pytest.approx(0.4)
    assert scores([0, 1, 0], [0, 0, 0], labels=2)["f1"] == 0


def test_matthews_correlation_by_hand() -> None:
    # 3 true positives, 1 false, 2 missed, 4 true negatives: (3 * 4 - 1 * 2) / sqrt(4 * 5 * 5 * 6)
    ours, theirs = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    result = scores(ours, theirs, score="matthews_correlation")
    assert result["matthews_correlation"] == pytest.approx(10 / math.sqrt(600))
    assert list(result) == ["accuracy", "f1", "combined", "matthews_correlation"]


def test_numbers_are_scored_by_correlations() -> None:
    ours, theirs = [0.1, 2.0, 3.5, 3.0], [0.0, 1.0, 5.0, 4.0]
    assert scores(ours, theirs, labels=1, score="pearsonr") == {
        "pearsonr": pytest.approx(stats.pearsonr(ours, theirs).statistic),
        "spearmanr": pytest.approx(1),
    }


@pytest.mark.parametrize("name", ["matthews_correlation", *OF_NUMBERS])
def test_the_correlation_of_a_constant_is_0(name: str) -> None:
    assert LocalMetric([name], 1).compute(predictions=[1, 1, 1], references=[0, 1, 2]) == {name: 0}


def test_the_majority_class_of_mrpc() -> None:
    """The majority baseline of the report: .6838 and .8122 on MRPC's 129 + 279 validation pairs."""
    result = baseline([0] * 129 + [1] * 279)
    assert result["accuracy"] == pytest.approx(0.6838, abs=5e-5)
    assert result["f1"] == pytest.approx(0.8122, abs=5e-5)


def test_a_constant_number_is_worth_nothing() -> None:
    assert baseline([0.0, 2.0, 3.0], labels=1, score="pearsonr") == {"pearsonr": 0, "spearmanr": 0}


@pytest.mark.parametrize("guess", [0, 1, 2])
def test_no_constant_answer_is_better_than_the_baseline(guess: int) -> None:
    for labels, references in [(2, [0, 0, 0, 1]), (2, [0, 1, 1, 1]), (3, [2, 2, 2, 1, 0])]:
        best = baseline(references, labels, "macro_f1")
        for metric, value in scores([min(guess, labels - 1)] * len(references), references, labels, "macro_f1").items():
            assert value <= best[metric]
        assert best["accuracy"] >= 0.6


def test_standard_errors_by_resampling_agree_with_formulas() -> None:
    """Of accuracy, sqrt(p (1 - p) / n); of a correlation of normal numbers, (1 - r²) / sqrt(n)."""
    generator = np.random.default_rng(1)
    truth = generator.integers(2, size=2000)
    guess = np.where(generator.random(2000) < 0.8, truth, 1 - truth)
    share = float((truth == guess).mean())
    assert standard_error("accuracy", guess, truth) == pytest.approx(math.sqrt(share * (1 - share) / 2000), rel=0.2)
    x = generator.standard_normal(2000)
    y = x + generator.standard_normal(2000)
    found = scores(y, x, labels=1, score="pearsonr", error=True)
    assert found["pearsonr_stderr"] == pytest.approx((1 - found["pearsonr"] ** 2) / math.sqrt(2000), rel=0.2)
    assert found == scores(y, x, labels=1, score="pearsonr", error=True)
    assert "accuracy_stderr" not in scores(guess, truth, error=True)


def test_a_config_may_name_the_scores_that_there_are() -> None:
    assert set(get_args(Score)) == {*FUNCTIONS, "perplexity"} == {name for names in SCORES.values() for name in names}
    assert SCORES["regression"] == OF_NUMBERS
    assert set(SCORES["classification"]) == FUNCTIONS.keys() - set(OF_NUMBERS)
    assert metrics_of(3, "accuracy") == ["accuracy", "macro_f1", "combined"]


def test_nothing_is_written_outside_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute nodes may have no writable home folder, where evaluate keeps its cache by default."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", "/proc/none")
    assert scores([0, 1], [0, 1]) == {"accuracy": 1, "f1": 1, "combined": 1}
