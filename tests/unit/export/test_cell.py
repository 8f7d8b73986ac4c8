"""Which cell a path names."""

from pathlib import Path

import pytest

from llm_sparsity.export.cell import find_cell
from llm_sparsity.jobs.errors import UserError


def test_a_cell_knows_its_place_in_the_study(study: Path) -> None:
    run = find_cell(study / "results/bert/magnitude-linear-0.5/mood/kept/seed-1")
    assert (run.root, run.model, str(run.variant), run.task, run.recipe, run.seed) == (
        study, "bert", "magnitude-linear-0.5", "mood", "kept", 1,
    )  # fmt: skip
    assert run.name == "bert-magnitude-linear-0.5-mood"
    assert run.place == "results/bert/magnitude-linear-0.5/mood/kept/seed-1/model"
    assert find_cell(study / run.place).name == run.name
    assert find_cell(study / "results/bert/dense").folder.path == study / "resources/models/bert"
    assert find_cell(study / "results/bert/int8-linear-0").recipe is None


def test_a_model_folder_outside_of_a_study_is_one_too(study: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(study / "resources/models/bert")
    cell = find_cell(tmp_path / "mine")
    assert (cell.root, cell.model, cell.variant) == (None, "mine", None)


def test_a_folder_that_looks_like_a_study_and_is_none(study: Path, tmp_path: Path) -> None:
    (tmp_path / "results/llama/final-version").mkdir(parents=True)
    (tmp_path / "results/llama/final-version/model").symlink_to(study / "resources/models/llama")
    cell = find_cell(tmp_path / "results/llama/final-version")
    assert (cell.root, cell.variant, cell.model) == (None, None, "final-version")


def test_a_variant_that_was_pruned_after_it_was_fine_tuned(study: Path, tmp_path: Path) -> None:
    place = tmp_path / "results/bert/uniform-linear-0.5/mood/seed-3"
    place.mkdir(parents=True)
    (place / "model").symlink_to(study / "results/bert/dense/mood/kept/seed-0/model")
    cell = find_cell(place)
    assert (cell.root, cell.task, cell.recipe, cell.seed) == (tmp_path, "mood", None, 3)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("results/bert/magnitude-linear-0.6", "bert/magnitude-linear-0.5"),
        ("results/bart/magnitude-linear-0.5/mood/kept/seed-7", "bart/magnitude-linear-0.5/mood/kept/seed-0"),
        ("results/gtp2/int8-linear-0", "gpt2/int8-linear-0"),
        ("results/llama", "llama/int8-linear-0"),
    ],
)
def test_the_nearest_result_is_named(wrong: str, nearest: str, study: Path) -> None:
    with pytest.raises(UserError) as found:
        find_cell(study / wrong)
    assert str(found.value).endswith(f"; the nearest result is {study / 'results' / nearest}")


def test_a_path_without_any_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such result; results has no results"):
        find_cell(Path("nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no folder"):
        find_cell(Path("file"))
