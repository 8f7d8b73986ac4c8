"""The executor plugin with real Snakemake and Parsl; pilots run on this machine or under the stand-in for PBS."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from .conftest import Project

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ends processes by a call of Linux")

HANGS = 900  # seconds after which a process hangs; a busy machine takes its time

# Every job appends a line when it begins and one when it ends: event, name, slot, process, time.
SNAKEFILE = """
import sys
rule all:
    input: expand("out/{job}", job=config["jobs"].split("+"))
    localrule: True
rule run:
    output: "out/{job}"
    log: "logs/{job}.log"
    resources:
        gpu=1,
        runtime=lambda wildcards: int(wildcards.job.split("-")[1])
    params:
        python=sys.executable
    shell: "{params.python} job.py {wildcards.job} {output} > {log} 2>&1"
"""
JOB = """
import os, signal, sys, time
from pathlib import Path
name, output = sys.argv[1:]
kind, number, *_ = name.split("-")
def note(event):
    with open("events", "a") as file:
        slot = os.environ.get("PARSL_WORKER_BLOCK_ID", "") + "/" + os.environ.get("CUDA_VISIBLE_DEVICES", "")
        file.write(f"{event} {name} {slot} {os.getpid()} {time.time()}\\n")
note("begin")
if kind == "bad":
    sys.exit("error: loss: is nan at step 3")
if kind == "oom":
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "node" and os.environ["PARSL_WORKER_BLOCK_ID"] == Path("bad-node").read_text():
    sys.exit(9)
if kind == "node":
    time.sleep(1)
if kind == "long" and not Path("short").exists():
    time.sleep(60)
if kind == "late":
    if os.fork() == 0:
        os.setsid()
        time.sleep(6)
        Path(output).write_text("x")
    os._exit(0)
time.sleep(0.2)
Path(output).write_text(str(os.getpid()))
note("end")
"""
LOCAL = """
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from snakemake_executor_plugin_parsl.pbs import wait_for_pilots

