"""Both profiles for Slurm with the real one, on this machine's loopback (`real_slurm.py`)."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.once import once
from tests.tiny import MOOD_STUDY, save_mood_task

from .conftest import checkout
from .real_slurm import Slurm, missing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

HANGS = 900  # seconds after which a driver hangs; a busy machine takes its time
SNAKEFILE = """
import sys
rule all:
    input: expand("out/{job}", job=["good", "bad", "cancelled", "requeued"])
    localrule: True
rule run:
    output: "out/{job}"
    log: "logs/{job}.log"
    resources: gpu=1, runtime=7, mem_mb=1100, disk_mb=100
    params: python=sys.executable
    shell: "{params.python} job.py {wildcards.job} {output} > {log} 2>&1"
"""
JOB = """
import os, sys, time
from pathlib import Path
name, output = sys.argv[1:]
with open("begun", "a") as file:
    file.write(f"{name} {os.environ['SLURMD_NODENAME']}/{os.environ['CUDA_VISIBLE_DEVICES']}\\n")
if name == "bad":
    sys.exit("error: loss: is nan at step 3")
while name in ("cancelled", "requeued") and not Path("go-on").exists():
    time.sleep(0.1)
Path(output).write_text("x")
"""
RUN = "results/bert/magnitude-all-0.9/mood/kept/seed-0"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # the path of a socket is short
    slurm = Slurm(folder)
    try:
        try:
            slurm.start()
        except AssertionError as error:
            if all(daemon.poll() is None for daemon in slurm.daemons):
                raise
            pytest.skip(f"Slurm does not start on this machine: {error}")
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Driver:
    """Snakemake in a folder, with a profile."""

    def __init__(self, slurm: Slurm, folder: Path, root: Path, *arguments: str) -> None:
        self.slurm = slurm
        self.log = folder / f"driver-{len(list(folder.glob('driver-*.log')))}.log"
        paths = f"{root / 'workflow'}:{root / 'snakemake-executor-plugin-parsl/src'}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "snakemake", "--latency-wait", "10", *arguments],
                cwd=folder, env=slurm.environment | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def said(self) -> str:
        return self.log.read_text()

    def wait(self, happened: Callable[[], object]) -> None:
        """Wait until something has happened, while the driver runs."""
        try:
            self.slurm.wait(lambda: happened() or self.process.poll() is not None, HANGS)
        except AssertionError as error:
            raise AssertionError(f"{self.said()}\n{error}") from None
        assert happened(), self.said()

    def end(self, code: int) -> str:
        try:
            assert self.process.wait(timeout=HANGS) == code, self.said()
        finally:
            self.kill()
        return self.said()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()


def of_rules(slurm: Slurm, folder: Path) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Jobs of a folder by rule and wildcards: id and attributes of each, in the order of submission."""
    found: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for number, job in sorted(slurm.jobs().items(), key=lambda item: int(item[0])):
        if job["folder"] == str(folder):
            found.setdefault(job["comment"].removeprefix("rule_").replace("_wildcards_", " "), []).append((number, job))
    return found


def asks_often(profile: str) -> tuple[str, ...]:
    """A profile whose driver asks Slurm for its jobs every few seconds; they end within seconds here."""
    return "--profile", profile, "--slurm-init-seconds-before-status-checks", "2"


def test_a_job_that_fails_one_that_is_cancelled_and_one_that_is_requeued(
    slurm: Slurm, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "job.py").write_text(JOB)
    begun = tmp_path / "begun"
    driver = Driver(slurm, tmp_path, root, *asks_often(str(root / "profiles/slurm")))
    try:
        driver.wait(lambda: begun.exists() and len(begun.read_text().splitlines()) == 4)
        devices = [line.split()[1] for line in begun.read_text().splitlines()]
        assert len(set(devices)) == 4, "a GPU of its own for each job"
        ids = {name: number for name, ((number, _),) in of_rules(slurm, tmp_path).items()}
        slurm.command("scancel", ids["run cancelled"])
        slurm.command("scontrol", "requeue", ids["run requeued"])
        driver.wait(lambda: begun.read_text().count("requeued") == 2)
        (tmp_path / "go-on").touch()
        said = driver.end(1)
    finally:
        driver.kill()
    jobs = {name: job for name, ((_, job),) in of_rules(slurm, tmp_path).items()}
    assert {name: job["state"] for name, job in jobs.items()} == {
        "run good": "COMPLETED", "run bad": "FAILED", "run cancelled": "CANCELLED", "run requeued": "COMPLETED",
    }  # fmt: skip
    good = jobs["run good"]
    assert (good["memory"], good["limit"], good["nodes"]) == ("1100M", "7:00", "1")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good", "requeued"]
    assert f"SLURM-job '{ids['run cancelled']}' failed, SLURM status is: 'CANCELLED'" in said
    assert "logs/bad.log" in said


