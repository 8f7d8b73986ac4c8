import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_sparsity.jobs import lease

JOB = """
import json, os, sys, time
from llm_sparsity.jobs.lease import lease
count = lease(int(sys.argv[1]))
begun = time.monotonic()
time.sleep(0.4)
print(json.dumps({"count": count, "devices": os.environ["CUDA_VISIBLE_DEVICES"].split(","),
                  "begun": begun, "ended": time.monotonic()}))
"""


def start(root: Path, tmp_path: Path, count: int, program: str = JOB) -> subprocess.Popen[str]:
    environment = {
        "PYTHONPATH": str(root / "workflow"), "CUDA_VISIBLE_DEVICES": "0,1,GPU-abc", "TMPDIR": str(tmp_path)
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", program, str(count)], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_no_device_is_leased_twice_at_once(root: Path, tmp_path: Path) -> None:
    jobs = [start(root, tmp_path, 1) for _ in range(5)] + [start(root, tmp_path, 2)]
    results = [json.loads(job.communicate(timeout=60)[0]) for job in jobs]
    assert [one["count"] for one in results] == [1, 1, 1, 1, 1, 2]
    for number, one in enumerate(results):
        assert len(one["devices"]) == one["count"]
        for other in results[number + 1 :]:
            if set(one["devices"]) & set(other["devices"]):
                assert one["ended"] <= other["begun"] or other["ended"] <= one["begun"]


def test_a_lease_outlives_exec_and_ends_with_the_process(root: Path, tmp_path: Path) -> None:
    program = "import os, sys\nfrom llm_sparsity.jobs.lease import lease\nlease(2)\nos.execvp('sleep', ['sleep', '30'])"
    holder = start(root, tmp_path, 2, program)
    locks = tmp_path / f"gpus-{os.getuid()}"
    deadline = time.monotonic() + 30
    while not list(locks.glob("*.lock")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    other = start(root, tmp_path, 2)
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(timeout=1.5)
    holder.kill()
    holder.wait()
    assert json.loads(other.communicate(timeout=30)[0])["count"] == 2


@pytest.mark.parametrize(("visible", "asked", "count"), [("3", 1, 1), ("0,1", 4, 2), ("", 1, 0), ("0,1,2,3", 0, 0)])
def test_where_there_is_nothing_to_choose_nothing_changes(
    visible: str, asked: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert lease.lease(asked) == count
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
