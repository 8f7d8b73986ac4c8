"""Names and numbers as text. All numbers are MADE UP."""

from types import SimpleNamespace

import pytest

from llm_sparsity.reporting.tables import frame
from llm_sparsity.reporting.wording import name_of, resolution, span, times, wrapped
from llm_sparsity.study.sparsity import Sparsity


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (("dense", "", "0", "kept"), "dense"),
        (("magnitude", "linear", "0.5", "gradual"), "magnitude, 50 % of linear, gradual"),
        (("magnitude+int8", "mlp", "2of4", ""), "magnitude+int8, 2of4 in mlp"),
        (("int8", "linear", "0", ""), "int8"),
        (("int8", "attention", "0", ""), "int8 of attention"),
        (("int4", "layers.0.1.2", "0", "one-shot"), "int4 of layers 0-2, one-shot"),
    ],
)
def test_the_name_of_a_cell_tells_scopes_apart(cell: tuple[str, str, str, str], name: str) -> None:
    method, scope, sparsity, recipe = cell
    row = SimpleNamespace(method=method, scope=scope, sparsity=Sparsity(sparsity), recipe=recipe)
    assert name_of(row) == name


@pytest.mark.parametrize(
    ("accuracies", "told"),
    [
        ((0.9, 0.9), "near the dense accuracy of 0.90, their number alone leaves ±3.0 points"),
        ((0.96, 0.56), "near the dense accuracy of 0.56 to 0.96, their number alone leaves ±2.0 to 4.8 points"),
    ],
)
def test_models_have_a_precision_each(accuracies: tuple[float, ...], told: str) -> None:
    dense = {"task": "t", "method": "dense", "sparsity": "0", "metric": "accuracy"}
    rows = [dense | {"model": f"model-{number}", "value": value} for number, value in enumerate(accuracies)]
    data = {
        "tasks": frame("tasks", [{"task": "t", "score": "accuracy"}]),
        "metrics": frame("metrics", rows),
        "runs": frame("runs", [dense | {"validation_examples": 400}]),
    }
    assert told in resolution(data, "t")


def test_a_span_of_equal_values_is_one_value() -> None:
    assert span([0.301, 0.299], 2) == "0.30"
    assert span([3, 1, 2], 0) == "1 to 3"


@pytest.mark.parametrize(("ratio", "said"), [(1.04, "1.04 times"), (1.96, "1.96 times"), (5.0, "5.0 times")])
def test_a_small_gain_is_told_from_none(ratio: float, said: str) -> None:
    assert times(ratio) == said


def test_a_number_stays_with_its_percent_sign_and_hyphens_join_words() -> None:
    assert wrapped("90 % of linear, 4 %", 7) == ["90 % of", "linear,", "4 %"]
    assert wrapped("int8, one-shot", 10) == ["int8,", "one-shot"]
    assert wrapped("a" * 12, 10) == ["a" * 10, "aa"]