config = Config(
    executors=[
        HighThroughputExecutor(
            label="gpu", address="127.0.0.1", available_accelerators={slots}, max_workers_per_node={slots},
            cores_per_worker=0.01, heartbeat_period=1, heartbeat_threshold=6, block_error_handler=wait_for_pilots,
            provider={provider},
        )
    ],
    strategy="htex_auto_scale", strategy_period=0.5, max_idletime=60, run_dir="pilots",
)
"""
ON_THIS_MACHINE = 'LocalProvider(init_blocks=0, max_blocks={pilots}, worker_init="{worker_init}")'
UNDER_PBS = """__import__("snakemake_executor_plugin_parsl.pbs", fromlist=["x"]).PBSProvider(
                account="p", queue="preemptable", nodes_per_block=1, init_blocks=0, max_blocks={pilots},
                walltime="01:00:00", cpus_per_node=64, select_options="system=polaris", poll_seconds=1, patience=1,
                scheduler_options="#PBS -l filesystems=home:eagle\\n#PBS -k doe\\n#PBS -r n",
                worker_init={worker_init!r},
            )"""


class Site:
    """A folder with a workflow, pools, and a batch system."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self.state = folder / "pbs"
        tools = folder / "bin"
        for made in (self.state, tools, folder / "home"):
            made.mkdir()
        for name in ("qsub", "qstat", "qdel", "preempt"):
            program = root / "tests/workflow/standin_pbs.py"
            (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} -I {program} {name} "$@"\n')
            (tools / name).chmod(0o755)
        (tools / "mpiexec").write_text(f'#!/bin/sh\nexec {sys.executable} -I {root}/tests/standin_mpiexec.py "$@"\n')
        (tools / "mpiexec").chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "PYTHONPATH": str(root / "workflow"),
            "STANDIN_PBS": str(self.state),
            "STANDIN_QUEUES": str(root / "profiles/polaris/queues.csv"),
            "OMP_NUM_THREADS": "1",
        }
        (folder / "Snakefile").write_text(SNAKEFILE)
        (folder / "job.py").write_text(JOB)
        self.drivers: list[subprocess.Popen[str]] = []

    def pools(self, provider: str, pilots: int = 1, slots: int = 2, worker_init: str = "") -> None:
        setup = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={self.root / 'workflow'} TMPDIR=/tmp"
        worker_init = f"{setup}\\numask 022\\n{worker_init}" if provider == UNDER_PBS else worker_init
        chosen = provider.format(pilots=pilots, worker_init=worker_init.replace("\\n", "\n"))
        (self.folder / "pools.py").write_text(LOCAL.format(slots=slots, provider=chosen))

    def start(self, jobs: str, *arguments: str) -> subprocess.Popen[str]:
        self.log = self.folder / f"driver-{len(self.drivers)}.log"
        with self.log.open("w") as log:
            driver = subprocess.Popen(
                [  # a shell's background jobs ignore SIGINT, and so would their children
                    "env", "--default-signal=INT", sys.executable, "-m", "snakemake", "--executor", "parsl",
                    "--parsl-config", "pools.py", "--parsl-status", "2", "--jobs", "50", "--keep-going",
                    "--rerun-incomplete", "--latency-wait", "20", "--scheduler", "greedy", "--quiet", "rules",
                    *arguments, "--config", f"jobs={jobs}",
                ],
                cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            )  # fmt: skip
        self.drivers.append(driver)
        return driver

    def run(self, jobs: str, *arguments: str, code: int = 0) -> str:
        driver = self.start(jobs, *arguments)
        assert driver.wait(timeout=HANGS) == code, self.said()
        return self.said()

    def said(self) -> str:
        return self.log.read_text()

    def events(self, kind: str) -> list[list[str]]:
        file = self.folder / "events"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [line[1:] for line in lines if line[0] == kind]

    def jobs(self) -> dict[str, dict]:
        return {file.stem: json.loads(file.read_text()) for file in self.state.glob("[0-9]*.json")}

    def command(self, *words: str) -> None:
        subprocess.run(words, env=self.environment, check=False, capture_output=True)

    def wait(self, happened: Callable[[], object], seconds: float = HANGS) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def processes(self) -> list[int]:
        """Running processes that were started for this site, except drivers."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    home = f"HOME={self.environment['HOME']}".encode()
                    state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                    if home in (entry / "environ").read_bytes().split(b"\0") and state != "Z":
                        found.append(int(entry.name))
                except OSError:
                    continue
        return [pid for pid in found if pid not in [driver.pid for driver in self.drivers]]


@pytest.fixture
def site(root: Path, tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, root)
    yield site
    for pid in [*(driver.pid for driver in site.drivers if driver.poll() is None), *site.processes()]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    shutil.rmtree(tmp_path / "pilots", ignore_errors=True)


def test_jobs_fill_devices_longest_first_and_a_failure_leaves_others_alone(site: Site) -> None:
    site.pools(ON_THIS_MACHINE)
    said = site.run("late-1+ok-2+ok-3+ok-4+bad-5+oom-6", code=1)
    assert sorted(path.name for path in (site.folder / "out").iterdir()) == ["late-1", "ok-2", "ok-3", "ok-4"]
    begun = [name for name, *_ in site.events("begin")]
    assert set(begun[:2]) == {"bad-5", "oom-6"}
    assert set(begun[2:4]) == {"ok-4", "ok-3"}
    assert {slot for _, slot, *_ in site.events("begin")} == {"0/0", "0/1"}
    times = {name: float(when) for name, *_, when in site.events("end")}
    for slot in ("0/0", "0/1"):  # one job a device at a time
        spans = sorted((float(when), times[name]) for name, where, _, when in site.events("begin")
                       if where == slot and name in times)  # fmt: skip
        assert all(first[1] <= second[0] for first, second in pairwise(spans))
    assert re.search(r"run bad-5 failed: loss: is nan at step 3, on \S+ after \d+ s; see logs/bad-5.log, ", said)
    assert "run oom-6 failed: killed (SIGKILL), most likely out of memory" in said
    assert (
        re.search(r"parsl: \d+ queued, \d+ running, \d of 6 done, 2 failed, 0 preempted", said) or "of 6 done" in said
    )
    assert not (site.folder / "pilots/driver-alive").exists()
    site.wait(lambda: not site.processes(), 15)
    assert "pilots up" not in site.run("ok-2+ok-3", "--forcerun", "all"), "local jobs need no pilot"


@pytest.mark.slow
def test_pilots_that_pbs_takes_away_are_replaced_and_their_runs_go_on(site: Site) -> None:
    """At first the queue is full and JSON invalid; then one pilot is preempted, the next exceeds its walltime."""
    site.pools(UNDER_PBS)
    (site.state / "limit").write_text("0")
    (site.state / "broken-json").touch()
    driver = site.start("long-3+ok-1")
    site.wait(lambda: "PBS accepts no more jobs now" in site.said())
    time.sleep(3)
    assert site.said().count("PBS accepts no more jobs now") == 1, "printed once"
    (site.state / "limit").write_text("5")
    site.wait(lambda: len(site.events("begin")) == 2)
    (name,) = site.jobs()
    site.command("preempt", name)
    site.wait(lambda: [job for job, *_ in site.events("begin")].count("long-3") == 2)
    assert "preempted" in site.said()
    assert "restart 1 of at most 5" in site.said()
    (site.state / "walltime").write_text("1")
    (site.folder / "short").touch()
    site.wait(lambda: len(site.jobs()) == 3)
    (site.state / "walltime").unlink()
    assert driver.wait(timeout=60) == 0, site.said()
    assert "its walltime is exceeded" in site.said()
    assert [job for job, *_ in site.events("begin")].count("long-3") == 3
    assert [job for job, *_ in site.events("end")].count("long-3") == 1
    assert oct((site.folder / "out/ok-1").stat().st_mode)[-3:] == "644"
    site.wait(lambda: {job["job_state"] for job in site.jobs().values()} == {"F"}, HANGS)


def test_a_refused_qsub_ends_the_run_with_its_output(site: Site) -> None:
    site.pools(UNDER_PBS)
    pools = site.folder / "pools.py"
    pools.write_text(pools.read_text().replace("preemptable", "small"))
    said = site.run("ok-1", code=1)
    assert "qsub refuses: qsub: Access to queue is denied" in said
    assert not site.events("begin")


@pytest.mark.slow
def test_a_job_that_pbs_loses_is_reported_and_replaced_a_few_times(site: Site) -> None:
    """prod accepts 10 nodes for 24 hours and returns an id, but the job does not exist."""
    site.pools(UNDER_PBS)
    pools = site.folder / "pools.py"
    text = pools.read_text().replace("preemptable", "prod").replace("nodes_per_block=1", "nodes_per_block=10")
    pools.write_text(text.replace("01:00:00", "24:00:00"))
    said = site.run("ok-1", code=1)
    assert "PBS accepted it and no longer knows it" in said
    assert "3 pilots in a row ended" in said


@pytest.mark.slow
def test_a_queued_pilot_is_waited_for_and_ctrl_c_deletes_all(site: Site) -> None:
    site.pools(UNDER_PBS, pilots=2, slots=1)
    (site.state / "queue-seconds").write_text("3")
    driver = site.start("long-3+long-2")
    site.wait(lambda: len(site.jobs()) == 2)
    first, second = sorted(site.jobs())
    site.state.joinpath(f"never-{second}").touch()
    site.wait(lambda: "1 pilots up, 1 in the queue, 1 of 1 slots busy" in site.said())
    time.sleep(3)
    assert driver.poll() is None
    assert len(site.jobs()) == 2, "no third one is submitted"
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(timeout=HANGS) != 0
    site.wait(lambda: [job["job_state"] for job in site.jobs().values()] == ["F", "F"], HANGS)
    site.wait(lambda: not site.processes(), HANGS)
    assert first in site.jobs()


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_and_the_next_one_finds_no_second_writer(site: Site) -> None:
    site.pools(UNDER_PBS, slots=1)
    driver = site.start("long-3+ok-1")
    site.wait(lambda: site.events("begin"))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    (first,) = site.jobs()
    site.command(sys.executable, "-m", "snakemake", "-s", str(site.folder / "Snakefile"), "-d", str(site.folder),
                 "--unlock", "--config", "jobs=ok-1")  # fmt: skip
    (site.folder / "short").touch()
    said = site.run("long-3+ok-1")
    assert "an earlier run was killed; waiting" in said
    begun = [(name, int(pid), float(when)) for name, _, pid, when in site.events("begin")]
    assert [name for name, *_ in begun].count("long-3") == 2
    assert [name for name, *_ in begun].count("ok-1") == 1, "a job that the first driver had not started ran once"
    assert not Path(f"/proc/{begun[0][1]}").exists(), "the first writer has ended"
    assert len(site.events("end")) == 2
    assert site.jobs()[first]["job_state"] == "F"


@pytest.mark.slow
def test_a_pilot_killed_outright_loses_no_job(site: Site) -> None:
    """Its manager cannot report anything, as when a node goes down."""
    site.pools(ON_THIS_MACHINE, slots=1)
    driver = site.start("long-2")
    site.wait(lambda: site.events("begin"))
    (site.folder / "short").touch()
    managers = [pid for pid in site.processes() if b"process_worker_pool" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in managers:
        os.kill(pid, signal.SIGKILL)
    assert driver.wait(timeout=60) == 0, site.said()
    assert "restart 1 of at most 5" in site.said()
    (writer,) = [pid for _, _, pid, _ in site.events("begin")][:1]
    assert not Path(f"/proc/{writer}").exists()


@pytest.mark.slow
def test_pilots_that_end_at_once_are_given_up(site: Site) -> None:
    site.pools(ON_THIS_MACHINE, worker_init="echo no such module >&2; exit 1")
    said = site.run("ok-1", code=1)
    assert "3 pilots in a row ended before a worker connected" in said
    assert "no such module" in said


@pytest.mark.slow
def test_an_interchange_that_dies_ends_the_run_and_its_pilots(site: Site) -> None:
    site.pools(UNDER_PBS, slots=1)
    driver = site.start("long-3")
    site.wait(lambda: site.events("begin"))
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    (interchange,) = [int(pid) for pid in children if b"HTEX interchange" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(interchange, signal.SIGKILL)
    assert driver.wait(timeout=40) == 1, site.said()
    assert "error: the interchange of pool gpu has died" in site.said()
    site.wait(lambda: [job["job_state"] for job in site.jobs().values()] == ["F"], HANGS)


@pytest.mark.slow
def test_jobs_of_a_bad_node_are_moved(site: Site) -> None:
    site.pools(ON_THIS_MACHINE, pilots=2, slots=2)
    (site.folder / "bad-node").write_text("0")
    said = site.run("+".join(f"node-{number}" for number in range(1, 7)))
    assert len(list((site.folder / "out").iterdir())) == 6
    assert "is held back" in said


def polaris(site: Site, hub: Path, root: Path, gpus: int, **mine: object) -> str:
    """Run the dense and a pruned model of the tiny study with the profile for Polaris, from download to report."""
    folder = site.folder / "study"
    for name in ("workflow", "scripts", "envs", "profiles", "studies"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "Snakefile", folder)
    values = yaml.safe_load((root / "tests/config.yaml").read_text())
    sparsities = [0, 0.9] if gpus == 1 else [0]
    values["study"] = [{"models": ["roberta-base"], "sparsities": sparsities, "tasks": ["sst2"], "measure": False}]
    values["models"]["roberta-base"] |= {"gpus": gpus, "accelerate": "fsdp"}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    pools = folder / "profiles/polaris/pools.py"
    text = pools.read_text()
    path = f"{Path(sys.executable).parent}:{site.folder / 'bin'}"
    mine |= {
        "ACCOUNT": "p", "QUEUE": "debug", "INTERFACE": "lo",
        "ENVIRONMENT": f"export PATH={path}:$PATH PYTHONPATH={folder / 'workflow'}",
    }  # fmt: skip
    for name, value in mine.items():
        text = re.sub(rf"^{name} = .*", f"{name} = {value!r}", text, flags=re.MULTILINE)
    if gpus > 1:  # one worker GPU per node; torch finds none, so each process uses a CPU
        text = re.sub(r'\["0.*?3"\]', '["0"]', text)
    pools.write_text(re.sub(r'"list:[^"]*"', '"none"', text).replace("strategy_period=30", "strategy_period=1"))
    environment = site.environment | {"PYTHONPATH": str(folder / "workflow")}
    done = Project(folder, hub).snakemake("--profile", "profiles/polaris", "--set-threads", "finetune=1", **environment)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Read reports/tiny/report.html" in said
    site.wait(lambda: {job["job_state"] for job in site.jobs().values()} == {"F"}, HANGS)
    return said


@pytest.mark.slow
def test_the_profile_for_polaris_runs_a_study(site: Site, hub: Path, root: Path) -> None:
    """Two runs of the tiny study in one pilot under the stand-in for PBS."""
    said = polaris(site, hub, root, gpus=1, NODES=1)
    assert "Plan of tiny" in said
    assert "5 jobs in pools" in said
    assert len(site.jobs()) == 1


@pytest.mark.slow
def test_a_run_over_two_nodes_by_config(site: Site, hub: Path, root: Path) -> None:
    """Its batch job has two nodes and one manager, on the first; a stand-in for mpiexec starts it on both."""
    polaris(site, hub, root, gpus=2, NODES=2)
    scripts = {script.stem: script.read_text() for script in site.state.glob("*.sh")}
    (mine,) = [name for name, script in scripts.items() if "parsl.nodes" in script]
    assert "#PBS -l select=2:ncpus=64:system=polaris\n" in scripts[mine]
    assert len(scripts) == 2, "a second batch job for jobs that need no node of their own"
    study = site.folder / "study"
    assert len(list(study.glob("logs/parsl/000/nodes/block-0/*/manager.log"))) == 1
    (log,) = study.glob("logs/finetune/**/seed-0.log")
    assert log.read_text().count("stand-in for mpiexec: 2 times") == 1
    assert "--num_machines 2" in log.read_text()
    assert "--accelerate fsdp" in log.read_text()
    (runtime,) = study.glob("results/**/seed-0/runtime.json")
    assert json.loads(runtime.read_text())["processes"] == 2
