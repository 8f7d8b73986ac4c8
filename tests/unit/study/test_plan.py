import copy
import json
from pathlib import Path

import pytest
import yaml

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study import config, footprint, plan
from tests.tiny import MOOD_STUDY


@pytest.fixture
def study(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Config:
    """The report's study, in a folder in which nothing has run."""
    monkeypatch.chdir(tmp_path)
    footprint._model_size.cache_clear()
    plan._measured.cache_clear()
    return config.load(yaml.safe_load((root / "config.yaml").read_text()))


def test_the_default_study_is_counted(study: config.Config) -> None:
    jobs = plan.jobs(study)
    counts = {stage: sum(job.stage == stage for job in jobs) for stage in {job.stage for job in jobs}}
    assert counts == {"download": 5, "prune": 15, "weights": 3, "measure": 18, "finetune": 66}
    assert not any(job.done or job.measured for job in jobs)
    assert {job.stage for job in jobs if job.local} == {"download"}
    assert plan.minutes(study, "finetune", "gpt2", task="sst2")[0] == pytest.approx(25, abs=0.5)
    assert plan.minutes(study, "finetune", "gpt2", task="mrpc")[0] == pytest.approx(3, abs=0.5)


def test_a_text_is_counted_in_tokens(study: config.Config, root: Path) -> None:
    values = yaml.safe_load((root / "studies/recovery-text.yaml").read_text())
    (name,) = values["tasks"]
    paragraphs = values["tasks"][name]["limit"]["train"]
    a_row = footprint.ROW_BYTES / plan.TOKEN_BYTES / plan.SENTENCE_TOKENS
    assert plan.sentences(config.load(values), name) == pytest.approx(paragraphs * a_row)
    values["tasks"]["c4"] = values["tasks"][name] | {"limit": {"train": 4000}}
    values["tasks"][name]["train_on"] = "c4"
    text = config.load(values)
    assert plan.sentences(text, name) == pytest.approx(4000 * a_row)
    folder = Path("resources/tasks/c4")
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"rows": {"train": 9}, "files": {"train.jsonl": {"bytes": 1800}}}))
    assert plan.sentences(text, name) == pytest.approx(10)
    (folder / "manifest.json").write_text(json.dumps({"rows": {"test": 9}, "files": {"test.jsonl": {"bytes": 1800}}}))
    assert plan.sentences(text, name) == pytest.approx(4000 * a_row), "it will be downloaded again, with `train`"


@pytest.mark.parametrize(
    ("name", "keys", "rows"),
    [
        ("t", {}, plan.UNKNOWN_ROWS), ("t", {"limit": {"train": 50_000}}, 50_000), ("rte", {}, 2490),
        ("rte", {"limit": {"train": 50_000}}, 2490), ("rte", {"limit": {"train": 100}}, 100),
        ("rte", {"files": {"train": "t.csv"}, "split": {"validation": 490}}, 2000),
        ("t", {"pairs": {"train": 700, "validation": 70}}, 700),
        ("t", {"pairs": {"train": 700, "validation": 70}, "limit": {"train": 600}}, 600),
    ],
)  # fmt: skip
def test_rows_of_a_task_that_has_not_been_downloaded(name: str, keys: dict[str, object], rows: int) -> None:
    values = copy.deepcopy(MOOD_STUDY)
    values["study"][0]["tasks"] = [name]
    values["tasks"] = {name: values["tasks"]["mood"] | keys}
    assert plan.sentences(config.load(values), name) == rows


def test_scoring_takes_time_too(study: config.Config) -> None:
    """All splits beside train, after each epoch, and once without epochs."""
    untrained = study.model_copy(update={"finetune": study.finetune.model_copy(update={"epochs": 0})})
    folder = Path("resources/tasks/sst2")
    folder.mkdir(parents=True)
    rows = {"train": 9, "validation": 30_000, "test": 10_000}
    (folder / "manifest.json").write_text(json.dumps({"rows": rows}))
    scoring = 40_000 / 3 / plan.SAMPLES_PER_SECOND / 60
    assert plan.minutes(untrained, "finetune", "gpt2", task="sst2")[0] == pytest.approx(plan.SETUP_MINUTES + scoring)
    assert plan.minutes(study, "finetune", "gpt2", task="sst2")[0] == pytest.approx(
        plan.SETUP_MINUTES + 3 * scoring, abs=0.1
    )


