"""Claims, judged on the earlier study's own numbers and on MADE UP ones whose verdict is known."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from llm_sparsity.evaluation.weights import GRID
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.reporting import tables
from llm_sparsity.reporting.claims import judge, load
from llm_sparsity.reporting.quantities import QUANTITIES, Cell
from tests.tables import CLAIMS

Rows = dict[str, list[dict[str, Any]]]
EARLIER = load(CLAIMS)
EXAMPLES = {task: split.examples for task, split in EARLIER.source.tasks.items()}


def judged(rows: Rows) -> pd.DataFrame:
    return judge(EARLIER, {name: tables.frame(name, rows.get(name, [])) for name in tables.COLUMNS})


def runs_of(accuracies: dict[str, list[float]], model: str, task: str, seconds: float = 10.0) -> Rows:
    """A study of one model and task: sparsity -> accuracy of each seed."""
    rows: Rows = {"tasks": [{"task": task, "score": "accuracy"}], "metrics": [], "runs": []}
    for sparsity, values in accuracies.items():
        dense = sparsity == "0"
        for seed, value in enumerate(values):
            cell = {
                "model": model, "task": task, "method": "dense" if dense else "magnitude", "seed": seed,
                "scope": "" if dense else "all", "sparsity": sparsity, "recipe": "kept" if dense else "released",
            }  # fmt: skip
            rows["metrics"].append(cell | {"metric": "accuracy", "value": value})
            rows["runs"].append(cell | {"train_seconds": seconds + seed, "validation_examples": EXAMPLES[task]})
    rows["baselines"] = [
        {"task": name, "metric": "accuracy", "value": split.majority / split.examples}
        for name, split in EARLIER.source.tasks.items()
    ]
    return rows


def merged(studies: list[Rows]) -> Rows:
    return {name: [row for study in studies for row in study.get(name, [])] for name in tables.COLUMNS}


def test_the_earlier_study_agrees_with_its_own_claims() -> None:
    numbers = EARLIER.numbers[EARLIER.numbers.metric == "accuracy"]
    studies = [
        runs_of({str(s): [v] for s, v in zip(group.sparsity, group.value, strict=True)}, str(model), str(task))
        for (model, task), group in numbers.groupby(["model", "task"])
    ]
    found = judged(merged(studies))
    accuracy = found[found.quantity.str.contains("accuracy")]
    assert len(accuracy) == 6 + 6 + 2 + 1 + 3 + 1
    assert np.allclose(accuracy.value, accuracy.earlier)
    assert ((accuracy.low <= accuracy.value) & (accuracy.value <= accuracy.high)).all()
    assert (accuracy.verdict != "does not hold").all()


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ({"0": [0.95, 0.95, 0.95], "0.1": [0.95, 0.95, 0.95]}, "undecided"),  # 872 examples do not resolve 2 points
        ({"0": [0.999, 0.998, 0.999], "0.1": [0.999, 0.998, 0.999]}, "holds"),
        ({"0": [0.95, 0.95, 0.95], "0.1": [0.80, 0.81, 0.80]}, "does not hold"),
        ({"0": [0.95, 0.95, 0.95], "0.1": [0.95, 0.70, 0.99]}, "undecided"),  # seeds disagree
        ({"0": [0.95], "0.5": [0.9]}, "not studied"),
    ],
)
def test_verdicts(accuracies: dict[str, list[float]], verdict: str) -> None:
    found = judged(runs_of(accuracies, "minilm", "sst2"))
    row = found[found.claim == "Removing 10 % costs nothing"].iloc[0]
    assert row.verdict == verdict
    if verdict != "not studied":
        assert row.seeds == 3
        assert row.model == "minilm"


def counted(share: float, examples: int) -> float:
    """The variance of one example, by Agresti and Coull."""
    share = (share * examples + 2) / (examples + 4)
    return share * (1 - share) * examples / (examples + 4)


def test_a_margin_by_hand() -> None:
    """Differences -.01 and -.03: mean -.02, t-interval 12.706 x .01; the split's 1.96 x sqrt((.09 + .0975..) / 872)."""
    found = judged(runs_of({"0": [0.9, 0.9], "0.1": [0.89, 0.87]}, "minilm", "sst2"))
    row = found[found.claim == "Removing 10 % costs nothing"].iloc[0]
    split = 1.96 * np.sqrt((counted(0.9, 872) + counted(0.88, 872)) / 872)
    assert row.value == pytest.approx(-0.02)
    assert row.margin == pytest.approx(np.hypot(12.7062 * 0.01, split), rel=1e-4)