@pytest.fixture
def study(root: Path, tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the project with the study."""
    folder = tmp_path / "study"
    folder.mkdir()
    checkout(root, folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(MOOD_STUDY))
    shutil.copytree(tiny_model("bert"), folder / "model", ignore=shutil.ignore_patterns("manifest.json"))
    save_mood_task(folder / "task")
    (folder / "task/manifest.json").unlink()
    return folder


def check(study: Path, factory: pytest.TempPathFactory) -> None:
    """Check that a study is finished, with the same weights as by the other profile, whose test may have run first."""
    assert (study / "reports/tiny/report.html").exists()
    weights = study / RUN / "model/model.safetensors"
    first = once("slurm-weights", factory, lambda folder: shutil.copy(weights, folder)) / weights.name
    assert weights.read_bytes() == first.read_bytes(), "both profiles make the same bytes"


@pytest.mark.exhaustive
def test_a_study_whose_driver_is_killed_and_started_again(
    slurm: Slurm, root: Path, study: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The job of the killed driver goes on. The next driver ends it before it starts the same one."""
    name = "finetune bert_magnitude-all-0.9_mood_kept_0"
    driver = Driver(slurm, study, root, *asks_often("profiles/slurm"))
    try:
        driver.wait(lambda: of_rules(slurm, study).get(name, [("", {"state": ""})])[0][1]["state"] == "RUNNING")
        ((first, _),) = of_rules(slurm, study)[name]
        slurm.command("scontrol", "suspend", first)  # it does not end before the driver does
    finally:
        driver.kill()
    assert of_rules(slurm, study)[name][0][1]["state"] == "SUSPENDED"
    said = Driver(slurm, study, root, *asks_often("profiles/slurm")).end(0)
    assert f"slurm: cancelling jobs of a killed driver: {first}\n" in said
    jobs = of_rules(slurm, study)
    assert [job["state"] for _, job in jobs[name]] == ["CANCELLED", "COMPLETED"]
    assert [job["state"] for _, job in jobs["prune bert_magnitude-all-0.9"]] == ["COMPLETED"]
    check(study, tmp_path_factory)


def test_a_study_in_pilots_on_whole_nodes_of_which_one_is_taken_away(
    slurm: Slurm, root: Path, study: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pools = study / "profiles/slurm-nodes/pools.py"
    text = pools.read_text()
    for before, after in (
        ("GPUS = 4 ", "GPUS = 2 "),
        ("CORES = 64 ", "CORES = 8 "),
        ("address_by_hostname()", '"127.0.0.1"'),
        (
            '"source {shlex.quote(str(Path.cwd()))}/.venv/bin/activate"',
            f'"export PATH={Path(sys.executable).parent}:$PATH"',
        ),
        ('cpu_affinity="block"', 'cpu_affinity="none"'),  # Slurm's eight cores of a node are fewer here
        ("strategy_period=10", "strategy_period=1"),
    ):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    pools.write_text(text)
    arguments = ("--profile", "profiles/slurm-nodes", "--parsl-nodes", "2", "--parsl-status", "2")
    driver = Driver(slurm, study, root, *arguments)

    def pilots() -> dict[str, dict[str, str]]:
        return {
            number: job
            for number, job in slurm.jobs().items()
            if job["name"].startswith("parsl.") and job["folder"] == str(study)
        }

    try:
        driver.wait(lambda: list(study.glob("logs/finetune/**/*.log")))
        (first,) = pilots()
        slurm.command("scancel", first)  # as a preemption ends it
        said = driver.end(0)
    finally:
        driver.kill()
    assert "restart 1 of at most 5" in said
    assert "of 4 slots busy" in said, "of two nodes with two GPUs each"
    assert len(pilots()) == 2, "another one in its place"
    for pilot in pilots().values():
        assert (pilot["nodes"], pilot["gpus_of_node"]) == ("2", "gres:gpu:2")
    # the first by this test, the other with the last job; it is completing for a while
    slurm.wait(lambda: [pilot["state"] for pilot in pilots().values()] == ["CANCELLED"] * 2)
    check(study, tmp_path_factory)


def test_the_doctor_on_a_healthy_and_on_a_broken_site(slurm: Slurm, root: Path, study: Path) -> None:
    profile = study / "profiles/slurm/config.yaml"

    def doctor(*arguments: str) -> tuple[int, str]:
        words = [sys.executable, "-m", "llm_sparsity", "doctor", "--profile", "profiles/slurm", *arguments]
        done = subprocess.run(
            words, cwd=study, env=slurm.environment | {"PYTHONPATH": str(root / "workflow"), "OMP_NUM_THREADS": "1"},
            text=True, capture_output=True, check=False, timeout=HANGS,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout

    _, said = doctor("--submit")
    lines = {line[7:22].strip(): line for line in said.splitlines() if line[:2] in ("OK", "TO", "--")}
    for subject, found in {
        "scheduler": "answers; partitions: 1", "partition": "gpus is up: 2 nodes of 8 cores, 4 GPUs, 64 GB",
        "accounting": "no database; squeue remembers jobs for 3600 s", "job": "accepted; nodes share this folder",
        "node's Python": "Python 3.", "node's clock": "agrees",
    }.items():  # fmt: skip
        assert lines[subject].startswith("OK"), said
        assert found in lines[subject]
    assert "1 GPUs, of which torch can use 0" in lines["node"], "the GPUs of this Slurm are none"
    profile.write_text(profile.read_text().replace("# slurm_partition: gpu ", "slurm_partition: other "))
    slurm.command("scontrol", "update", "PartitionName=gpus", "State=DOWN")
    code, said = doctor()
    slurm.command("scontrol", "update", "PartitionName=gpus", "State=UP")
    assert code == 1
    assert "other: not found" in said
    assert "→ set slurm_partition to one of gpus" in said
