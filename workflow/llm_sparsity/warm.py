"""Many small runs: a process that has imported everything forks a child for each of them.

Importing torch and transformers takes longer than a small run does on a GPU. A script that is told to (`--warm`) hands
its arguments, environment, working folder and open files to a process on this machine that waits for them, and ends as
the child that this process forks ends. The first script starts the process; after some idle seconds it goes. Each run
has its own memory, output, failure and signals, as if it had been started alone. The waiting process never touches a
GPU. Scripts of other code, another Python or another user have a process of their own.
"""

import gc
import hashlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

IMPORTS = ("llm_sparsity.finetune", "llm_sparsity.metric", "transformers.models.auto.tokenization_auto",
           "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert")  # fmt: skip
START = 120  # seconds that a new process has for its imports
forked = False  # whether this process is such a child


def call(idle: int, code: str, imports: Sequence[str] = IMPORTS) -> int | None:
    """Run this script in a child of the warm process; the exit code, or None where there is no such process.

    Args:
        idle: seconds without work after which the process ends.
        code: the hash of the code that runs.
        imports: modules that it imports first.
    """
    try:
        address = _folder() / hashlib.sha256(f"{code} {sys.executable} {sys.path}".encode()).hexdigest()[:16]
        connection = _connect(address, idle, imports)
        request = json.dumps({"argv": sys.argv, "cwd": str(Path.cwd()), "environ": dict(os.environ)}).encode()
        socket.send_fds(connection, [struct.pack("<I", len(request))], [0, 1, 2])
        connection.sendall(request)
        (pid,) = struct.unpack("<i", _receive(connection, 4))
    except OSError as error:
        print(f"warm: {error}; going on alone", file=sys.stderr)
        return None

    def forward(number: int, _: FrameType | None) -> None:
        os.kill(pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    status = connection.recv(4)  # nothing: the child was killed
    return int(struct.unpack("<i", status)[0]) if status else 128 + signal.SIGKILL


def serve(address: str, idle: int, imports: Sequence[str]) -> None:
    """Wait for requests on a socket of the file system, until there has been none for `idle` seconds."""
    import fcntl

    lock = Path(address + ".lock").open("w")  # noqa: SIM115 - held until this process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # on this machine's own disk
    except BlockingIOError:
        return  # another one is there
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking CUDA itself would spoil it for the children
    for module in imports:
        importlib.import_module(module)
    gc.freeze()
    Path(address).unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    children: set[int] = set()
    last = time.monotonic()
    while children or time.monotonic() - last < idle:
        if select.select([listening], [], [], 1)[0]:
            connection, _ = listening.accept()
            if child := _fork(connection, listening):
                children.add(child)
            connection.close()
        for child in list(children):
            if os.waitpid(child, os.WNOHANG)[0]:
                children.remove(child)
                last = time.monotonic()
    Path(address).unlink(missing_ok=True)


def _fork(connection: socket.socket, listening: socket.socket) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        listening.close()
        code = _run(connection)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(struct.pack("<i", code))
        os._exit(code)


def _run(connection: socket.socket) -> int:
    """Be the script that asked."""
    global forked  # noqa: PLW0603
    forked = True
    length, files, _, _ = socket.recv_fds(connection, 4, 3)
    request = json.loads(_receive(connection, struct.unpack("<I", length)[0]))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    sys.argv = request["argv"]
    connection.sendall(struct.pack("<i", os.getpid()))
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end_with(connection: socket.socket) -> None:
    """End, as by SIGTERM, when the script that asked is gone."""
    with suppress(ConnectionResetError):  # killed before it had read what it was told
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _connect(address: Path, idle: int, imports: Sequence[str]) -> socket.socket:
    """A connection to the process at an address; it is started where there is none."""
    started: subprocess.Popen[bytes] | None = None
    end = time.monotonic() + START
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(address))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
        else:
            return connection
        if started is None:
            command = f"from llm_sparsity.warm import serve; serve({str(address)!r}, {idle}, {imports!r})"
            with address.with_suffix(".log").open("w") as log:
                started = subprocess.Popen(
                    [sys.executable, "-c", command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
        if started.poll() or time.monotonic() > end:
            raise TimeoutError(f"no warm process at {address}; its words are in {address.with_suffix('.log')}")
        time.sleep(0.05)


def _folder() -> Path:
    """Where this user's sockets lie; no other user may write there."""
    folder = Path(tempfile.gettempdir()) / f"llm-sparsity-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or folder.is_symlink():
        raise PermissionError(f"{folder} is not this user's alone")
    return folder


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the warm process has ended")
        data += part
    return data
