"""A real Slurm on this machine's loopback: munged, slurmctld, and a slurmd for each of two nodes with four GPUs.

The GPUs are character devices of another kind, which Slurm counts and hands out like any. All files lie in one folder,
ports are free ones, and `stop` ends all daemons and their jobs.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
NODES = ("n1", "n2")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom")  # its GPUs: character devices that every machine has
ANSWERS = 300  # seconds in which daemons must have started
CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=20
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=3600
# of a busy machine
MessageTimeout=60
BatchStartTimeout=300
GresTypes=gpu
{nodes}
PartitionName=gpus Nodes={names} Default=YES MaxTime=01:00:00 State=UP
"""


def missing() -> str:
    """The reason for which Slurm cannot be started here; empty if it can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"{', '.join(absent)} not installed (Debian: slurm-wlm and munge)" if absent else ""


PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian puts the daemons


class Slurm:
    """The daemons, and the commands of their users.

    Args:
        folder: an empty folder with a short path: it holds a socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        self.environment = {**os.environ, "PATH": f"{folder}/bin:{PATH}", "SLURM_CONF": str(folder / "slurm.conf")}
        # The plugin removes SLURM_CONF before it calls srun, which then looks for the file in /etc.
        srun = f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n'
        (folder / "bin/srun").write_text(srun)
        (folder / "bin/srun").chmod(0o755)
        self.daemons: list[subprocess.Popen[bytes]] = []
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        ports = _free_ports(1 + len(NODES))
        lines = [
            f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs=8 "
            f"RealMemory=64000 Gres=gpu:{len(DEVICES)} State=UNKNOWN"
            for node, port in zip(NODES, ports[1:], strict=True)
        ]
        (folder / "slurm.conf").write_text(
            CONFIG.format(
                host=socket.gethostname(), port=ports[0], user=getpass.getuser(), folder=folder,
                nodes="\n".join(lines), names=",".join(NODES),
            )
        )  # fmt: skip
        gpus = [f"NodeName={node} Name=gpu File={device}\n" for node in NODES for device in DEVICES]
        (folder / "gres.conf").write_text("".join(gpus))
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o400)

    def start(self) -> None:
        """Start all daemons and wait until the nodes are idle."""
        here = self.folder
        names = {
            "key-file": "key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log",
            "seed-file": "munge.seed",
        }  # fmt: skip
        self._daemon("munged", "--foreground", "--force", *(f"--{key}={here}/{name}" for key, name in names.items()))
        self.wait((here / "munge.socket").exists)
        self._daemon("slurmctld", "-D", "-f", f"{here}/slurm.conf")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node, "-f", f"{here}/slurm.conf")
        self.wait(lambda: self.command("sinfo", "--noheader", "--format=%D %t").strip() == f"{len(NODES)} idle")

    def stop(self) -> None:
        """Cancel all jobs and end all daemons."""
        self.command("scancel", "--me", "--full", "--signal=KILL")
        self.command("scancel", "--me")
        with contextlib.suppress(AssertionError):
            self.wait(lambda: not self.command("squeue", "--noheader"), 20)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def command(self, *words: str) -> str:
        """The output of a command; empty if it fails or does not answer."""
        try:
            done = subprocess.run(
                words, env=self.environment, capture_output=True, text=True, timeout=60, check=False
            )  # a node that is drained lets clients wait for ever
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout if done.returncode == 0 else ""

    def jobs(self) -> dict[str, dict[str, str]]:
        """State, comment, requested resources and folder of all jobs, by id."""
        names = {
            "state": "%T", "comment": "%k", "gpus_of_node": "%b", "memory": "%m", "limit": "%l", "name": "%j",
            "nodes": "%D", "folder": "%Z",
        }  # fmt: skip
        form = "|".join(["%i", *names.values()])
        lines = self.command("squeue", "--states=all", "--noheader", f"--format={form}").splitlines()
        return {number: dict(zip(names, rest, strict=True)) for number, *rest in (line.split("|") for line in lines)}

    def wait(self, happened: Callable[[], object], seconds: float = ANSWERS) -> None:
        """Wait until something has happened."""
        deadline = time.monotonic() + seconds
        while not happened():
            dead = [daemon.args for daemon in self.daemons if daemon.poll() is not None]
            assert not dead, f"{dead} ended: {self.logs()}"
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)

    def logs(self) -> str:
        """The last lines of all daemons."""
        return "\n".join(f"== {log.name}\n{log.read_text()[-1500:]}" for log in sorted(self.folder.glob("*.log")))

    def _daemon(self, *command: str) -> None:
        self.daemons.append(
            subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )
        )  # fmt: skip


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
