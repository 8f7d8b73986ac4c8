"""Tracking with a real tensorboard: what is told of a run, and that it changes nothing."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.files import read_json
from llm_sparsity.training import tracking
from llm_sparsity.training.finetune import finetune
from llm_sparsity.training.settings import FinetuneSettings

from .helpers import SHORT

RUN = "bert/magnitude-linear-0.9/mood/kept/seed-0"


def test_a_run_is_told_to_tensorboard_and_its_files_stay_the_same(
    variant: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, settings, files = variant("bert"), FinetuneSettings.from_dict(SHORT | {"mask": "released"}), []
    for tracker in (None, "tensorboard"):
        output = Path(str(tracker), "results", RUN)
        finetune(model, task, output, Path(str(tracker), "work"), settings, code="x", tracker=tracker)
        kept = sorted(path for path in output.rglob("*") if path.is_file() and path.name not in UNLIKE)
        files.append([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in kept])
    assert files[0] == files[1]
    assert len(files[0]) > 4

    told = EventAccumulator(str(tracking.FOLDER / RUN))
    told.Reload()
    assert {"loss", "learning_rate", "accuracy", "f1", "measured_sparsity", "train_loss"} <= set(told.Tags()["scalars"])
    assert [event.step for event in told.Scalars("loss")] == list(range(1, 9))
    assert [event.step for event in told.Scalars("accuracy")] == [4, 8]
    result = read_json(output / "metrics.json")
    assert told.Scalars("accuracy")[-1].value == pytest.approx(result["metrics"]["accuracy"])
    assert told.Scalars("measured_sparsity")[-1].value == pytest.approx(result["measured_sparsity"])
    assert {event.step for event in told.Scalars("measured_sparsity")} == set(range(1, 9))


UNLIKE = {"runtime.json", "checkpoints.csv"}  # times; folders of caches


def test_a_tracker_that_is_not_installed_is_one_line_before_any_work(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="tracker: found 'no_such_tracker', whose package is not installed; pip install"
    ):
        tracking.require("no_such_tracker")
    command = [sys.executable, root / "scripts/finetune.py", "--model", "m", "--task", "t", "--output", "o"]
    hidden = "import importlib.util as u, runpy, sys; f = u.find_spec; sys.argv = sys.argv[1:]; "
    hidden += "u.find_spec = lambda name, *a: None if name == 'wandb' else f(name, *a); "
    hidden += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", hidden, *command[1:], "--tracker", "wandb", "--settings", "{}"],
        cwd=tmp_path, env={"PYTHONPATH": str(root / "workflow")}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: tracker: found 'wandb', whose package is not installed")
    assert not list(tmp_path.iterdir())