def test_the_margin_of_a_dip_weighs_its_neighbours_by_a_quarter() -> None:
    """Equal over seeds, so the interval is that of the split: a^2 + (b^2 + c^2) / 4, not a^2 + b^2 + c^2."""
    rows = runs_of({"0": [0.9] * 3, "0.9": [0.8] * 3, "0.95": [0.7] * 3, "0.99": [0.75] * 3}, "gpt2", "mrpc")
    row = judged(rows).set_index("claim").loc["On MRPC GPT-2 dips at 95 %"]
    at, below, above = (counted(share, 408) / 408 for share in (0.7, 0.8, 0.75))
    assert row.value == pytest.approx(-0.075)
    assert row.margin == pytest.approx(1.95996 * np.sqrt(at + (below + above) / 4), rel=1e-5)


def test_a_dip_of_seeds_is_paired() -> None:
    """Dips .00, -.02: mean -.01, t-interval 12.706 x .01, whatever the level of the seeds."""
    rows = runs_of({"0": [0.9] * 2, "0.9": [0.8, 0.6], "0.95": [0.8, 0.58], "0.99": [0.8, 0.6]}, "gpt2", "mrpc")
    row = judged(rows).set_index("claim").loc["On MRPC GPT-2 dips at 95 %"]
    split = 1.96 * np.sqrt((counted(0.69, 408) + counted(0.7, 408) / 2) / 408)
    assert row.margin == pytest.approx(np.hypot(12.7062 * 0.01, split), rel=1e-3)


def test_the_best_of_three_is_corrected_for() -> None:
    """Intervals of 1 - .05 / 3 hold together: 2.394 standard errors; the upper end is the highest of the three."""
    claim = "On MRPC models are at the majority class from 90 % on"
    rows = runs_of({"0": [0.9] * 3, "0.9": [0.7] * 3, "0.95": [0.69] * 3, "0.99": [0.68] * 3}, "gpt2", "mrpc")
    row = judged(rows).set_index("claim").loc[claim]
    assert row.value == pytest.approx(0.7 - 279 / 408)
    assert row.margin == pytest.approx(2.39398 * np.sqrt(counted(0.7, 408) / 408), rel=1e-4)
    spread = runs_of({"0": [0.9] * 3, "0.9": [0.7] * 3, "0.95": [0.6, 0.9, 0.58], "0.99": [0.6] * 3}, "gpt2", "mrpc")
    row = judged(spread).set_index("claim").loc[claim]
    assert row.value == pytest.approx(0.7 - 279 / 408)
    assert row.value + row.margin > 0.69333 + 7.649 * 0.1 - 279 / 408  # t(2) at 1 - .05 / 6 x the error of the mean


def test_one_seed_has_no_interval_and_decides_nothing() -> None:
    found = judged(runs_of({"0": [0.95], "0.1": [0.5], "0.9": [0.4], "0.95": [0.4], "0.99": [0.4]}, "gpt2", "mrpc"))
    found = found[found.quantity.str.contains("accuracy")]
    known = found[found.verdict != "not studied"]
    assert len(known) == 3
    assert known.margin.isna().all()
    assert (known.seeds == 1).all()
    assert (known.verdict == "undecided").all()


def test_what_is_counted_has_no_seeds() -> None:
    rows = weights_of("gpt2", np.random.default_rng(0).normal(0, 0.1, 1000), {})
    row = judged({"weights": rows}).set_index("claim").loc["GPT-2's weights lie within ±.5"]
    assert row.margin == 0
    assert pd.isna(row.seeds)


