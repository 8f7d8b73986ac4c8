"""GPUs for one job of many on a machine: each is leased by a file lock, which the kernel takes back when the job ends.

Where a batch system or a pilot has given a job exactly the devices that it asked for, there is nothing to lease.
"""

import fcntl
import os
import tempfile
import time
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")  # one folder a device; asking the driver any other way takes a second


def lease(count: int) -> int:
    """Take up to `count` GPUs that no other job of this user holds, waiting for them, and hide the others.

    Call it before torch is imported. The lease lasts as long as this process, also when it becomes another program.

    Returns:
        How many it has: 0 on a machine without GPUs.
    """
    visible = devices()
    if len(visible) <= count or count == 0:
        return min(count, len(visible))
    folder = Path(tempfile.gettempdir()) / f"gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        taken: dict[str, int] = {}
        for device in visible:
            if len(taken) < count and (lock := _try(folder / f"{device.replace('/', '-')}.lock")) is not None:
                taken[device] = lock
        if len(taken) == count:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
            return count
        for lock in taken.values():
            os.close(lock)
        time.sleep(1)


def devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    return [str(number) for number, _ in enumerate(DRIVER.iterdir())] if DRIVER.is_dir() else []


def _try(path: Path) -> int | None:
    """The descriptor that holds a lock, or None if someone else has it."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    os.set_inheritable(lock, True)
    return lock
