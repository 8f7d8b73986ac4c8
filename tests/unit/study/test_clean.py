import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_sparsity.cli.main import main
from llm_sparsity.jobs.process import this_process
from llm_sparsity.storage.files import sha256, write_csv, write_json
from llm_sparsity.study.cells import Run
from llm_sparsity.study.clean import leftovers, remove
from llm_sparsity.study.config import Config, load

WORK = Path("work")
TODAY = {"torch": version("torch")}


@pytest.fixture
def study(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return load(yaml.safe_load((root / "tests/config.yaml").read_text()))


def first(study: Config) -> Run:
    """The first run on SST-2, whose task overrides no setting."""
    return next(run for run in study.cells().runs if run.task == "sst2")


@pytest.fixture
def cached(study: Config) -> Callable[..., Path]:
    """`cached("name")` -> a finished cache of the study's first run on SST-2, with changes."""
    run = first(study)

    def make(name: str, *, finished: bool = True, **changes: Any) -> Path:
        folder = WORK / name
        settings = study.run_settings(run.task, run.recipe, run.seed) | changes.pop("settings", {})
        facts = {"settings": settings, "code": "now", "output": str(run.folder), "inputs": {}, "versions": TODAY}
        cached = facts | {"tokens": "t"} | changes
        write_json(folder / "run.json", cached)
        write_json(folder / "progress.json", {"weights": f"epoch-{settings['epochs']}" if finished else "step-1"})
        (folder / "epoch-1").mkdir()
        (folder / "epoch-1/model.safetensors").write_bytes(b"x" * 1000)
        index = WORK / "runs" / cached["output"].replace("/", "-") / "caches.json"
        write_json(index, [*(json.loads(index.read_text()) if index.exists() else []), name])
        return folder

    return make


def made(study: Config, cache: str, output: Path | None = None) -> None:
    """The results of the first run, made from a cache."""
    folder = output or first(study).folder
    write_csv(folder / "checkpoints.csv", [{"epoch": 1, "path": f"work/{cache}/epoch-1"}])


def found(*studies: Config, others: bool = False) -> dict[str, str]:
    listed = leftovers(WORK, studies, "now", others=others)
    return {leftover.path.name: leftover.reason for leftover in listed}


def test_what_a_study_would_continue_from_stays(study: Config, cached: Callable[..., Path]) -> None:
    cached("finished")
    cached("begun", finished=False)
    assert found(study) == found(study, others=True) == {}


def test_what_a_study_has_and_would_not_continue_from_is_listed(study: Config, cached: Callable[..., Path]) -> None:
    cached("settings", settings={"epochs": 99}, finished=False)
    cached("code", code="then")
    assert found(study) == {"settings": "another epochs", "code": "another code"}


def test_other_inputs_are_found_where_they_exist(study: Config, cached: Callable[..., Path]) -> None:
    model = Path(f"resources/models/{first(study).model}/manifest.json")
    write_json(model, {"source": {"hub": "a/b"}})
    cached("old", inputs={"model": "0"})
    cached("new", inputs={"model": sha256(model)})
    assert found(study) == {"old": "another model"}


def test_what_the_fine_tuned_dense_model_is_counts(study: Config, cached: Callable[..., Path]) -> None:
    run = next(run for run in study.cells().runs if study.recipe(run.recipe).needs_dense)
    dense = Path(f"results/{run.model}/dense/{run.task}/kept/seed-{run.seed}/model/manifest.json")
    write_json(dense, {})
    settings = study.run_settings(run.task, run.recipe, run.seed)
    cached("old", output=str(run.folder), settings=settings, inputs={"dense": "0"})
    cached("new", output=str(run.folder), settings=settings, inputs={"dense": sha256(dense)})
    assert found(study) == {"old": "another dense"}


def test_results_keep_the_cache_that_they_were_made_from(study: Config, cached: Callable[..., Path]) -> None:
    cached("code", code="then")
    made(study, "code")
    assert found(study) == {}
    assert found(study, others=True) == {"code": "another code"}
    cached("new")
    made(study, "new")
    assert found(study) == {"code": "another code"}


def test_a_cache_that_recipes_of_equal_settings_share_stays_for_either(
    study: Config, cached: Callable[..., Path]
) -> None:
    """The last one that used it is written in it, and may be gone."""
    run = first(study)
    cached("shared", output=str(run.folder.parents[1] / "mine" / "seed-0"))
    assert found(study) == {"shared": f"no study has {run.folder.parents[1]}/mine/seed-0"}
    made(study, "shared")
    assert found(study) == {}
    assert found(study, others=True) == {}


def test_a_study_that_is_not_given_loses_nothing(study: Config, cached: Callable[..., Path]) -> None:
    output = Path("results/mine/dense/task/kept/seed-0")
    cached("begun", output=str(output), finished=False)
    assert found(study) == found() == {}
    cached("finished", output=str(output))
    made(study, "finished", output)
    assert found(study) == {"begun": f"{output} was made anew"}
    assert set(found(study, others=True)) == {"begun", "finished"}


def test_a_finished_cache_without_study_and_results_is_listed(study: Config, cached: Callable[..., Path]) -> None:
    cached("gone", output="results/gone/dense/sst2/kept/seed-0")
    assert found(study) == {"gone": "no study has results/gone/dense/sst2/kept/seed-0"}


def test_of_two_studies_with_one_path_both_keep_their_caches(study: Config, cached: Callable[..., Path]) -> None:
    values = study.model_dump(exclude_none=True)
    longer = study.model_copy(update={"finetune": study.finetune.model_copy(update={"epochs": 9})})
    assert values["finetune"]["epochs"] != 9
    cached("short")
    cached("long", settings={"epochs": 9})
    assert found(study, longer) == found(longer, study) == {}
    assert found(longer) == {"short": "another epochs"}


def test_versions_of_libraries_count_once_the_results_were_made_anew(
    study: Config, cached: Callable[..., Path]
) -> None:
    cached("old", versions={"torch": "1"})
    assert found(study) == {}
    cached("new")
    made(study, "new")
    assert found(study) == {"old": f"{first(study).folder} was made anew"}


def test_the_weights_that_a_model_is_made_of_stay(study: Config, cached: Callable[..., Path]) -> None:
    cached("branch", code="then")
    cached("downloaded", code="then")
    values = yaml.safe_load((Path(__file__).parents[2] / "config.yaml").read_text())
    values["models"]["more"] = {"architecture": "decoder", "source": {"folder": "work/branch/epoch-1"}}
    write_json(Path("resources/models/x/manifest.json"), {"source": {"folder": "work/downloaded/epoch-1"}})
    assert found(load(values)) == {}
    assert set(found(study)) == {"branch"}


def test_a_run_that_is_going_on_stays(study: Config, cached: Callable[..., Path]) -> None:
    lock = cached("code", code="then") / "lock"
    (WORK / "tokens/new").mkdir(parents=True)
    lock.write_text(this_process())
    assert found(study, others=True) == {}  # nor its tokens, which it has not named yet
    os.utime(lock, (time.time() - 2 * 86400,) * 2)
    assert set(found(study)) == {"code", "new"}
    lock.write_text(json.dumps(json.loads(this_process()) | {"started": "1"}))  # killed
    assert set(found(study)) == {"code", "new"}


def test_tokens_stay_as_long_as_a_run_uses_them(study: Config, cached: Callable[..., Path]) -> None:
    cached("same", tokens="used")
    cached("code", code="then", tokens="unused")
    for name in ("used", "unused"):
        (WORK / "tokens" / name).mkdir(parents=True)
    assert set(found(study)) == {"code", "unused"}


def test_removing_removes_what_is_listed_and_all_that_speaks_of_it(study: Config, cached: Callable[..., Path]) -> None:
    cached("same", tokens="used")
    cached("code", code="then", tokens="unused")
    cached("cell", output="results/gone/dense/sst2/kept/seed-0", tokens="unused")
    for name in ("used", "unused"):
        (WORK / "tokens" / name).mkdir(parents=True)
    listed = leftovers(WORK, [study], "now")
    assert listed[0].bytes == sum(path.stat().st_size for path in listed[0].path.rglob("*") if path.is_file())
    remove(WORK, listed)
    assert sorted(path.name for path in WORK.iterdir()) == ["runs", "same", "tokens"]
    assert sorted(path.name for path in (WORK / "tokens").iterdir()) == ["used"]
    assert [json.loads(path.read_text()) for path in (WORK / "runs").rglob("*") if path.is_file()] == [["same"]]


def test_what_a_run_has_begun_to_use_since_it_was_listed_stays(study: Config, cached: Callable[..., Path]) -> None:
    used, unused = cached("used", code="then"), cached("unused", code="then")
    (WORK / "tokens/t").mkdir(parents=True)
    listed = leftovers(WORK, [study], "now")
    assert len(listed) == 3
    (used / "lock").write_text(this_process())
    assert [leftover.path for leftover in remove(WORK, listed)] == [unused]
    assert used.is_dir()
    assert (WORK / "tokens/t").is_dir(), "a run that starts has not named its tokens yet"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "required: studies"), (["none.yaml"], "none.yaml: not found"), (["bad.yaml"], "bad.yaml: no con")],
)
def test_the_command_needs_the_studies(arguments: list[str], said: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "bad.yaml").write_text("name: [")
    done = subprocess.run(
        [sys.executable, "-m", "llm_sparsity", "clean", "--delete", *arguments], cwd=tmp_path,
        env={"PYTHONPATH": str(root / "workflow")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [([], "nothing to remove; --all lists caches of other studies, too\n"), (["--all"], "nothing to remove\n")],
)
def test_an_empty_list_is_said(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    WORK.mkdir()
    main(["clean", "recovery", *options])
    assert capsys.readouterr().out == said


def test_settings_are_compared_as_they_were_written(study: Config) -> None:
    run = first(study)
    settings = study.run_settings(run.task, run.recipe, run.seed)
    assert json.loads(json.dumps(settings)) == settings
    assert "save_minutes" not in settings
