"""What Slurm is asked."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llm_sparsity.site import slurm, submit
from llm_sparsity.site.place import place
from llm_sparsity.study import config
from tests.tiny import MOOD_STUDY


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as another user."""
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert slurm._user() == "root"
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    assert slurm._user() == str(2**31 - 7)


def test_the_job_of_five_minutes_is_submitted_as_those_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "sbatch").write_text('#!/bin/sh\necho "$@" >&2\nexit 1\n')
    (tmp_path / "sbatch").chmod(0o755)
    (tmp_path / "config.yaml").write_text(
        "executor: slurm\ndefault-resources:\n  slurm_account: a\n  slurm_partition: p\n  qos: q\n  constraint: c\n"
        "  slurm_extra: \"'--reservation=r --gres=gpu:1'\"\n"
    )
    said = submit._job(place(config.load(MOOD_STUDY), tmp_path), "true")
    assert " --account=a --partition=p --qos=q --constraint=c --reservation=r --gres=gpu:1 --wrap=true" in said


def test_ctrl_c_cancels_the_job_that_was_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("sbatch", "scancel"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/{name}.txt\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / "config.yaml").write_text("executor: slurm\n")

    where = place(config.load(MOOD_STUDY), tmp_path)
    communicate = subprocess.Popen.communicate

    def interrupted(waits: subprocess.Popen[str], *arguments: Any, **options: Any) -> tuple[str, str]:
        if "sbatch" in waits.args[0]:  # type: ignore[index, operator]
            waits.wait()
            raise KeyboardInterrupt
        return communicate(waits, *arguments, **options)

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit._job(where, "true")
    (name,) = re.findall(r"--job-name=(\S+)", (tmp_path / "sbatch.txt").read_text())
    assert (tmp_path / "scancel.txt").read_text().split() == ["--me", f"--name={name}"]


@pytest.mark.parametrize("caps", ["", "set-resources: {finetune: {mem_mb: 400}}\n"])
def test_a_profile_may_ask_for_less_than_the_plan(caps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "_partitions", lambda: [slurm.Partition("p", True, "up", 60, 1, 8, 64, 500)])
    (tmp_path / "config.yaml").write_text(f"executor: slurm\n{caps}")
    line = slurm.partition(place(config.load(MOOD_STUDY), tmp_path))
    assert line is not None
    assert "p has 500 " in line.found
    assert line.state == ("--" if caps else "TO DO")
