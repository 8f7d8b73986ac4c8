"""Slurm: whether it answers and takes the jobs of a study, and the jobs that a killed driver has left there."""

import os
import pwd
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.site.check import Line, ask, minutes
from llm_sparsity.site.place import Place
from llm_sparsity.study.plan import requested_minutes

PATIENCE = 300  # seconds in which cancelled jobs must have ended; Slurm kills them after its KillWait, 30 by default
PAUSE = 1.0  # seconds between two looks
REMEMBERED = 180  # seconds; the plugin asks at least as often
UNITS = {"minutes": "minutes", "nodes": "nodes", "gpus": "GPUs a node", "cores": "cores a node", "memory": "MB a node"}


def cancel_left_over(jobs: Iterable[tuple[str, Sequence[str]]], patience: float = PATIENCE) -> None:
    """Cancel the Slurm jobs of this folder that make what `jobs` will make, and wait until they have ended.

    They outlive their driver, and what both make would have two writers. A driver holds the locks of its outputs when
    it calls this, so no living driver waits for those jobs.
    snakemake-executor-plugin-slurm writes a job's rule and wildcards into its comment.

    Args:
        jobs: rule and wildcards of each.
        patience: seconds to wait.

    Raises:
        UserError: jobs do not end.
    """
    comments = {_comment(rule, wildcards) for rule, wildcards in jobs}
    left = _queued(comments)
    if not left:
        return
    print(f"slurm: cancelling jobs of a killed driver: {', '.join(left)}", file=sys.stderr)
    ask("scancel", *left)
    deadline = time.monotonic() + patience
    while left := _queued(comments):
        if time.monotonic() > deadline:
            raise UserError(f"Slurm jobs {' '.join(left)} do not end; wait for them, or cancel them with scancel")
        time.sleep(PAUSE)


def _comment(rule: str, wildcards: Sequence[str]) -> str:
    return f"rule_{rule}_wildcards_{'_'.join(wildcards).replace('/', '_')}" if wildcards else f"rule_{rule}"


def _queued(comments: set[str]) -> list[str]:
    """Ids of this user's unfinished jobs that run in this folder and have one of the comments."""
    listed = ask("squeue", "--me", "--noheader", "--format=%i|%Z|%k")  # if it fails, sbatch does next
    jobs = [line.split("|", 2) for line in listed.output.splitlines()]
    return [number for number, folder, comment in jobs if comment in comments and Path(folder) == Path.cwd()]


def scheduler(place: Place) -> Line | None:
    """Whether the controller answers, and its version."""
    if place.batch != "Slurm":
        return None
    found = ask("sinfo", "--version")
    if found.code == 127:
        return Line("scheduler", found.error, "log in to a login node, or load the site's module of Slurm")
    answer = ask("scontrol", "ping")
    if answer.code != 0 or " UP" not in answer.output:
        return Line(
            "scheduler", f"Slurm does not answer: {answer.reason}", "log in to a login node; on one, repeat later"
        )
    return Line("scheduler", f"{found.output.strip()} answers; partitions: {len(_partitions())}")


def accounting(place: Place) -> Line | None:
    """Who tells the driver that a job has ended: the accounting database, or the controller while it remembers."""
    if place.batch != "Slurm" or place.pools:
        return None
    if ask("sacct", "-X").code == 0:
        return Line("accounting", "sacct answers")
    age = re.search(r"^MinJobAge\s*=\s*(\d+)", ask("scontrol", "show", "config").output, re.MULTILINE)
    if age is None:
        return Line("accounting", "neither sacct nor scontrol answers", known=False)
    text = f"no database; squeue remembers jobs for {age[1]} s (MinJobAge)"
    return Line("accounting", text, "" if int(age[1]) >= REMEMBERED else "ask the site to raise MinJobAge to 300")


