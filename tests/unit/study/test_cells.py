from pathlib import Path
from typing import Any

import pytest

from llm_sparsity.study.cells import DENSE, Run, Variant, expand
from llm_sparsity.study.sparsity import Sparsity

GRID: dict[str, Any] = {
    "models": ["gpt2"],
    "methods": ["magnitude"],
    "measure": True,
    "scopes": ["all"],
    "sparsities": ["0", "0.5"],
    "tasks": ["sst2"],
    "recipes": ["kept", "released"],
    "seeds": [0, 1],
}
STAGES = {"sst2": ["finetune"]}


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (DENSE, "dense"),
        (Variant("magnitude", "linear", Sparsity("0.5")), "magnitude-linear-0.5"),
        (Variant("wanda", "mlp", Sparsity("2of4")), "wanda-mlp-2of4"),
        (Variant("wanda", "layers.0.3", Sparsity("0.5"), 12), "wanda-layers.0.3-0.5-12"),
    ],
)
def test_a_variant_is_its_name(variant: Variant, name: str) -> None:
    assert str(variant) == name
    assert Variant.parse(name) == variant


def test_a_run_names_its_folder() -> None:
    run = Run("gpt2", Variant("magnitude", "all", Sparsity("0.5")), "sst2", "kept", 3)
    assert run.folder == Path("results/gpt2/magnitude-all-0.5/sst2/kept/seed-3")


def test_dense_runs_once_whatever_the_recipes() -> None:
    cells = expand([GRID], STAGES)
    assert cells.variants == (("gpt2", DENSE), ("gpt2", Variant("magnitude", "all", Sparsity("0.5"))))
    assert [run.recipe for run in cells.runs if run.variant.is_dense] == ["kept", "kept"]
    assert len(cells.runs) == 2 + 4


def test_a_cell_that_two_grids_name_is_computed_once() -> None:
    assert expand([GRID, GRID], STAGES) == expand([GRID], STAGES)


def test_only_calibrated_methods_are_repeated() -> None:
    grid = {"methods": ["magnitude", "wanda"], "sparsities": ["0.5"], "calibration_seeds": {"wanda": [0, 2]}}
    names = [str(variant) for _, variant in expand([GRID | grid], STAGES).variants]
    assert names == ["dense", "magnitude-all-0.5", "wanda-all-0.5", "wanda-all-0.5-2"]


def test_dense_is_studied_even_when_no_zero_is_listed() -> None:
    assert ("gpt2", DENSE) in expand([GRID | {"sparsities": ["0.5"]}], STAGES).variants


def test_language_tasks_are_evaluated_and_trained_where_asked() -> None:
    grid = GRID | {"tasks": ["wikitext"], "seeds": [0]}
    cells = expand([grid], {"wikitext": ["evaluate", "finetune"]})
    assert len(cells.evaluations) == 2
    assert [(str(run.variant), run.recipe) for run in cells.runs] == [
        ("dense", "kept"),
        ("magnitude-all-0.5", "kept"),
        ("magnitude-all-0.5", "released"),
    ]


def test_language_tasks_are_evaluated_not_trained() -> None:
    cells = expand([GRID | {"tasks": ["wikitext"]}], STAGES | {"wikitext": ["evaluate"]})
    assert not cells.runs
    assert [str(cell.folder) for cell in cells.evaluations] == [
        "results/gpt2/dense/wikitext",
        "results/gpt2/magnitude-all-0.5/wikitext",
    ]


def test_a_recipe_of_the_finetuned_model_is_for_every_pruned_variant_and_alone_for_quantised_ones() -> None:
    grid = GRID | {
        "methods": ["magnitude", "structured", "int8"], "scopes": ["linear"], "seeds": [0],
        "recipes": ["kept", "released", "one-shot", "again"], "finetuned": ["one-shot", "again"],
        "untrained": ["one-shot"],
    }  # fmt: skip
    found: dict[str, list[str]] = {}
    for run in expand([grid], STAGES).runs:
        found.setdefault(str(run.variant), []).append(run.recipe)
    assert found == {
        "dense": ["kept"],
        "magnitude-linear-0.5": ["kept", "released", "one-shot", "again"],
        "structured-linear-0.5": ["kept", "one-shot", "again"],
        "int8-linear-0": ["one-shot"],
    }
    run = Run("gpt2", Variant.parse("int8-linear-0"), "sst2", "one-shot", 3)
    assert run.pruned == Path("results/gpt2/int8-linear-0/sst2/seed-3")
    assert run.dense == Run("gpt2", DENSE, "sst2", "kept", 3)


@pytest.mark.parametrize(
    ("changes", "pruned"),
    [
        ({}, ["dense"]),
        ({"measure": True}, ["dense", "magnitude-all-0.5", "int8-all-0"]),
        ({"tasks": ["sst2", "wikitext"]}, ["dense", "magnitude-all-0.5", "int8-all-0"]),
        ({"recipes": ["kept", "one-shot"]}, ["dense", "magnitude-all-0.5"]),
        ({"recipes": ["kept"]}, ["dense", "magnitude-all-0.5", "int8-all-0"]),  # int8 for its bytes: it is not trained
    ],
)
def test_the_pretrained_model_is_not_pruned_for_recipes_of_the_finetuned_one(
    changes: dict[str, Any], pruned: list[str]
) -> None:
    grid = GRID | {
        "methods": ["magnitude", "int8"], "measure": False, "recipes": ["one-shot"],
        "finetuned": ["one-shot"], "untrained": ["one-shot"],
    } | changes  # fmt: skip
    cells = expand([grid], STAGES | {"wikitext": ["evaluate"]})
    assert [str(variant) for _, variant in cells.variants] == pruned
    assert {"dense", "magnitude-all-0.5"} <= {str(run.variant) for run in cells.runs}
