"""Checks of this machine, where the driver runs, and of the folder of the study."""

import os
import re
import shutil
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llm_sparsity.jobs import driver
from llm_sparsity.jobs.lease import devices
from llm_sparsity.site.check import Line, ask
from llm_sparsity.site.place import Place
from llm_sparsity.study.footprint import FLOAT, WORK, model_size
from llm_sparsity.study.project import project

IMPORTED = "import torch, transformers, snakemake; print('torch', torch.__version__)"
TASKS = 30  # threads and processes of a driver
SOCKET = 70  # characters of a temporary folder; a socket's whole path has at most 107
TEMPORARY = 1e9  # bytes
SKEW = 5  # seconds
LOCAL = {"tmpfs", "ramfs"}  # in-memory file systems
SHARED = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "wekafs", "panfs", "pvfs2", "orangefs", "dvs", "virtiofs"}


def environment(place: Place) -> Line:
    """Whether the packages that run are installed, in the versions that were tested, and can be imported."""
    del place
    lock = project() / "envs/requirements.txt"
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", lock.read_text(), re.MULTILINE)
    other = [f"{name} {found}, not {pin}" for name, pin in pins if (found := _installed(name)) != pin]
    fix = f"pip install -r {lock}, or set up .venv: ./run -n"
    if other:
        more = f" and {len(other) - 3} others" if len(other) > 3 else ""
        return Line("environment", f"{', '.join(other[:3])}{more}", fix)
    imported = ask(sys.executable, "-c", IMPORTED)
    if imported.code != 0:
        return Line("environment", f"cannot be imported: {imported.reason[-200:]}", fix)
    return Line("environment", f"{imported.output.strip()}, all {len(pins)} packages as pinned")


def _installed(name: str) -> str:
    try:
        return version(name).partition("+")[0]  # 2.13.0+cpu is 2.13.0 built for CPUs
    except PackageNotFoundError:
        return "missing"


def gpus(place: Place) -> Line | None:
    """Whether this machine has the GPUs that the profile counts on. On a batch system, nodes have them."""
    if place.batch:
        return None
    found, wanted = len(devices()), place.numbers("resources", "gpu").get("gpu", 0)
    if found < wanted:
        return Line("GPUs", f"{found} here, {wanted} in {place.profile}", "set `gpu` of `resources` to those here")
    return Line("GPUs", f"{found} on this machine" if found else "none on this machine: jobs run on CPUs")


def temporary(place: Place) -> Line:
    """Whether the temporary folder is writable, has room, and a path that is short enough for sockets."""
    del place
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        return Line("TMPDIR", str(error), "export TMPDIR=FOLDER, one that exists and is writable")
    free = shutil.disk_usage(folder).free
    if len(folder) > SOCKET:
        return Line("TMPDIR", f"{folder} is too long for sockets", "export TMPDIR=/tmp")
    if free < TEMPORARY:
        return Line("TMPDIR", f"{free / 1e9:.1f} GB free in {folder}", "empty it, or export TMPDIR=FOLDER with more")
    return Line("TMPDIR", f"{folder}, {free / 1e9:.0f} GB free")


def folder(place: Place) -> Line | None:
    """Whether compute nodes see this folder."""
    if not place.batch:
        return None
    kind, mount = _file_system(Path.cwd(), Path("/proc/mounts").read_text())
    if kind in LOCAL:
        return Line("folder", f"{Path.cwd()} is in memory ({kind})", "work in a folder that compute nodes share")
    if kind in SHARED:
        return Line("folder", f"{kind} on {mount}, which nodes share")
    return Line("folder", f"{kind} on {mount}; whether nodes share it: --submit", known=False)


def _file_system(path: Path, mounts: str) -> tuple[str, str]:
    """Kind and mount point of the file system of a path, from the text of /proc/mounts."""
    found = [line.split()[1:3] for line in mounts.splitlines()]
    mount, kind = max((pair for pair in found if path.is_relative_to(pair[0])), key=lambda pair: len(pair[0]))
    return kind, mount