def _user() -> str:
    """The name of this user; the number of one that the machine has no name for, as in some containers."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def account(place: Place) -> Line | None:
    """Whether the account is one of the user's."""
    if place.batch != "Slurm":
        return None
    name = (place.provider.account or "") if place.pools else place.resource("slurm_account")
    setting = "parsl-account" if place.pools else "slurm_account"
    listed = ask("sacctmgr", "-n", "-P", "-s", "list", "user", _user(), "format=account")
    known = sorted({line.strip() for line in listed.output.splitlines() if line.strip()})
    if name and known and name not in known:
        return Line("account", f"{name} is not yours", f"set {setting} to one of {', '.join(known)}")
    if not known:
        return Line("account", f"{name or 'none set'}; this site keeps no list: --submit", known=False)
    return Line("account", name or f"your default, of {', '.join(known)}")


def partition(place: Place) -> Line | None:
    """Whether the partition is up and takes the longest and the largest job of the study, or its pilots."""
    if place.batch != "Slurm":
        return None
    name = (place.provider.partition or "") if place.pools else place.resource("slurm_partition")
    setting = "parsl-queue" if place.pools else "slurm_partition"
    partitions = _partitions()
    if not partitions:
        return Line("partition", "unknown while Slurm does not answer", known=False)
    found = [each for each in partitions if each.name == name or (not name and each.default)]
    if not found:
        names = ", ".join(dict.fromkeys(each.name for each in partitions))
        return Line("partition", f"{name or 'no default one'}: not found", f"set {setting} to one of {names}")
    if all(each.state != "up" for each in found):
        return Line("partition", f"{found[0].name} is {found[0].state}", "wait for the site, or choose another")
    needs = _needs(place)
    lacks = [each.lacks(needs) for each in found]
    if all(lacks):
        # The profile may ask for less than the plan, in expressions.
        less = "set-resources" in place.settings and not place.pools
        fix = "" if less else f"choose another {setting}, or change the study"
        unless = ", unless set-resources of the profile says less" if less else ""
        return Line("partition", f"{found[0].name} {lacks[0]}{unless}", fix, known=not less)
    fits = next(each for each, lack in zip(found, lacks, strict=True) if not lack)
    return Line(
        "partition",
        f"{fits.name} is up: {fits.nodes} nodes of {fits.cores} cores, {fits.gpus} GPUs, {fits.memory / 1000:.0f} GB",
    )


@dataclass(frozen=True)
class Needs:
    """The most that one Slurm job asks for: minutes, nodes, and of a node GPUs, cores, and MB of memory."""

    minutes: float
    nodes: int
    gpus: int
    cores: int
    memory: int


def _needs(place: Place) -> Needs:
    if place.pools:
        provider = place.provider
        gpus, cores = provider.gpus_per_node or 0, provider.cores_per_node or 0
        return Needs(minutes(provider.walltime), provider.nodes_per_block, gpus, cores, 0)
    jobs = place.submitted
    threads = place.numbers("set-threads").values()
    return Needs(
        max((requested_minutes(job.minutes) for job in jobs), default=0),
        1,
        max((job.gpus for job in jobs), default=0),
        max(threads, default=1),
        max((job.memory for job in jobs), default=0),
    )


@dataclass(frozen=True)
class Partition:
    """Nodes of one kind in a partition."""

    name: str
    default: bool
    state: str
    minutes: float
    nodes: int
    gpus: int
    cores: int
    memory: int

    def lacks(self, needs: Needs) -> str:
        """What it lacks for a job; empty if the job fits."""
        for unit in ("minutes", "nodes", "gpus", "cores", "memory"):
            has, needed = getattr(self, unit), getattr(needs, unit)
            if has < needed:
                return f"has {has:.0f} {UNITS[unit]}, a job asks for {needed:.0f}"
        return ""


def _partitions() -> list[Partition]:
    """What `sinfo` lists, a line for each kind of nodes in a partition."""
    found = []
    for line in ask("sinfo", "--noheader", "--exact", "--format=%P|%a|%l|%D|%G|%c|%m").output.splitlines():
        name, state, limit, nodes, gres, cores, memory = line.split("|")
        gpus = sum(int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))
        found.append(
            Partition(
                name.rstrip("*"), name.endswith("*"), state, minutes(limit), int(nodes), gpus,
                int(cores.rstrip("+")), int(memory.rstrip("+")),
            )
        )  # fmt: skip
    return found
