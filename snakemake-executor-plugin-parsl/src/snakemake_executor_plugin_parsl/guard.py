"""Run a command that ends with its parent process, in a session of its own: `python guard.py COMMAND ARGUMENTS...`.

An interchange without a driver would keep starting jobs, and a job without a pilot would keep writing. In a session of
its own the command does not receive Ctrl-C: the driver does, and deletes the pilots in order.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when its parent ends for any reason. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


if __name__ == "__main__":
    parent = os.getppid()
    os.setsid()
    die_with_parent()
    if os.getppid() != parent:  # the parent ended before the kernel was asked
        sys.exit(1)
    os.execvp(sys.argv[1], sys.argv[1:])
