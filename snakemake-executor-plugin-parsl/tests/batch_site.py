"""A folder with a workflow, pools and a batch system: pilots run on this machine or under the stand-in for PBS."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parent / "src"
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
if kind == "save":
    def save(*_):
        Path("saved").write_text(str(os.getpid()))
        os._exit(1)
    signal.signal(signal.SIGTERM, save)
note("begin")
if kind == "bad":
    sys.exit("error: loss: is nan at step 3")
if kind == "oom":
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "node":
    here, bad = os.environ["PARSL_WORKER_BLOCK_ID"], Path("bad-node").read_text()
    events = lambda: [line.split() for line in Path("events").read_text().splitlines()]
    if here == bad:  # fails while another node works
        while not [slot for event, _, slot, *_ in events() if not slot.startswith(f"{bad}/")]:
            time.sleep(0.05)
        note("fail")
        sys.exit(9)
    while [event for event, *_ in events()].count("fail") < 2:
        time.sleep(0.05)
while kind in ("long", "save") and not Path("short").exists():
    time.sleep(0.05)
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
POOLS = """
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SimpleLauncher, SingleNodeLauncher
from parsl.providers import LocalProvider
from snakemake_executor_plugin_parsl import pools
from snakemake_executor_plugin_parsl.pbs import PBSProvider

pools.LEAVE = pools.FAST = pools.PATIENCE = {hangs}  # a busy machine takes its time
config = Config(
    executors=[
        HighThroughputExecutor(
            label="gpu", address="127.0.0.1", available_accelerators={slots}, max_workers_per_node={slots},
            cores_per_worker=0.01, heartbeat_period=1, heartbeat_threshold={threshold}, drain_period={seconds},
            cpu_affinity="{affinity}", provider={provider},
        )
    ],
    strategy="htex_auto_scale", strategy_period=0.5, max_idletime=60, run_dir="pilots",
)
"""
ON_THIS_MACHINE = "LocalProvider(init_blocks=0, max_blocks={pilots}, worker_init={worker_init!r})"
UNDER_PBS = """PBSProvider(
                account="p", queue="preemptable", nodes_per_block=1, init_blocks=0, max_blocks={pilots},
                walltime="01:00:00", cpus_per_node=64, select_options="system=polaris", poll_seconds=1, patience=1,
                scheduler_options="#PBS -l filesystems=home:eagle\\n#PBS -k doe\\n#PBS -r n",
                launcher=SimpleLauncher(), worker_init={worker_init!r},
            )"""


def until(happened: Callable[[], object], say: Callable[[], object] = str, seconds: float = HANGS) -> None:
    """Wait for an event; fail with what `say` returns if it does not happen."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, say()
        time.sleep(0.1)


class Site:
    """A folder with a workflow, pools, and a batch system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "pbs"
        tools = folder / "bin"
        self.temporary = Path(tempfile.mkdtemp(prefix="node-"))  # of nodes; a short name, for sockets
        for made in (self.state, tools, folder / "home"):
            made.mkdir()
        for name in ("qsub", "qstat", "qdel", "preempt"):
            program = HERE / "standin_pbs.py"
            (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} -I {program} {name} "$@"\n')
            (tools / name).chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "PYTHONPATH": str(SOURCES),
            "STANDIN_PBS": str(self.state),
            "STANDIN_QUEUES": str(HERE / "queues.csv"),
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",
        }
        (folder / "Snakefile").write_text(SNAKEFILE)
        (folder / "job.py").write_text(JOB)
        self.drivers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End what a test has left running."""
        for pid in [*(driver.pid for driver in self.drivers if driver.poll() is None), *self.processes()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        shutil.rmtree(self.temporary, ignore_errors=True)  # some of them end meanwhile, and remove theirs

    def pools(
        self, provider: str, *, pilots: int = 1, slots: int = 2, worker_init: str = "", seconds: int | None = None,
        affinity: str = "none", threshold: int = 10 * HANGS,
    ) -> None:  # fmt: skip
        """Write a configuration file. Jobs start only where they fit into `seconds` of a pilot; None: always.

        A pilot is lost after `threshold` seconds without a heartbeat; by default never, as a busy machine misses some.
        """
        setup = (
            f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={SOURCES} TMPDIR={self.temporary}\numask 022"
        )
        chosen = provider.format(pilots=pilots, worker_init=f"{setup}\n{worker_init}")
        (self.folder / "pools.py").write_text(
            POOLS.format(
                slots=slots, provider=chosen, seconds=seconds, affinity=affinity, threshold=threshold, hangs=HANGS
            )
        )

    def start(self, jobs: str, *arguments: str, after: str = "") -> subprocess.Popen[str]:
        """Start Snakemake, alone in a process group, with a shell command after it, such as "| tee log"."""
        self.log = self.folder / f"driver-{len(self.drivers)}.log"
        command = shlex.join([
            sys.executable, "-m", "snakemake", "--executor", "parsl", "--parsl-config", "pools.py", "--parsl-status",
            "2", "--jobs", "50", "--keep-going", "--rerun-incomplete", "--latency-wait", "20", "--scheduler", "greedy",
            "--quiet", "rules", *arguments, "--config", f"jobs={jobs}",
        ])  # fmt: skip
        with self.log.open("w") as log:
            driver = subprocess.Popen(
                # a shell's background jobs ignore SIGINT, and so would their children
                ["env", "--default-signal=INT,HUP", "sh", "-c", f"{command} {after}" if after else f"exec {command}"],
                cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            )  # fmt: skip
        self.drivers.append(driver)
        return driver

    def calls(self, command: str) -> int:
        """How often a command of the batch system was called."""
        file = self.state / "calls"
        return file.read_text().split().count(command) if file.exists() else 0

    def wait_for_calls(self, command: str, more: int) -> None:
        """Wait until a command of the batch system was called so many times more."""
        before = self.calls(command)
        self.wait(lambda: self.calls(command) >= before + more)

    def unlock(self) -> None:
        """What a user does who takes a living driver for a dead one."""
        self.command(sys.executable, "-m", "snakemake", "-s", str(self.folder / "Snakefile"), "-d", str(self.folder),
                     "--unlock", "--config", "jobs=ok-1")  # fmt: skip

    def leftovers(self) -> list[str]:
        """Locks of Snakemake, files of drivers, and temporary files on nodes."""
        places = {".snakemake/locks": "*", "pilots": "driver-*.json"}
        found = [path for place, pattern in places.items() for path in (self.folder / place).glob(pattern)]
        return [path.name for path in [*found, *self.temporary.iterdir(), *(self.folder / "home").glob("*.nodes")]]

    def run(self, jobs: str, *arguments: str, code: int = 0) -> str:
        assert self.end(self.start(jobs, *arguments)) == code, self.said()
        return self.said()

    def end(self, driver: subprocess.Popen[str]) -> int:
        """The exit code of a driver; one that hangs prints what each of its threads does."""
        try:
            return driver.wait(timeout=HANGS)
        except subprocess.TimeoutExpired:
            os.killpg(driver.pid, signal.SIGABRT)
            driver.wait()
            pytest.fail(f"the driver hangs:\n{self.said()}")

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
        until(happened, self.said, seconds)

    def processes(self) -> list[int]:
        """Running processes that were started for this site, except drivers."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    home = f"HOME={self.folder / 'home'}".encode()
                    state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                    if home in (entry / "environ").read_bytes().split(b"\0") and state != "Z":
                        found.append(int(entry.name))
                except OSError:
                    continue
        return [pid for pid in found if pid not in [driver.pid for driver in self.drivers]]