def disk(place: Place) -> Line:
    """Whether what is left of the study fits the disk, and the quotas of the user and the project that Lustre tells."""
    needed = sum(job.bytes for job in place.left)
    free, source = shutil.disk_usage(".").free, "free"
    number = re.match(r"\s*(\d+)", ask("lfs", "project", "-d", ".").output)
    owners = {"your": ["-u", str(os.getuid())]} | ({"the project's": ["-p", number[1]]} if number else {})
    for whose, owner in owners.items():
        quota = ask("lfs", "quota", "-q", *owner, ".").output
        if numbers := re.search(r"^\s*\S+\s+(\d+)\*?\s+\d+\s+(\d+)", quota):
            used, limit = (1024 * int(number) for number in numbers.groups())
            if limit and limit - used < free:  # 0: no limit
                free, source = max(0, limit - used), f"left of {whose} quota"
    runs = (run for run in place.study.cells().runs if not (run.folder / "metrics.json").exists())
    work = WORK * FLOAT * max((model_size(place.study, run.model)[0] for run in runs), default=0)
    at_work = f", and up to {work / 1e9:.1f} GB for each run at work" if work else ""
    text = f"{needed / 1e9:.1f} GB to come{at_work}, {free / 1e9:.0f} GB {source}"
    fix = "make room, or work elsewhere; llm-sparsity clean lists caches that no study needs"
    return Line("disk", text, "" if needed + work < free else fix)


def threads(place: Place) -> Line:
    """Whether this user may start as many threads as a driver has, and libraries are kept from more."""
    import resource

    limits = [limit for limit in (resource.getrlimit(resource.RLIMIT_NPROC)[0], _control_group()) if limit > 0]
    used = sum(_threads(entry) for entry in Path("/proc").glob("[0-9]*"))
    found = f"{used} in use, {min(limits)} allowed" if limits else f"{used} in use, no limit"
    if limits and min(limits) - used < TASKS:
        return Line("threads", found, f"a driver takes {TASKS}: end other processes, or use another login node")
    cores = os.cpu_count() or 1
    if place.batch and cores > TASKS and "OMP_NUM_THREADS" not in os.environ:
        return Line("threads", f"libraries start one on each of {cores} cores here", "export OMP_NUM_THREADS=1")
    return Line("threads", found)


def _threads(process: Path) -> int:
    """Threads of a process of this user; 0 for others."""
    try:
        return len(list((process / "task").iterdir())) if process.stat().st_uid == os.getuid() else 0
    except OSError:
        return 0


def _control_group() -> int:
    """The number of tasks that this process's control group allows; 0 if it does not limit them."""
    try:
        group = Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition(":")[2]
        return int((Path("/sys/fs/cgroup") / group.lstrip("/") / "pids.max").read_text())
    except (OSError, ValueError, IndexError):
        return 0


def clock(place: Place) -> Line:
    """Whether the clocks of this machine and of the folder's file system agree: Snakemake compares times of files."""
    del place
    try:
        with tempfile.TemporaryFile(dir=".") as file:  # without a name, gone at once
            file.write(b"x")
            file.flush()
            skew = os.fstat(file.fileno()).st_mtime - time.time()
    except OSError as error:
        return Line("clock", f"{Path.cwd()}: {error.strerror}", "work in a folder in which you may write")
    if abs(skew) > SKEW:
        return Line("clock", f"the file system's is {skew:+.0f} s apart", "tell the site, or use another login node")
    return Line("clock", "this machine and the file system agree")


def other_driver(place: Place) -> Line:
    """Whether another driver computes in this folder."""
    del place
    if holder := driver.holder():
        return Line("driver", f"{holder} computes in this folder", "wait for it, or stop it (if it ended: --unlock)")
    return Line("driver", "no other one in this folder")
