"""Jobs as forks of a process that has imported libraries: they cannot be told from processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_sparsity.jobs import forkserver

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux")
Start = Callable[..., "subprocess.Popen[str]"]
OWNER = """
import sys
from llm_sparsity.jobs import forkserver
forkserver.start(["colorsys", "no_such_library"])
print(forkserver.os.environ[forkserver.VARIABLE], flush=True)
sys.stdin.read()
"""
# Says what it is, then what its argument says.
SCRIPT = """
import json, os, signal, sys, tempfile, time
from llm_sparsity.jobs.command import run
def main():
    print(json.dumps([os.getpid(), "colorsys" in sys.modules, os.getcwd(), sys.argv[1:], os.environ.get("SAID"),
                      tempfile.gettempdir(), __name__]), flush=True)
    print("a warning", file=sys.stderr)
    exec(sys.argv[1])
run(main)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """The folder of a server, whose owner is another process."""
    path = tmp_path / ("long" * 40)  # longer than an address may be
    path.mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(forkserver.__file__).parents[2]), "TMPDIR": str(path)}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout and owner.stdin
        yield owner.stdout.readline().strip()
        owner.stdin.close()
    _until(lambda: not any(path.iterdir()))


@pytest.fixture
def start(folder: str, tmp_path: Path) -> Start:
    """Start a job that executes a text."""
    (tmp_path / "job.py").write_text(SCRIPT)
    (tmp_path / "here").mkdir()

    def start(text: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, tmp_path / "job.py", text, 'é " {x}'],
            cwd=tmp_path / "here",
            env=os.environ
            | {"PYTHONPATH": str(Path(forkserver.__file__).parents[2]), forkserver.VARIABLE: folder}
            | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


def _state(process: int) -> str:
    """As the kernel tells it: S for one that waits, T for one that is stopped."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return _state(pid) not in "ZX"
    except OSError:
        return False


def _said(job: "subprocess.Popen[str]") -> int:
    """The process id of the fork."""
    assert job.stdout
    return int(json.loads(job.stdout.readline())[0])


def test_a_job_has_its_own_command_folder_environment_and_output(start: Start, tmp_path: Path) -> None:
    job = start("pass", SAID="yes", TMPDIR=str(tmp_path / "here"))
    output, errors = job.communicate()
    pid, imported, *others = json.loads(output)
    here = str(tmp_path / "here")
    assert (pid != job.pid, imported, others) == (True, True, [here, ["pass", 'é " {x}'], "yes", here, "__main__"])
    assert (job.returncode, errors) == (0, "a warning\n")


@pytest.mark.parametrize(
    ("text", "code", "error"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit('error: why')", 1, "error: why\n"),
        ("raise ValueError('why')", 1, "ValueError: why\n"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("import atexit; atexit.register(print, 'last', file=sys.stderr)", 0, "last\n"),
    ],
)
def test_it_ends_as_its_fork_does(text: str, code: int, error: str, start: Start) -> None:
    job = start(text)
    assert job.communicate()[1].endswith(error)
    assert job.returncode == code


def test_a_signal_is_passed_on(start: Start) -> None:
    job = start("signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print('ready', flush=True); signal.pause()")
    _said(job)
    assert job.stdout and job.stdout.readline() == "ready\n"
    job.terminate()
    job.communicate()
    assert job.returncode == 7


def test_ctrl_z_stops_the_fork_too(start: Start) -> None:
    job = start("time.sleep(1000)")
    fork = _said(job)
    for number, state in ((signal.SIGTSTP, "T"), (signal.SIGCONT, "S")):
        job.send_signal(number)
        _until(lambda state=state: all(_state(pid) == state for pid in (job.pid, fork)))
    job.kill()
    job.communicate()


def test_a_client_that_is_killed_takes_its_fork_along(start: Start) -> None:
    job = start("signal.pause()")
    fork = _said(job)
    assert _runs(fork)
    job.kill()
    job.communicate()
    _until(lambda: not _runs(fork))


def test_jobs_run_at_once(start: Start) -> None:
    jobs = [start("sys.exit(int(os.read(0, 1) or b'5'))") for _ in range(3)]  # its input is empty
    waiting = start("signal.pause()")
    _said(waiting)
    for job in jobs:
        job.communicate()
        assert job.returncode == 5
    waiting.kill()
    waiting.communicate()


def test_without_a_server_a_job_runs_by_itself(start: Start, tmp_path: Path) -> None:
    job = start("pass", **{forkserver.VARIABLE: str(tmp_path)})
    pid, imported, *_ = json.loads(job.communicate()[0])
    assert (pid, imported) == (job.pid, False)


def test_there_is_none_beside_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkserver.lease, "devices", lambda: ["0"])
    monkeypatch.delenv(forkserver.VARIABLE, raising=False)
    forkserver.start()
    assert forkserver.VARIABLE not in os.environ
