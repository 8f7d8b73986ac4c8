"""After a failure or a kill: the reason is on the terminal, the same command goes on. Names of any kind do no harm."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from llm_sparsity.jobs.driver import record
from tests.marks import slow

from .conftest import ODD, Project, checkout, copied

DOWNLOAD = "resources/models/m/manifest.json"
WAIT = "    import time; time.sleep(3600)\n"


@pytest.fixture
def small(root: Path, hub: Path, tiny_model: Callable[[str], Path], tmp_path: Path) -> Project:
    """A study of one tiny model with RANDOM weights, which lies in a folder of this machine; nothing has run yet."""
    folder = tmp_path / ODD
    folder.mkdir()
    checkout(root, folder)
    shutil.copytree(tiny_model("roberta"), folder / "mine" / ODD)
    project = Project(folder, hub)
    study = {
        "name": "small",
        "study": [{"models": ["m"], "sparsities": [0.5], "measure": False}],
        "models": {"m": {"architecture": "encoder", "source": {"folder": f"mine/{ODD}"}}},
        "tasks": {},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(study, allow_unicode=True))
    return project


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


@pytest.mark.exhaustive
def test_claims_and_published_values_with_odd_names(finished: Project, tmp_path: Path) -> None:
    project = copied(finished, tmp_path / ODD)
    claims, numbers, published = f"-{ODD}/-claims.yaml", f"-{ODD}/-{{numbers.csv", f"-{ODD}/-p.csv"
    (project.folder / claims).parent.mkdir()
    for file, target in (("report/claims.yaml", claims), ("report/numbers.csv", numbers), ("published.csv", published)):
        shutil.copy(project.folder / "studies" / file, project.folder / target)
    project.edit(claims, lambda text: text.replace("numbers: numbers.csv", "numbers: '-{numbers.csv'"))
    project.configure(lambda values: values.update(claims=claims, published=published))
    (project.folder / "reports/tiny/tables/claims.csv").unlink()
    project.run()
    assert "Removing 10 % costs nothing" in (project.folder / "reports/tiny/tables/claims.csv").read_text()
    assert project.pending() == []
    project.edit(numbers, lambda text: text + "\n")
    assert project.pending() == ["collect", "plot"]


@pytest.mark.parametrize(
    ("fault", "arguments"),
    [
        ("message", ("--cores", "1")),
        slow("killed", ("--cores", "1")),
        pytest.param("traceback", ("--cores", "1"), marks=pytest.mark.exhaustive),
        pytest.param("message", ("--profile", "profiles/node"), marks=pytest.mark.exhaustive),
        pytest.param("message", ("--cores", "1", "--quiet", "rules"), marks=pytest.mark.exhaustive),
    ],
)
def test_the_reason_of_a_failed_job_is_the_last_line(fault: str, arguments: tuple[str, ...], small: Project) -> None:
    code, reason = {
        "message": (
            "    from llm_sparsity.jobs.errors import UserError; raise UserError('m: {no} 100%')\n",
            "m: {no} 100%",
        ),
        "traceback": ("    1 / 0\n", "ZeroDivisionError: division by zero"),
        "killed": ("    import os; os.kill(os.getpid(), 9)\n", "it ended without a message"),
    }[fault]
    small.edit(
        "scripts/download.py", lambda source: source.replace("def main() -> None:\n", f"def main() -> None:\n{code}")
    )
    left = small.folder / "logs/prune/m/magnitude-all-0.5.log"
    left.parent.mkdir(parents=True)
    left.write_text("error: of an earlier run")
    done = small.snakemake("--configfile", "config.yaml", *arguments)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: download_model m: {reason}")
    assert last.endswith("; see logs/download/models/m.log")
    assert not left.exists(), "it tells nothing of a job that has not started"


@pytest.mark.slow
def test_jobs_in_another_process_read_the_config_that_the_run_started_with(small: Project) -> None:
    """A rule with `run:` is read again by a process of its own, as all are on nodes."""
    small.folder = small.folder.rename(small.folder.with_name("plain"))  # Snakemake quotes no other for such a process
    (small.folder / "own.smk").write_text(
        'include: "Snakefile"\n'
        'rule edit:\n    output: "edited"\n'
        '    shell: "sed -i s/0.5/0.6/ config.yaml; printenv LLM_SPARSITY_LEASE > {output}"\n'
        'rule seen:\n    input: "edited"\n    output: "seen"\n'
        "    run: Path(output[0]).write_text(f'{STUDY.study[0].sparsities[0]} {STUDY.name}')\n"
    )
    done = small.snakemake("--snakefile", "own.smk", "--cores", "1", "--config", "name=other", "--", "seen")
    assert done.returncode == 0, said(done)[-4000:]
    assert "0.6" in (small.folder / "config.yaml").read_text()
    assert (small.folder / "seen").read_text() == "0.5 other"
    assert (small.folder / "edited").read_text() == "1\n", "jobs that run here take turns on GPUs"


@pytest.mark.slow
def test_after_a_kill_the_same_command_goes_on(small: Project) -> None:
    small.edit(
        "scripts/download.py", lambda source: source.replace("def main() -> None:\n", f"def main() -> None:\n{WAIT}")
    )
    command = ("--configfile", "config.yaml", "--cores", "1", DOWNLOAD)
    with subprocess.Popen(
        [sys.executable, "-m", "snakemake", *command], cwd=small.folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    ) as driver:  # fmt: skip
        try:
            until(lambda: list((small.folder / ".snakemake/locks").glob("owner-*")))
            until((small.folder / "logs/download/models/m.log").exists)
            refused = small.snakemake(*command, LLM_SPARSITY_RUN="1")  # as ./run starts it
            assert refused.returncode != 0
            assert re.findall("^error: .*|^.*LockException.*", said(refused), re.MULTILINE) == [
                f"error: process {driver.pid} on {os.uname().nodename} computes in this folder; "
                "wait for it or stop it (if it ended unseen: the same command with --unlock)"
            ]
        finally:
            os.killpg(driver.pid, signal.SIGKILL)
    small.edit("scripts/download.py", lambda source: source.replace(WAIT, ""))
    (small.folder / "resources/models/m").mkdir(parents=True, exist_ok=True)
    (small.folder / "resources/models/m/model.safetensors").write_bytes(b"half")  # of the killed job
    done = small.snakemake(*command)
    assert done.returncode == 0, said(done)[-4000:]
    assert f"unlocked: process {driver.pid} of an earlier run" in done.stderr
    assert json.loads((small.folder / DOWNLOAD).read_text())["kind"] == "model"


@pytest.mark.slow
def test_a_batch_job_on_one_node_ends_before_its_walltime_and_leaves_no_lock(small: Project) -> None:
    small.edit(
        "scripts/download.py", lambda source: source.replace("def main() -> None:\n", f"def main() -> None:\n{WAIT}")
    )
    with subprocess.Popen(
        ["bash", "profiles/node/job.sh"], cwd=small.folder,
        env=os.environ | {"PBS_O_WORKDIR": str(small.folder), "PATH": f"{Path(sys.executable).parent}:{os.defpath}"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as job:  # fmt: skip
        try:
            until((small.folder / "logs/download/models/m.log").exists)
            job.send_signal(signal.SIGALRM)  # as the timer of `timeout` does, which the script has become
            output, _ = job.communicate(timeout=900)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 124, output
    assert not list((small.folder / ".snakemake/locks").glob("*"))


@pytest.mark.slow
def test_the_same_command_with_unlock_removes_the_locks(small: Project) -> None:
    locks = small.folder / ".snakemake/locks"
    locks.mkdir(parents=True)
    record(locks)  # of this process, which lives
    done = small.snakemake("--configfile", "config.yaml", "--cores", "1", "--unlock", LLM_SPARSITY_RUN="1")
    assert done.returncode == 0, said(done)
    assert not locks.exists()


def until(condition: Callable[[], object]) -> None:
    for _ in range(9000):  # a busy machine takes its time
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


@pytest.mark.exhaustive
def test_a_folder_of_a_model_counts_by_what_is_read_of_it(small: Project) -> None:
    assert small.snakemake("--configfile", "config.yaml", "--cores", "2").returncode == 0
    source = small.folder / "mine" / ODD
    assert small.pending() == []
    (source / "notes.txt").write_text("not read")
    for path in source.iterdir():
        os.utime(path)
    assert small.pending() == []
    for name in ("config.json", "manifest.json"):  # of which the latter says what the model was pruned and trained by
        path = source / name
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | {"_name": "edited"}))
        os.utime(path, (0, 0))  # a file that was moved here keeps its old time
        assert small.pending() == [
            "collect", "download_model model=m", "plot", "prune model=m pruned=magnitude-all-0.5",
            "weights model=m variant=dense",
        ]  # fmt: skip
        path.write_text(before)
        assert small.pending() == []


@pytest.mark.slow
def test_a_folder_that_is_gone_ends_before_any_job(small: Project) -> None:
    (small.folder / "mine").rename(small.folder / "yours")
    done = small.snakemake("--configfile", "config.yaml", "--cores", "1")
    assert done.returncode != 0
    reason = f"models.m.source.folder: found {f'mine/{ODD}'!r}, which is no folder"
    assert f"error: {reason}" in said(done)
    assert not (small.folder / "logs").exists()


@pytest.mark.slow
def test_settings_of_any_length(small: Project) -> None:
    labels = [f"it's label {number}" for number in range(3000)]
    (small.folder / "mine/rows.csv").write_text("text,label\n" + "".join(f"text,{label}\n" for label in labels))
    task = {
        "kind": "classification", "source": {"folder": "mine"}, "text": "text", "label": "label", "labels": labels,
        "files": {"train": "rows.csv", "validation": "rows.csv"},
    }  # fmt: skip
    small.configure(lambda values: values.update(tasks={"t": task}))
    command = ("--configfile", "config.yaml", "--cores", "1", "resources/tasks/t/manifest.json")
    done = small.snakemake(*command)
    assert done.returncode == 0, said(done)[-4000:]
    assert "Nothing to be done" in said(small.snakemake(*command))


@pytest.mark.slow
def test_results_of_earlier_runs_are_not_taken_for_those_of_this_one(small: Project) -> None:
    (small.folder / "results/m/dense").mkdir(parents=True)
    (small.folder / "reports/small").mkdir(parents=True)
    (small.folder / "reports/small/summary.txt").write_text("An earlier answer")
    (small.folder / "own.smk").write_text(
        'include: "Snakefile"\nrule quick:\n    output: "quick"\n    shell: "touch {output}"\n'
    )
    for warned in (True, False):
        done = small.snakemake("--snakefile", "own.smk", "--cores", "1", "--forceall", "--", "quick")
        assert done.returncode == 0, said(done)[-4000:]
        assert ("results/ came without .snakemake/" in said(done)) == warned
        assert "An earlier answer" not in said(done)
