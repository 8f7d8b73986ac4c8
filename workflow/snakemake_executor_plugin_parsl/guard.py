"""Become COMMAND in a session of its own that ends when its starter does: `python guard.py COMMAND ARGUMENTS...`.

Nothing is left behind: an interchange without a driver would go on starting jobs, a job without a pilot would go on
writing. A session of its own keeps Ctrl-C for the driver, which takes the pilots away in order.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it ends, however that ends. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


if __name__ == "__main__":
    starter = os.getppid()
    os.setsid()
    die_with_parent()
    if os.getppid() != starter:  # it ended before the kernel was asked
        sys.exit(1)
    os.execvp(sys.argv[1], sys.argv[1:])
