"""A job of five minutes on a node: whether the batch system accepts it, and what the node is like."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llm_sparsity.site.check import Line
from llm_sparsity.site.machine import SKEW, SOCKET
from llm_sparsity.site.place import Place
from llm_sparsity.study.project import LIBRARY

MINUTES = 5
FOLDER = Path("logs/doctor")
APPEARS = 60  # seconds until the file system shows what a node has written
PAUSE = 1.0  # seconds between two looks


def submit(place: Place) -> list[Line]:
    """Run the job and wait for it."""
    if not place.batch:
        return []
    if place.trouble:
        return [Line("job", "not submitted: see pools", known=False)]
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    report = FOLDER.absolute() / "node.json"
    command = (
        f"PYTHONPATH={shlex.quote(str(LIBRARY.parent))} python -m llm_sparsity.site.node {shlex.quote(str(report))}"
    )
    print(f"submitting a job of {MINUTES} minutes and waiting for it; Ctrl-C cancels it ...", file=sys.stderr)
    trouble = _pilot(place, command) if place.pools else _job(place, command)
    deadline = time.monotonic() + APPEARS
    while not trouble and not report.exists():
        if time.monotonic() > deadline:
            trouble = "the job has ended, but its file does not appear here: do nodes see this folder?"
        time.sleep(PAUSE)
    if trouble:
        return [Line("job", trouble, f"see {FOLDER}")]
    return [
        Line("job", "accepted; nodes share this folder, as its file appeared here"),
        *_judge(place, json.loads(report.read_text())),
    ]


def _pilot(place: Place, command: str) -> str:
    """Run a command as the profile's pilots are run; why it failed, or empty."""
    from parsl.launchers import SimpleLauncher
    from parsl.providers.errors import SubmitException

    provider: Any = place.provider
    provider.script_dir = str(FOLDER.absolute())
    provider.walltime, provider.launcher = f"00:{MINUTES:02d}:00", SimpleLauncher()
    try:
        job = provider.submit(command, 1, "doctor")
    except SubmitException as error:
        return " ".join(str(error).split())
    try:
        while not (status := provider.status([job])[0]).terminal:
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        provider.cancel([job])
        raise
    return "" if status.state.name == "COMPLETED" else f"{status.state.name.lower()}: {status.message or 'no reason'}"


def _job(place: Place, command: str) -> str:
    """Run a command as a Slurm job like those of the study; why it failed, or empty."""
    name = f"doctor-{os.getpid()}"
    words = ["sbatch", "--wait", f"--job-name={name}", f"--time={MINUTES}", "--nodes=1", "--mem=2000"]
    words.append(f"--output={FOLDER}/job.log")
    words += ["--gpus=1"] * any(job.gpus for job in place.submitted)
    for key in ("slurm_account", "slurm_partition", "qos", "constraint"):
        if value := place.resource(key):
            words.append(f"--{key.removeprefix('slurm_')}={value}")
    words += shlex.split(place.resource("slurm_extra"))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    try:
        waits = subprocess.Popen(
            [*words, f"--wrap={command}"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        return "sbatch: no such command; load Slurm's module, or work where Slurm is"
    try:
        output, error = waits.communicate()
    except KeyboardInterrupt:
        subprocess.run(["scancel", "--me", f"--name={name}"], check=False)
        raise
    return "" if waits.returncode == 0 else " ".join((error or output).split()) or f"exit code {waits.returncode}"


def _judge(place: Place, node: dict[str, Any]) -> list[Line]:
    """What the node is like, against what the study and this machine expect."""
    host = node["host"]
    wanted = max((job.gpus for job in place.submitted), default=0)
    found = f"{host}: {node['cores']} cores, {node['gpus']} GPUs, of which torch can use {node['usable_gpus']}"
    lacks = min(node["gpus"], node["usable_gpus"]) < min(1, wanted)
    skew = node["clock"] - (FOLDER / "node.json").stat().st_mtime
    here = {"python": platform.python_version(), "torch": version("torch")}
    other = [f"{name} {node[name]}, here {mine}" for name, mine in here.items() if node[name] != mine]
    return [
        Line("node", found, "request GPUs, and see whether this torch is built for the node's driver" if lacks else ""),
        Line(
            "node's Python",
            ", ".join(other) or f"Python {node['python']}, torch {node['torch']}",
            "activate the same environment on nodes (ENVIRONMENT in the pools)" if other else "",
        ),
        Line(
            "node's clock",
            f"{skew:+.0f} s from the file system's" if abs(skew) > SKEW else "agrees with the file system",
            "tell the site" if abs(skew) > SKEW else "",
        ),
        Line(
            "node's TMPDIR",
            node["temporary"],
            "export TMPDIR=/tmp in the job" if len(node["temporary"]) > SOCKET else "",
        ),
    ]
