"""A lock on a file system that several machines share: of results, run caches, tokens and downloads.

The owner touches the lock file every few seconds (its heartbeat). It counts as dead if its process has ended, which
only its own machine can see, or if the file does not change for some time by the waiting process's monotonic clock.
Clocks of two machines are never compared. Creating a file with O_EXCL is atomic on shared file systems too.

`filelock` has no heartbeat: its FileLock needs a file system with flock across machines, which clusters may switch off,
and the file of its SoftFileLock stays when the owner's machine fails.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.jobs.process import is_dead, this_process

PATIENCE = 60.0  # seconds without a heartbeat after which the owner counts as dead
BEAT = 5.0  # seconds between heartbeats


@contextmanager
def locked(path: Path, patience: float = PATIENCE) -> Iterator[Callable[[], None]]:
    """Hold a lock; wait for it while another process holds it. Yields a function that raises once the lock is lost.

    Args:
        path: the lock file; its folder is made.
        patience: seconds without a heartbeat after which the owner counts as dead.

    Raises:
        UserError: by the yielded function, if another process has taken the lock over.
    """
    owner = this_process()
    path.parent.mkdir(parents=True, exist_ok=True)
    _acquire(path, owner, patience)
    _remove_left(path)

    def assert_held() -> None:
        try:
            if path.read_text() == owner:
                return
        except FileNotFoundError:
            pass
        raise UserError(f"{path}: taken over by another copy of this job while this one was suspended; this one stops")

    try:
        with _heartbeat(path, assert_held):
            yield assert_held
    finally:
        try:
            assert_held()
            path.unlink()
        except UserError:
            pass


def _acquire(path: Path, owner: str, patience: float) -> None:
    """Create the lock file; wait for its owner, and take the lock over if the owner is dead."""
    seen, since, reported = None, time.monotonic(), False
    while True:
        try:
            with path.open("x") as file:
                file.write(owner)
            return
        except FileExistsError:
            pass
        try:
            found = (path.read_text(), path.stat().st_mtime_ns)
        except FileNotFoundError:
            continue
        if found != seen:
            seen, since = found, time.monotonic()
        if is_dead(found[0]) or time.monotonic() - since > patience:
            _take_over(path, found[0])
            continue
        if not reported:
            print(f"{path}: held by {found[0]}; waiting for it to end", file=sys.stderr)
            reported = True
        time.sleep(min(1.0, patience / 4))


@contextmanager
def _heartbeat(path: Path, assert_held: Callable[[], None]) -> Iterator[None]:
    """Touch a held lock file every few seconds, from a thread, until the block ends or the lock is lost."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            with suppress(OSError):  # a file system that does not answer for once is asked again
                try:
                    assert_held()
                except UserError:
                    return  # the owner's next assert_held raises
                os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _take_over(path: Path, dead: str) -> None:
    """Remove the lock of a dead owner.

    If two processes try, the second may rename the new lock of the first; it then restores that lock.
    """
    mine = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        path.rename(mine)
    except FileNotFoundError:
        return
    with suppress(FileNotFoundError):  # the new owner has removed it: see `_remove_left`
        if mine.read_text() == dead:
            mine.unlink()
        else:
            mine.rename(path)


def _remove_left(path: Path) -> None:
    """Remove what processes have left that were killed while they took the lock over."""
    for left in path.parent.glob(f"{path.name}.*"):
        with suppress(FileNotFoundError):
            if is_dead(left.read_text()):
                left.unlink()
