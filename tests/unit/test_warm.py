import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import os, signal, sys, time
from llm_sparsity import warm
if not warm.forked and (status := warm.call(2, "", imports=["json"])) is not None:
    sys.exit(status)
word = sys.argv[1]
print(os.getppid(), os.getpid(), os.getcwd(), os.environ["WORD"], warm.forked, flush=True)
if word == "fail":
    raise ValueError("a fault")
if word == "tell":
    sys.exit("error: a mistake")
if word == "wait":
    def ended(*_):
        open("ended", "w").close()
        sys.exit(143)
    signal.signal(signal.SIGTERM, ended)
    open("waiting", "w").close()
    time.sleep(60)
sys.exit(7 if word == "seven" else 0)
"""


@pytest.fixture
def start(tmp_path: Path, root: Path) -> Any:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {"PYTHONPATH": str(root / "workflow"), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}

    def begin(word: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, tmp_path / "script.py", word], cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment | {"WORD": word},
        )  # fmt: skip

    return begin


def wait_for(path: Path, there: bool = True) -> None:
    end = time.monotonic() + 60
    while path.exists() != there:
        assert time.monotonic() < end, path
        time.sleep(0.02)


def test_runs_are_children_of_one_process_and_end_as_they_would_alone(start: Any, tmp_path: Path) -> None:
    found = {}
    for word in ("seven", "fail", "tell", "well"):
        run = start(word)
        out, err = run.communicate(timeout=60)
        parent, _, folder, given, forked = out.split()
        found[word] = (run.returncode, parent)
        assert (folder, given, forked) == (str(tmp_path), word, "True"), err
        assert ("ValueError: a fault" in err) == (word == "fail")
        assert ("error: a mistake" in err) == (word == "tell")
    assert {word: code for word, (code, _) in found.items()} == {"seven": 7, "fail": 1, "tell": 1, "well": 0}
    assert len({parent for _, parent in found.values()}) == 1


def test_runs_at_the_same_time(start: Any) -> None:
    outs = [run.communicate(timeout=60)[0].split() for run in [start("well") for _ in range(4)]]
    assert len({out[0] for out in outs}) == 1
    assert len({out[1] for out in outs}) == 4


def test_a_signal_reaches_the_run(start: Any, tmp_path: Path) -> None:
    run = start("wait")
    wait_for(tmp_path / "waiting")
    run.terminate()
    run.communicate(timeout=60)
    assert run.returncode == 143


def test_a_run_ends_with_the_script_that_asked_for_it(start: Any, tmp_path: Path) -> None:
    run = start("wait")
    wait_for(tmp_path / "waiting")
    run.kill()
    run.communicate(timeout=60)
    wait_for(tmp_path / "ended")


def test_a_run_that_is_killed_says_so(start: Any, tmp_path: Path) -> None:
    run = start("wait")
    wait_for(tmp_path / "waiting")
    child = int(run.stdout.readline().split()[1])
    os.kill(child, signal.SIGKILL)
    run.communicate(timeout=60)
    assert run.returncode == 137


def test_the_process_goes_when_it_has_nothing_to_do(start: Any, tmp_path: Path) -> None:
    start("well").communicate(timeout=60)
    (address,) = [path for path in tmp_path.glob("llm-sparsity-*/*") if path.is_socket()]
    wait_for(address, there=False)
    run = start("well")  # and is started again
    out, _ = run.communicate(timeout=60)
    assert out.split()[4] == "True"


def test_a_folder_that_others_may_write_to_is_not_used(start: Any, tmp_path: Path) -> None:
    folder = tmp_path / f"llm-sparsity-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    out, err = start("well").communicate(timeout=60)
    assert out.split()[4] == "False"
    assert "not this user's alone; going on alone" in err