def test_a_pattern_is_not_the_fraction_that_it_removes() -> None:
    accuracies = {"0": [0.9, 0.91, 0.9], "0.5": [0.89, 0.9, 0.88]}
    claim = "Removing 50 % costs some accuracy"
    alone, beside = (
        judged(runs_of(accuracies | patterns, "minilm", "sst2")).set_index("claim").loc[claim]
        for patterns in ({}, {"2of4": [0.5, 0.5, 0.5]})
    )
    assert beside.value == alone.value == pytest.approx(-0.04 / 3)
    assert beside.margin == alone.margin
    assert beside.seeds == 3


def test_a_pattern_is_not_the_highest_sparsity() -> None:
    claim = "Pruning does not change training time"
    rows = runs_of({"0": [0.9] * 3, "0.5": [0.8] * 3, "1of4": [0.8] * 3}, "minilm", "sst2")
    for row in rows["runs"]:
        row["train_seconds"] *= 10 if row["sparsity"] == "1of4" else 1
    assert judged(rows).set_index("claim").value[claim] == 1
    only = runs_of({"0": [0.9] * 3, "2of4": [0.8] * 3}, "minilm", "sst2")
    assert judged(only).set_index("claim").verdict[claim] == "not studied"


def test_one_run_decides_nothing_about_time() -> None:
    claim = "Pruning does not change training time"
    one, three = (judged(runs_of({"0": [0.9] * n, "0.9": [0.8] * n}, "minilm", "sst2")) for n in (1, 3))
    assert one[one.claim == claim].verdict.item() == "undecided"
    assert three[three.claim == claim].verdict.item() == "holds"


def test_what_was_not_trained_took_no_time() -> None:
    rows = runs_of({"0": [0.9] * 3, "0.9": [0.8] * 3}, "minilm", "sst2")
    for row in rows["runs"]:
        row["train_seconds"] *= row["sparsity"] == "0"
    assert judged(rows).set_index("claim").verdict["Pruning does not change training time"] == "not studied"


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, "holds"), (0.1, "does not hold")])
def test_size(ratio: float, verdict: str) -> None:
    sizes = [
        {"model": "gpt2", "method": "dense", "scope": "", "sparsity": "0", "plain_ratio": 1.0, "ratio": 1.0},
        {"model": "gpt2", "method": "magnitude", "scope": "all", "sparsity": "0.5", "plain_ratio": 0.6},
        {"model": "gpt2", "method": "magnitude", "scope": "all", "sparsity": "0.9", "plain_ratio": ratio, "ratio": 0.9},
    ]
    found = judged({"sizes": sizes})
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
    found = judged({"weights": gpt2 + bart}).set_index("claim")
    assert found.verdict["GPT-2's weights lie within ±.5"] == "holds"
    assert found.verdict["BART's weights lie within ±.25"] == "does not hold"  # 2.5 standard deviations: 98.8 %
    assert found.value["BART's weights lie within ±.25"] == pytest.approx(0.9876, abs=0.002)
    assert found.verdict["GPT-2's layer 10 stands out"] == "holds"
    assert found.value["BART's decoder layer 1 stands out"] == 3
    assert found.verdict["RoBERTa's weights have spikes near ±.25"] == "not studied"


def test_a_limit_below_what_was_counted_is_not_studied() -> None:
    data = {"weights": tables.frame("weights", weights_of("gpt2", np.random.default_rng(0).normal(0, 1e-6, 100), {}))}
    cell = Cell(data, "magnitude", "gpt2")
    assert QUANTITIES["share_within"].measure(cell, limit=1e-8) is None
    assert QUANTITIES["share_within"].measure(cell, limit=1e-3) is not None


@pytest.mark.parametrize(("spike", "verdict"), [(0, "does not hold"), (5_000, "holds")])
def test_spikes(spike: int, verdict: str) -> None:
    values = np.append(np.random.default_rng(0).normal(0, 0.1, 100_000), np.full(spike, 0.25))
    found = judged({"weights": weights_of("roberta-base", values, {})}).set_index("claim")
    assert found.verdict["RoBERTa's weights have spikes near ±.25"] == verdict


