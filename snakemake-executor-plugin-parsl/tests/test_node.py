"""What runs on a node: tasks, and the process around a manager."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from batch_site import until

from snakemake_executor_plugin_parsl import guard, task

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ends processes by a call of Linux")


@pytest.mark.parametrize(
    ("membership", "file", "text"),
    [
        ("0::/job/7\n", "job/7/memory.events", "low 0\noom 2\noom_kill 3\n"),
        ("4:cpu:/x\n9:memory,misc:/pbs/7\n", "memory/pbs/7/memory.oom_control", "under_oom 0\noom_kill 3\n"),
    ],
)
def test_the_kernel_counts_processes_that_it_killed_for_memory(
    tmp_path: Path, membership: str, file: str, text: str
) -> None:
    (tmp_path / "own").write_text(membership)
    path = tmp_path / "cgroups" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert task.memory_kills(tmp_path / "cgroups", tmp_path / "own") == 3
    path.unlink()
    assert task.memory_kills(tmp_path / "cgroups", tmp_path / "own") == 0
    assert task.memory_kills(tmp_path, tmp_path / "none") == 0


def start(tmp_path: Path, code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", guard.__file__, "pilot", sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )


def test_a_pilot_leaves_no_temporary_file_and_returns_the_code_of_its_manager(tmp_path: Path) -> None:
    leave = "import sys, tempfile; tempfile.mkdtemp(prefix='pymp-'); sys.exit(3)"
    assert start(tmp_path, leave).wait() == 3
    assert not list(tmp_path.iterdir())


def test_a_pilot_waits_for_tasks_that_save_after_its_manager_has_ended(tmp_path: Path) -> None:
    """The manager dies of SIGTERM at once; its task, in a session of its own, goes on until it is told to end."""
    save = tmp_path / "save"
    code = f"""
import os, time
from pathlib import Path
if os.fork() == 0:
    os.setsid()
    Path({str(tmp_path / "begun")!r}).touch()
    while not Path({str(save)!r}).exists():
        time.sleep(0.05)
    Path({str(tmp_path / "saved")!r}).touch()
    os._exit(0)
time.sleep(600)
"""
    started = start(tmp_path, code)
    until((tmp_path / "begun").exists)
    started.send_signal(signal.SIGTERM)
    save.touch()
    assert started.wait() == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()


def test_a_job_gets_sigterm_in_all_its_processes_and_ends_once_they_have_saved(tmp_path: Path) -> None:
    """Also below a shell that dies at once, and not only after the seconds that a job has for it."""
    code = f"""
cd {tmp_path} && sh -c 'trap "touch saved; exit 0" TERM; touch begun; while :; do sleep 0.05; done' && true
"""
    started = subprocess.Popen([sys.executable, "-I", guard.__file__, "job", "sh", "-c", code])
    until((tmp_path / "begun").exists)
    os.kill(started.pid, signal.SIGTERM)
    started.wait()
    assert (tmp_path / "saved").exists()


def test_a_job_returns_the_code_of_its_command() -> None:
    command = [sys.executable, "-I", guard.__file__, "job", "sh", "-c"]
    assert subprocess.run([*command, "exit 7"], check=False).returncode == 7
    assert subprocess.run([*command, "kill -KILL $$"], check=False).returncode == 128 + signal.SIGKILL


def test_what_a_node_refuses_fails_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the whole run."""
    monkeypatch.setattr(task.guard, "die_with_parent", lambda: None)
    (tmp_path / "file").touch()
    found = task.run("true", str(tmp_path), str(tmp_path / "file/log"))
    assert found.code == 1
    assert "File exists" in found.reason
