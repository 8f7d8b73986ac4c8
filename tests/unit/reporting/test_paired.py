"""Errors of differences on the same examples. The predictions are MADE UP."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llm_sparsity.evaluation import scores
from llm_sparsity.reporting.intervals import Score, combined
from llm_sparsity.reporting.paired import FUNCTIONS, paired_error, weighted


def rows(labels: Any, predictions: Any) -> pd.DataFrame:
    return pd.DataFrame({"label": labels, "prediction": predictions})


def noisy(generator: np.random.Generator, values: Any, share: float, classes: int) -> Any:
    """Labels of which a share is drawn again; of classes: 1, numbers with noise."""
    if classes == 1:
        return values + share * generator.standard_normal(len(values))
    return np.where(generator.random(len(values)) < share, generator.integers(classes, size=len(values)), values)


def example(score: str, classes: int, size: int, generator: np.random.Generator) -> tuple[Any, Any, Any]:
    """Labels, and predictions of a dense model and of one that differs from it in a few."""
    labels = generator.integers(6, size=size) * 0.5 if classes == 1 else generator.integers(classes, size=size)
    dense = noisy(generator, labels, 0.4, classes)
    return labels, dense, noisy(generator, dense, 0.1, classes)


CASES = [
    ("f1", 2), ("combined", 2), ("matthews_correlation", 2), ("macro_f1", 3), ("combined", 3),
    ("matthews_correlation", 3), ("pearsonr", 1), ("spearmanr", 1),
]  # fmt: skip


def test_every_score_of_a_task_has_a_paired_error() -> None:
    assert FUNCTIONS.keys() == scores.FUNCTIONS.keys() - {"accuracy"}


@pytest.mark.parametrize(("score", "classes"), CASES)
def test_a_score_of_weighted_examples_is_that_of_the_library(score: str, classes: int) -> None:
    """An example of weight 2 counts as two."""
    generator = np.random.default_rng(1)
    labels, predictions, _ = example(score, classes, 50, generator)
    weights = generator.integers(1, 4, size=50)
    average = "binary" if classes == 2 else "macro"
    known = scores.FUNCTIONS[score](np.repeat(labels, weights), np.repeat(predictions, weights), average)
    assert weighted(score, average)(labels, predictions, weights.astype(float)) == pytest.approx(known, abs=0.002)


def test_labels_that_do_not_occur_change_no_score() -> None:
    """A task with three labels, of which two occur: F1 is that of both, not that of the second alone."""
    generator = np.random.default_rng(2)
    labels, ours, theirs = example("combined", 2, 200, generator)
    known = scores.FUNCTIONS["combined"](labels, ours, "macro")
    assert weighted("combined", "macro")(labels, ours, np.ones(200)) == pytest.approx(known)
    macro, binary = (
        paired_error("combined", rows(labels, ours), rows(labels, theirs), way) for way in ("macro", "binary")
    )
    assert macro != binary


@pytest.mark.parametrize(("score", "classes"), [("accuracy", 2), *CASES])
def test_the_error_is_that_of_differences_on_other_examples(score: str, classes: int) -> None:
    """Beside the standard deviation over 200 data sets; scores on different examples would differ more."""
    average = "binary" if classes == 2 else "macro"
    function = (
        (lambda labels, predictions, _: np.mean(labels == predictions))
        if score == "accuracy"
        else weighted(score, average)
    )
    found, differences, values = [], [], []
    for seed in range(200):
        labels, dense, pruned = example(score, classes, 300, np.random.default_rng(seed))
        ours, theirs = (function(labels, each, np.ones(300)) for each in (pruned, dense))
        differences.append(ours - theirs)
        values.append(theirs)
        if seed < 5:
            found.append(paired_error(score, rows(labels, pruned), rows(labels, dense), average))
    assert np.mean(found) == pytest.approx(np.std(differences), rel=0.2)
    assert np.mean(found) < np.std(values) * math.sqrt(2)


@pytest.mark.parametrize("score", ["accuracy", "f1", "matthews_correlation"])
def test_models_that_agree_everywhere_still_have_an_error(score: str) -> None:
    labels = np.arange(50) % 2
    same = rows(labels, labels)
    one = rows(labels, np.append(1 - labels[:1], labels[1:]))
    assert 0.005 < paired_error(score, same, same) < 0.05
    assert paired_error(score, same, same) < paired_error(score, one, same)
    assert paired_error(score, same, same) == paired_error(score, same, same)


def test_the_error_of_two_shares_by_hand() -> None:
    labels = np.zeros(50)
    same, one = rows(labels, labels), rows(labels, np.append(1, labels[1:]))
    assert paired_error("accuracy", same, same) == pytest.approx(1 / 52)
    assert paired_error("accuracy", same, one) == paired_error("accuracy", one, same)
    assert paired_error("accuracy", one, same) == pytest.approx(math.sqrt(2 - 1 / 52) / 52)


def test_perplexities_are_compared_window_by_window() -> None:
    """Losses of windows differ by far more than the models: 0.1 and 0.3, mean 0.2, of two windows."""
    theirs = pd.DataFrame({"nll": [2.0, 5.0]})
    ours = pd.DataFrame({"nll": [2.1, 5.3]})
    assert paired_error("perplexity", ours, theirs) == pytest.approx(0.1)
    assert math.isnan(paired_error("perplexity", ours[:1], theirs[:1]))


def score(values: list[float], variance: float, paired: float, kind: str = "fine-tuning") -> Score:
    return Score(pd.Series(values), kind, variance, paired)


def test_a_paired_difference_has_a_narrower_interval() -> None:
    dense, pruned = score([0.8] * 3, 0.16, 0.0), score([0.79] * 3, 0.16, 0.005)
    paired = combined([(1, pruned), (-1, dense)], 100)
    unpaired = combined([(1, score([0.79] * 3, 0.16, math.nan)), (-1, dense)], 100)
    assert paired and unpaired and paired.value == unpaired.value == pytest.approx(-0.01)
    assert unpaired.sampling == pytest.approx(1.96 * math.sqrt(0.32 / 100), rel=1e-3)
    assert paired.sampling == pytest.approx(1.96 * 0.005, rel=1e-3)


def test_two_pruned_models_differ_by_no_more_than_both_from_the_dense_one() -> None:
    """sd(a - b) <= sd(a - dense) + sd(b - dense); where that is much, models on other examples bound it."""
    near, far = score([0.8] * 3, 0.16, 0.005), score([0.7] * 3, 0.21, 0.05)
    close, apart = combined([(1, near), (-1, near)], 100), combined([(1, near), (-1, far)], 100)
    assert close and apart
    assert close.sampling == pytest.approx(1.96 * 0.01, rel=1e-3)
    assert apart.sampling == pytest.approx(1.96 * min(0.055, math.sqrt(0.37 / 100)), rel=1e-3)
    dip = combined([(1, near), (-0.5, near), (-0.5, near)], 100)
    assert dip
    assert dip.sampling == pytest.approx(1.96 * 0.01, rel=1e-3)


def test_seeds_of_two_kinds_are_not_paired() -> None:
    """One score varies by draws of the calibration text, the other by none: it stays as it is for every draw."""
    drawn, fixed = score([0.6, 0.8], 0.2, 0.01, "calibration"), score([0.9], 0.1, 0.01, "")
    found = combined([(1, drawn), (-1, fixed)], 100)
    assert found and found.value == pytest.approx(-0.2)
    assert found.seeds == 2
    assert found.spread == pytest.approx(12.706 * 0.1, rel=1e-3)
    trained = combined([(1, score([0.6, 0.8], 0.2, 0.01)), (-1, drawn)], 100)
    assert trained and trained.spread == pytest.approx(12.706 * math.hypot(0.1, 0.1), rel=1e-3)


def test_a_score_without_an_error_has_an_interval_if_it_is_a_share() -> None:
    """p (1 - p) is no variance of a correlation: below zero it would be negative."""
    cells = pd.DataFrame(
        {"value": [-0.1, -0.1], "seed": [0, 1], "calibration_seed": 0, "recipe": "kept", "method": "x"}
    )
    cells = cells.assign(stderr=math.nan, paired=math.nan, seeded=True)
    assert math.isnan(Score.of(cells, "matthews_correlation", 100).variance)
    assert Score.of(cells.assign(value=0.9), "accuracy", 100).variance == pytest.approx(100 * 92 / 104 * 12 / 104 / 104)
    assert Score.of(cells.assign(value=1.0), "accuracy", 20).variance > 0, "twenty right answers prove no perfect model"
    found = combined([(1, Score.of(cells, "matthews_correlation", 100))], 100)
    assert found and math.isnan(found.margin)


def test_draws_that_share_a_seed_of_fine_tuning_are_one_value() -> None:
    """Nine runs of three seeds and three draws are three values."""
    cells = pd.DataFrame(
        [{"value": s / 10 + c / 100, "seed": s, "calibration_seed": c} for s in range(3) for c in range(3)]
    )
    cells = cells.assign(stderr=math.nan, paired=math.nan, recipe="kept", method="wanda", seeded=True)
    assert Score.of(cells, "accuracy", 100).values.tolist() == pytest.approx([0.01, 0.11, 0.21])