def test_every_claim_has_a_row_whatever_is_studied() -> None:
    assert list(judged({}).claim) == [claim.claim for claim in EARLIER.claims]
    assert (judged({}).verdict == "not studied").all()


def test_a_study_without_claims_has_an_empty_table() -> None:
    found = judge(None, {})
    assert list(found) == tables.COLUMNS["claims"]
    assert found.empty


CHANGE = {"claim": "c", "quantity": "score_change", "sparsity": 0.5, "low": -0.02}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantity": "scor_change"}, "claims.1: quantity: found 'scor_change'; did you mean 'score_change'?"),
        ({"sparsity": 1.5}, "claims.1: sparsity: found 1.5; give a sparsity such as 0.5 or 2of4"),
        ({"hihg": 0}, "claims.1: hihg: unknown key; did you mean 'high'?"),
        ({"low": "none"}, "claims.1.low: found 'none'; input should be a valid number"),
        ({"quantity": "share_within", "limit": "x"}, "claims.1: sparsity: unknown key; known: claim, quantity"),
        ({"quantity": "best_above_majority"}, "claims.1: sparsity: unknown key; did you mean 'sparsities'?"),
        ({"low": 0.1, "high": -0.1}, "claims.1: low: found 0.1, which is not up to high, -0.1; correct one of them"),
        ({"low": math.nan}, "claims.1.low: found nan; input should be a finite number"),
        ({"low": None}, "claims.1.low: found nothing; give a value, or remove it"),
        (
            {"low": False},
            "claims.1.low: found False; yes, no, on and off are true and false in YAML; write a number, or ",
        ),
        ({"low": -2}, "claims.1: low, high: found -2; scores are fractions, so two points are 0.02"),
    ],
)
def test_a_wrong_claim_is_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    wrong = [CHANGE, CHANGE | changes]
    path = _written(tmp_path, claims=wrong)
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"quantity": "score_change"}, "claims.0: sparsity: missing; add it, score_change needs it"),
        ({"quantity": "share_within", "limit": "x"}, "claims.0: limit: found 'x'; give a number above 0"),
        ({"quantity": "share_within", "limit": 0}, "claims.0: limit: found 0; give a number above 0"),
        ({"quantity": "share_within", "limit": True}, "claims.0: limit: found True; give a number above 0"),
        ({"quantity": "score_change", "sparsity": 0.5, "low": -math.inf}, "claims.0.low: found -inf; input should be"),
        ({"quantity": "density_ratio", "magnitude": -1}, "claims.0: magnitude: found -1; give a number above 0"),
        ({"quantity": "best_above_majority", "sparsities": []}, "claims.0: sparsities: found []; give a list of "),
        ({"quantity": "best_above_majority", "sparsities": 0.5}, "claims.0: sparsities: found 0.5; give a list of "),
    ],
)
def test_a_wrong_argument_is_one_line(claim: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = _written(tmp_path, claims=[{"claim": "c", "high": 1, **claim}])
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"source": {"name": "s"}}, "source.summary: missing; add it"),
        ({"claim": []}, "claim: unknown key; did you mean 'claims'?"),
        ({"scopes": []}, "scopes: found nothing; give at least one"),
        (
            {"scopes": ["linaer"]},
            "scopes.0: found 'linaer'; expected all, linear, attention, mlp, embeddings, encoder, decoder or a list ",
        ),
        ({"method": "magnitud"}, "method: found 'magnitud', which is not defined; did you mean 'magnitude'?"),
        ({"method": "int8"}, "method: found int8, which removes nothing; claims are of pruned models"),
        (
            {"source": {"name": "s", "summary": "p", "tasks": {"t": {"examples": 5, "majority": 6}}}},
            "source.tasks.t: majority: found 6 of 5 examples; correct one of them",
        ),
    ],
)
def test_a_wrong_file_is_one_line(file: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = _written(tmp_path, **file)
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize("text", [b"claims: 2024-13-45", b"[" * 5000, b"name: \xff", b"a: b: c"])
def test_a_file_that_is_no_yaml_is_one_line(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError, match="no YAML") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (None, "numbers.csv: not found"),
        ("model,task,method,metric,value\n", "numbers.csv: column sparsity is missing, found model, task"),
        ("gpt2,sst2,magnitude,2,accuracy,0.5", "numbers.csv: line 2: sparsity: found '2'; give a fraction"),
        ("gpt2,sst2,magnitude,0.5,accuracy,high", "numbers.csv: line 2: value: found 'high'; give a number"),
        ("gpt2,sst2,magnitude,0.5,accuracy,91", "numbers.csv: line 2: value: found 91; scores are fractions, such as"),
        (
            "gpt2,sst2,magnitude,0.5,accuracy,nan",
            "numbers.csv: line 2: value: found nan; scores are fractions, such as",
        ),
        ("gpt2,t,magnitude,0.5,perplexity,0.5", "numbers.csv: line 2: value: found 0.5; perplexities are at least 1"),
        ("a,t,magnitude,0.5,f1,0.9\na,t,magnitude,0.5,f1,0.8", "numbers.csv: line 3: gives a number again; remove one"),
        ("gpt2,sst2,magnitude,0.5,accuracy,0.5", "claims.yaml: source.tasks: sst2 is missing, numbers.csv has it"),
    ],
)
def test_wrong_numbers_are_one_line(numbers: str | None, message: str, tmp_path: Path) -> None:
    path = _written(tmp_path, source={"name": "s", "summary": "pruned", "numbers": "numbers.csv"})
    if numbers is not None:
        head = "" if numbers.startswith("model") else "model,task,method,sparsity,metric,value\n"
        (tmp_path / "numbers.csv").write_text(head + numbers)
    with pytest.raises(UserError) as caught:
        load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_a_folder_are_one_line(tmp_path: Path) -> None:
    path = _written(tmp_path, source={"name": "s", "summary": "pruned", "numbers": "."})
    with pytest.raises(UserError, match="no CSV table"):
        load(path)


