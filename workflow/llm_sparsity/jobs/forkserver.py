"""A process that has imported the large libraries once; jobs of this machine are forks of it.

To import torch and transformers takes up to ten seconds of a core, and a study has dozens of jobs. A job starts as a
small client, which hands over its command, folder, environment and open files; it passes signals on, and ends as the
fork does. A client that is killed takes its fork along. The server ends after the process that started it.

Only on Linux, and only without GPUs: what an import may start there, such as CUDA, does not survive a fork.
"""

import atexit
import gc
import json
import multiprocessing
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from llm_sparsity.jobs import lease

VARIABLE = "LLM_SPARSITY_FORKSERVER"  # of the environment: the folder of the server's socket
LIBRARIES = (
    "torch", "torch._dynamo", "transformers.modeling_layers", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "accelerate", "datasets", "evaluate", "sklearn.metrics",
    "scipy.stats", "pandas", "pyarrow.parquet", "matplotlib.pyplot", "pydantic",
)  # fmt: skip
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
DIGITS = 12  # of the number of bytes of a message


class Job(NamedTuple):
    """What a client hands over, beside its standard output and standard error."""

    argv: list[str]
    folder: str
    environment: dict[str, str]


def start(libraries: Sequence[str] = LIBRARIES) -> None:
    """Start a server for the jobs of this process, which find it by their environment."""
    if sys.platform != "linux" or lease.devices():
        return
    folder = tempfile.mkdtemp(prefix="llm-sparsity-")  # of this user alone
    listening, (ours, theirs) = socket.socket(socket.AF_UNIX), socket.socketpair()
    with _address(folder) as address:
        listening.bind(address)
    listening.listen(socket.SOMAXCONN)
    with listening, theirs:
        subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(listening.fileno()), str(theirs.fileno()), folder, *libraries],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            pass_fds=(listening.fileno(), theirs.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # what a terminal sends is for the clients
        )
    ours.detach()  # open until this process ends
    os.environ[VARIABLE] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def load(libraries: Sequence[str] = LIBRARIES) -> None:
    """Import the libraries, those that are there. The garbage collector does not search them, here or in a fork."""
    gc.disable()
    for name in libraries:
        with suppress(ImportError):  # the job that needs it tells so
            import_module(name)
    if mapping := sys.modules.get("transformers.conversion_mapping"):
        mapping.get_checkpoint_conversion_mapping("bert")  # the first call compiles patterns, for half a second
    gc.freeze()
    gc.enable()


@contextmanager
def _address(folder: str) -> Iterator[str]:
    """The address of the socket in a folder, whose path may be longer than the 107 bytes of an address."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{descriptor}/socket"
    finally:
        os.close(descriptor)


def hand_over() -> None:
    """Run this process's script as a fork of the server, and end as that ends. Return if there is no server."""
    folder = os.environ.pop(VARIABLE, "")
    if not folder:
        return
    server = socket.socket(socket.AF_UNIX)
    try:
        with _address(folder) as address:
            server.connect(address)
    except OSError:  # it has ended, or is another machine's
        return
    message = json.dumps(Job(sys.argv, str(Path.cwd()), dict(os.environ))).encode()
    socket.send_fds(server, [f"{len(message):0{DIGITS}}".encode()], [1, 2])
    server.sendall(message)
    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _: server.sendall(bytes([received])))

    def stop(*_: object) -> None:  # Ctrl-Z
        server.sendall(bytes([signal.SIGSTOP]))
        os.kill(os.getpid(), signal.SIGSTOP)
        server.sendall(bytes([signal.SIGCONT]))

    if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
        signal.signal(signal.SIGTSTP, stop)
    status = server.recv(DIGITS)
    if not status:
        sys.exit("error: the process whose fork this job was has ended; repeat the snakemake command")
    if (code := int(status)) < 0:
        with suppress(OSError):  # SIGKILL
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def serve(listening: socket.socket, owner: socket.socket) -> None:
    """Fork for each job.

    Args:
        listening: the socket to which clients connect.
        owner: ends when the process that started the server does.
    """
    usual = {number: signal.signal(number, signal.SIG_IGN) for number in PASSED_ON}
    usual[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while owner not in select.select([listening, owner], [], [])[0]:
        with listening.accept()[0] as client:
            if os.fork() == 0:
                listening.close()
                owner.close()
                for number, handler in usual.items():
                    signal.signal(number, handler)
                _keep(client)
                os._exit(0)


def _keep(client: socket.socket) -> None:
    """Fork once more for the job, and tell the client how it ends."""
    length, files, *_ = socket.recv_fds(client, DIGITS, 2)
    message = b""
    while part := client.recv(int(length) - len(message)):
        message += part
    job = Job(*json.loads(message))
    fork = multiprocessing.get_context("fork").Process(target=_run, args=(job, files, client))
    fork.start()
    threading.Thread(target=_pass_on, args=(client, fork.pid), daemon=True).start()
    fork.join()
    with suppress(OSError):  # the client has ended
        client.sendall(str(fork.exitcode).encode())


def _pass_on(client: socket.socket, fork: int) -> None:
    """Send the signals that a client receives to its fork, and SIGKILL when the client is gone."""
    with suppress(ProcessLookupError):  # it has ended
        while numbers := client.recv(1):
            os.kill(fork, numbers[0])
        os.kill(fork, signal.SIGKILL)


def _run(job: Job, files: list[int], client: socket.socket) -> None:
    """Run a script with all that a process of its own would have."""
    client.close()
    for descriptor, file in enumerate(files, start=1):
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(job.environment)
    os.chdir(job.folder)
    tempfile.tempdir = None  # as TMPDIR may be another
    sys.argv = job.argv
    try:
        runpy.run_path(job.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a process of multiprocessing ends without


if __name__ == "__main__":
    load(sys.argv[4:])
    serve(socket.socket(fileno=int(sys.argv[1])), socket.socket(fileno=int(sys.argv[2])))
    shutil.rmtree(sys.argv[3], ignore_errors=True)