def test_minutes_measured_on_a_gpu_replace_assumptions(study: config.Config) -> None:
    folder = Path("results/gpt2/dense/sst2/kept/seed-0")
    folder.mkdir(parents=True)
    seconds = {"setup_seconds": 30.0, "train_seconds": 500.0, "eval_seconds": 70.0}
    (folder / "runtime.json").write_text(json.dumps({**seconds, "device": "NVIDIA A100-SXM4-40GB"}))
    rows = plan.sentences(study, "sst2")
    settings = study.run_settings("sst2", "kept", 1)
    result = {"settings": settings, "examples": {"train": rows - 100, "unlabelled": 100, "validation": 9}}
    (folder / "metrics.json").write_text(json.dumps(result))
    assert plan.minutes(study, "finetune", "gpt2", task="sst2", measured=True) == (10.0, True)
    assert plan.minutes(study, "finetune", "bart-base", task="sst2", measured=True)[1] is False
    assert plan.minutes(study, "finetune", "gpt2", task="sst2")[1] is False, "results are read on request only"
    assert sum(job.done for job in plan.jobs(study)) == 1


def test_minutes_measured_on_a_cpu_are_ignored(study: config.Config) -> None:
    folder = Path("results/gpt2/dense/sst2/kept/seed-0")
    folder.mkdir(parents=True)
    (folder / "runtime.json").write_text(json.dumps({"train_seconds": 9e9, "device": "cpu"}))
    result = {"settings": study.run_settings("sst2", "kept", 0), "examples": {"train": plan.sentences(study, "sst2")}}
    (folder / "metrics.json").write_text(json.dumps(result))
    assert plan.minutes(study, "finetune", "gpt2", task="sst2", measured=True)[1] is False


@pytest.mark.parametrize("change", [{"settings": {"epochs": 30}}, {"examples": {"train": 9}}])
def test_minutes_of_runs_with_other_settings_are_not_those_of_a_job(
    change: dict[str, dict[str, int]], study: config.Config
) -> None:
    """A job that trains ten times as long would be ended at its walltime."""
    folder = Path("results/gpt2/dense/sst2/kept/seed-0")
    folder.mkdir(parents=True)
    (folder / "runtime.json").write_text(json.dumps({"train_seconds": 60, "device": "NVIDIA A100-SXM4-40GB"}))
    result = {"settings": study.run_settings("sst2", "kept", 0), "examples": {"train": plan.sentences(study, "sst2")}}
    result = {key: value | change.get(key, {}) for key, value in result.items()}
    (folder / "metrics.json").write_text(json.dumps(result))
    assert plan.minutes(study, "finetune", "gpt2", task="sst2", measured=True)[1] is False


@pytest.mark.parametrize(("metrics", "runtime"), [("{", "{}"), ("{}", "{}"), (None, None), (None, "{"), (None, "{}")])
def test_results_that_are_not_whole_tell_no_minutes(
    metrics: str | None, runtime: str | None, study: config.Config
) -> None:
    folder = Path("results/gpt2/dense/sst2/kept/seed-0")
    folder.mkdir(parents=True)
    result = {"settings": study.run_settings("sst2", "kept", 0), "examples": {"train": plan.sentences(study, "sst2")}}
    (folder / "metrics.json").write_text(metrics or json.dumps(result))
    if runtime is not None:
        (folder / "runtime.json").write_text(runtime)
    assert plan.minutes(study, "finetune", "gpt2", task="sst2", measured=True)[1] is False


@pytest.mark.parametrize("folder", ["models/gpt2", "tasks/sst2"])
def test_a_manifest_that_is_cut_off_is_one_line(folder: str, study: config.Config) -> None:
    path = Path("resources") / folder / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(UserError, match=f"{folder}/manifest.json: damaged"):
        plan.jobs(study)


def test_the_table_has_a_row_for_each_stage(study: config.Config) -> None:
    text = plan.table(study)
    for word in ("prune", "weights", "measure", "finetune", "GPU-hours", "GB of memory", "GB of disk", "assumed"):
        assert word in text
    assert "left: 107 jobs" in text
