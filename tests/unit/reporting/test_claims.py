"""Claims, checked against the earlier study's own numbers and against MADE UP ones whose verdict is known."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from llm_sparsity.evaluation.weights import GRID
from llm_sparsity.reporting.claims import CLAIMS, EARLIER, EXAMPLES, MAJORITY, check, published
from llm_sparsity.reporting.collect import COLUMNS

Rows = dict[str, list[dict[str, Any]]]


def checked(rows: Rows) -> pd.DataFrame:
    tables = {name: pd.DataFrame(rows.get(name, []), columns=columns) for name, columns in COLUMNS.items()}
    return check(tables)


def runs_of(accuracies: dict[float, list[float]], model: str, task: str, seconds: float = 10.0) -> Rows:
    """A study of one model and task: sparsity -> accuracy of each seed."""
    rows: Rows = {"metrics": [], "runs": []}
    for sparsity, values in accuracies.items():
        for seed, value in enumerate(values):
            cell = {
                "model": model, "task": task, "method": "magnitude" if sparsity else "dense", "seed": seed,
                "scope": "all" if sparsity else "", "sparsity": f"{sparsity:g}",
                "recipe": "released" if sparsity else "kept",
            }  # fmt: skip
            rows["metrics"].append(cell | {"metric": "accuracy", "value": value})
            rows["runs"].append(cell | {"train_seconds": seconds + seed, "validation_examples": EXAMPLES[task]})
    rows["baselines"] = [{"task": task, "metric": "accuracy", "value": value} for task, value in MAJORITY.items()]
    return rows


def merged(studies: list[Rows]) -> Rows:
    return {name: [row for study in studies for row in study.get(name, [])] for name in COLUMNS}


def test_the_earlier_study_agrees_with_its_own_claims() -> None:
    numbers = published()
    numbers = numbers[(numbers.source == EARLIER) & (numbers.metric == "accuracy")]
    studies = []
    for (model, task), group in numbers.groupby(["model", "task"]):
        accuracies = {float(s): [float(v)] for s, v in zip(group.sparsity, group.value, strict=True)}
        studies.append(runs_of(accuracies, str(model), str(task)))
    found = checked(merged(studies))
    accuracy = found[found.quantity.str.contains("accuracy")]
    assert len(accuracy) == 6 + 6 + 2 + 1 + 3 + 1
    assert np.allclose(accuracy.value, accuracy.earlier)
    assert ((accuracy.low <= accuracy.value) & (accuracy.value <= accuracy.high)).all()
    assert (accuracy.verdict != "does not hold").all()


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ({0: [0.95, 0.95, 0.95], 0.1: [0.95, 0.95, 0.95]}, "undecided"),  # 872 examples tell no 2 points
        ({0: [0.999, 0.998, 0.999], 0.1: [0.999, 0.998, 0.999]}, "holds"),
        ({0: [0.95, 0.95, 0.95], 0.1: [0.80, 0.81, 0.80]}, "does not hold"),
        ({0: [0.95, 0.95, 0.95], 0.1: [0.95, 0.70, 0.99]}, "undecided"),  # seeds disagree
        ({0: [0.95], 0.5: [0.9]}, "not studied"),
    ],
)
def test_verdicts(accuracies: dict[float, list[float]], verdict: str) -> None:
    found = checked(runs_of(accuracies, "minilm", "sst2"))
    row = found[found.claim == "Removing 10 % costs nothing"].iloc[0]
    assert row.verdict == verdict
    if verdict != "not studied":
        assert row.seeds == 3
        assert row.model == "minilm"


def test_a_margin_by_hand() -> None:
    """Differences -.01 and -.03: mean -.02, t-interval 12.706 x .01; the split's 1.96 x sqrt((.09 + .0975..) / 872)."""
    found = checked(runs_of({0: [0.9, 0.9], 0.1: [0.89, 0.87]}, "minilm", "sst2"))
    row = found[found.claim == "Removing 10 % costs nothing"].iloc[0]
    split = 1.96 * np.sqrt((0.9 * 0.1 + 0.88 * 0.12) / 872)
    assert row.value == pytest.approx(-0.02)
    assert row.margin == pytest.approx(np.hypot(12.7062 * 0.01, split), rel=1e-4)


def test_one_run_decides_nothing_about_time() -> None:
    claim = "Pruning does not change training time"
    one, three = (checked(runs_of({0: [0.9] * n, 0.9: [0.8] * n}, "minilm", "sst2")) for n in (1, 3))
    assert one[one.claim == claim].verdict.item() == "undecided"
    assert three[three.claim == claim].verdict.item() == "holds"


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, "holds"), (0.1, "does not hold")])
def test_size(ratio: float, verdict: str) -> None:
    sizes = [
        {"model": "gpt2", "method": "dense", "scope": "", "sparsity": "0", "ratio": 1.0},
        {"model": "gpt2", "method": "magnitude", "scope": "all", "sparsity": "0.5", "ratio": 0.6},
        {"model": "gpt2", "method": "magnitude", "scope": "all", "sparsity": "0.9", "ratio": ratio},
    ]
    found = checked({"sizes": sizes})
    assert found[found.claim == "Pruning does not change the size"].verdict.item() == verdict


def weights_of(model: str, values: "np.ndarray[Any, Any]", stds: dict[int, float]) -> list[dict[str, Any]]:
    head = {"model": model, "method": "dense", "scope": "", "sparsity": "0"}
    shares = [(np.abs(values) <= x).mean() for x in GRID]
    overall = head | {"level": "overall", "stack": "", "layer": -1}
    return [
        *(overall | {"statistic": "cumulative", "x": x, "value": y} for x, y in zip(GRID, shares, strict=True)),
        *(
            head | {"level": "layer", "stack": "decoder", "layer": layer, "statistic": "std", "x": "", "value": std}
            for layer, std in stds.items()
        ),
    ]


def test_weights() -> None:
    normal = np.random.default_rng(0).normal(0, 0.1, 100_000)
    gpt2 = weights_of("gpt2", normal, {-1: 9.0, **dict.fromkeys(range(12), 0.1), 10: 0.2})
    bart = weights_of("bart-base", normal, dict.fromkeys(range(6), 0.1) | {3: 0.02})
    found = checked({"weights": gpt2 + bart}).set_index("claim")
    assert found.verdict["GPT-2's weights lie within ±.5"] == "holds"
    assert found.verdict["BART's weights lie within ±.25"] == "does not hold"  # 2.5 standard deviations: 98.8 %
    assert found.value["BART's weights lie within ±.25"] == pytest.approx(0.9876, abs=0.002)
    assert found.verdict["GPT-2's layer 10 stands out"] == "holds"
    assert found.value["BART's decoder layer 1 stands out"] == 3
    assert found.verdict["RoBERTa's weights have spikes near ±.25"] == "not studied"


@pytest.mark.parametrize(("spike", "verdict"), [(0, "does not hold"), (5_000, "holds")])
def test_spikes(spike: int, verdict: str) -> None:
    values = np.append(np.random.default_rng(0).normal(0, 0.1, 100_000), np.full(spike, 0.25))
    found = checked({"weights": weights_of("roberta-base", values, {})}).set_index("claim")
    assert found.verdict["RoBERTa's weights have spikes near ±.25"] == verdict


def test_every_claim_has_a_row_whatever_is_studied() -> None:
    assert set(checked({}).claim) == {claim.text for claim in CLAIMS}
    assert (checked({}).verdict == "not studied").all()
