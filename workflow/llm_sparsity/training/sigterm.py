"""SIGTERM, which a batch system sends before it kills a job: the run saves and exits."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accelerate import Accelerator

EXIT_CODE = 128 + signal.SIGTERM  # of a process that SIGTERM ended


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Keep SIGTERM from ending the process; gives a function that returns whether it has arrived."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may handle signals
        return
    arrived = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.set())
    try:
        yield arrived.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(accelerator: Accelerator) -> None:
    """Exit after a save.

    Raises:
        SystemExit: with the exit code of SIGTERM.
    """
    if accelerator.is_main_process:
        print("SIGTERM: everything is saved; the same command goes on from here", file=sys.stderr)
    accelerator.end_training()
    raise SystemExit(EXIT_CODE)
