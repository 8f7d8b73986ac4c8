"""The shipped studies together: results are shared by path, so one path must mean one thing."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_sparsity.study.config import Config, load

ROOT = Path(__file__).parents[3]
STUDIES = [ROOT / "config.yaml", *sorted((ROOT / "studies").glob("*.yaml"))]


def folders(study: Config) -> dict[str, Any]:
    """Every folder or file of a study's results -> the settings that shape it; inputs are named by their paths."""
    cells = study.cells()
    found: dict[str, Any] = {}
    for model in {model for model, _ in cells.variants}:
        found[f"resources/models/{model}"] = study.download_settings("model", model)
    for task in study.wanted_tasks():
        found[f"resources/tasks/{task}"] = study.download_settings("task", task)
    for model, variant in cells.variants:
        text = study.calibration.task if study.calibration and variant.is_calibrated else None
        if not variant.is_dense:
            chosen = study.prune_settings(variant.method, variant.calibration_seed)
            found[f"results/{model}/{variant}/model"] = [chosen, text]
    for model, variant in cells.measured:
        found[f"results/{model}/{variant}/cost.json"] = study.measure.model_dump()
    for cell in cells.evaluations:
        found[str(cell.folder)] = study.evaluate_settings(cell.task)
    for run in cells.runs:
        text = study.tasks[run.task].train_on
        if study.prunes_finetuned(run):
            found[str(study.start_folder(run))] = study.prune_settings(run.variant.method, run.variant.calibration_seed)
        found[str(run.folder)] = [study.run_settings(run.task, run.recipe, run.seed), text]
    return found


@pytest.fixture(scope="module")
def shipped() -> dict[str, dict[str, Any]]:
    return {path.name: folders(load(yaml.safe_load(path.read_text()))) for path in STUDIES}


def test_two_studies_never_mean_two_things_by_one_path(shipped: dict[str, dict[str, Any]]) -> None:
    meanings: dict[str, dict[str, list[str]]] = {}
    for study, found in shipped.items():
        for path, chosen in found.items():
            meanings.setdefault(path, {}).setdefault(json.dumps(chosen, sort_keys=True), []).append(study)
    assert {path: list(found.values()) for path, found in meanings.items() if len(found) > 1} == {}


def test_a_tracker_is_no_setting_of_any_job() -> None:
    values = yaml.safe_load((ROOT / "studies/embedded.yaml").read_text())
    assert folders(load(values | {"tracker": "tensorboard"})) == folders(load(values))


def test_study_names_are_unique() -> None:
    names = [yaml.safe_load(path.read_text())["name"] for path in STUDIES]
    assert len(set(names)) == len(names)


def test_glue_has_all_nine_tasks_by_their_own_scores() -> None:
    study = load(yaml.safe_load((ROOT / "studies/glue.yaml").read_text()))
    accurate = dict.fromkeys(("sst2", "mrpc", "qqp", "mnli", "qnli", "glue-rte", "wnli"), "accuracy")
    assert study.scores() == accurate | {"cola": "matthews_correlation", "stsb": "pearsonr"}
    assert set(study.wanted_tasks()) == set(study.tasks) == set(study.scores())
    for task in study.tasks.values():
        assert task.source.hub == "nyu-mll/glue"
        assert {file.partition("/")[0] for file in task.files.values()} <= {
            name.removeprefix("glue-") for name in study.tasks
        }


def test_glue_trains_two_models_and_quantises_one() -> None:
    runs = load(yaml.safe_load((ROOT / "studies/glue.yaml").read_text())).cells().runs
    counts = Counter((run.variant.method, run.recipe) for run in runs)
    kinds = [("dense", "kept"), ("magnitude", "kept"), ("int8", "one-shot"), ("int4", "one-shot")]
    assert counts == dict.fromkeys(kinds, 9 * 3)
