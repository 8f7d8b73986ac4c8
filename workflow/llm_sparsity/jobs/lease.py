"""GPU leases: jobs on one machine reserve GPUs by file locks, which the kernel releases when the process ends.

A job that a batch system or a pilot has confined, by CUDA_VISIBLE_DEVICES, to the GPUs it asks for takes no lease. One
that a driver runs on its own machine does, also if the driver is confined: it sets LLM_SPARSITY_LEASE.
"""

import fcntl
import os
import sys
import time
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")  # one folder a device; a query of the driver takes a second


def lease(count: int) -> int:
    """Reserve GPUs that no other job of this user holds, and hide the others; wait until enough are free.

    Call it before torch is imported. The lease lasts as long as the process and is inherited through `exec`.

    Args:
        count: number of GPUs to reserve (fewer if the machine has fewer).

    Returns:
        The number of GPUs reserved: 0 on a machine without GPUs.
    """
    visible = devices()
    confined = "CUDA_VISIBLE_DEVICES" in os.environ and "LLM_SPARSITY_LEASE" not in os.environ
    if count >= len(visible) and confined:
        return len(visible)
    count = min(count, len(visible))
    if count == 0:
        return 0
    # Not `tempfile.gettempdir()`, which is another folder while this one is full: all jobs have to see the same locks.
    temporary = next(Path(path) for path in (os.environ.get("TMPDIR"), "/tmp") if path and Path(path).is_dir())
    folder = temporary / f"gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    waits = False
    while True:
        taken: dict[str, int] = {}
        for device in visible:
            if len(taken) < count and (lock := _acquire(folder / f"{device.replace('/', '-')}.lock")) is not None:
                taken[device] = lock
        if len(taken) == count:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
            return count
        for lock in taken.values():
            os.close(lock)
        if not waits:
            print(f"waiting for {count} of {len(visible)} GPUs, which other jobs hold", file=sys.stderr)
            waits = True
        time.sleep(1)


def devices() -> list[str]:
    """The GPUs visible to this process, by their names in CUDA_VISIBLE_DEVICES."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    return [str(number) for number, _ in enumerate(DRIVER.iterdir())] if DRIVER.is_dir() else []


def _acquire(path: Path) -> int | None:
    """The file descriptor of an acquired lock; None if another process holds the lock."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    os.set_inheritable(lock, True)  # held through exec, which filelock's descriptors are not
    return lock