@pytest.mark.parametrize("text", ["claims: [", "- a list"])
def test_a_file_that_is_no_mapping_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "claims.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'claims.yaml'}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"claims\.yaml: not found; correct `claims` in the config, or remove it"):
        load(tmp_path / "claims.yaml")


def _written(folder: Path, **changes: Any) -> Path:
    file = {"source": {"name": "s", "summary": "pruned"}, "method": "magnitude", "scopes": ["all"], "claims": [CHANGE]}
    path = folder / "claims.yaml"
    path.write_text(yaml.safe_dump(file | changes))
    return path


def test_layers_of_zeros_stand_out_nowhere() -> None:
    rows = weights_of("gpt2", np.zeros(10), dict.fromkeys(range(12), 0.0))
    assert judged({"weights": rows}).set_index("claim").verdict["GPT-2's layer 10 stands out"] == "not studied"


def test_a_change_to_the_dense_model_is_paired() -> None:
    """Standard error .001 of the difference, in place of that of two independent accuracies."""
    rows = runs_of({"0": [0.9] * 3, "0.1": [0.89] * 3}, "minilm", "sst2")
    ours = [row for row in rows["metrics"] if row["sparsity"] == "0.1"]
    rows["metrics"] += [row | {"metric": "accuracy_paired_stderr", "value": 0.001} for row in ours]
    row = judged(rows).set_index("claim").loc["Removing 10 % costs nothing"]
    assert row.margin == pytest.approx(1.95996 * 0.001, rel=1e-3)
    assert row.verdict == "holds"


def test_scores_are_counted_in_points_and_nothing_else_is() -> None:
    assert {name for name, quantity in QUANTITIES.items() if quantity.points} == {
        "score_change", "best_above_majority", "score_dip",
    }  # fmt: skip
