"""What the processes of a run compute together, where they listen, and what they send each other."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.files import read_json, sha256
from llm_sparsity.training.launch import Rendezvous, interface
from tests.kill import SETTINGS
from tests.unit.training.helpers import removed, run, same_but_for_rounding, without_dropout

Make = Callable[[str], ModelFolder]
# Runs a script whose process may not unpickle what another process has sent.
NO_PICKLE = """
import runpy, sys
from torch.distributed import distributed_c10d
def refuse(*_):
    raise AssertionError("a process unpickles what another has sent")
distributed_c10d._tensor_to_object = distributed_c10d._object_to_tensor = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def listening(*command: Any, folder: Path, root: Path, **environment: str) -> tuple[set[tuple[str, int]], str]:
    """Run a command to its end: the TCP addresses at which its processes have listened, and its standard error."""
    environment |= {"PYTHONPATH": f"{root / 'workflow'}:{root}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    found: set[tuple[str, int]] = set()
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=folder, stderr=stderr, env=environment)
        while process.poll() is None:
            for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.Error):  # it has ended
                    sockets = one.net_connections(kind="tcp")
                    found |= {(entry.laddr.ip, entry.laddr.port) for entry in sockets if entry.status == "LISTEN"}
            time.sleep(0.25)  # a look takes milliseconds, and they listen for seconds
    said = (folder / "stderr").read_text()
    assert process.returncode == 0, said[-3000:]
    return found, said


RUN = SETTINGS | {"epochs": 1, "batch_size": 15, "micro_batch_size": 7}


def finetuning(model: ModelFolder, task: TaskFolder) -> list[Any]:
    arguments = ["--model", model.path, "--task", task.path, "--output", "out", "--processes", 2]
    return [*arguments, "--settings", json.dumps(RUN)]


@pytest.mark.slow
def test_two_processes_do_what_one_does_listen_on_loopback_alone_and_send_no_pickle(
    variant: Make, task: TaskFolder, tmp_path: Path, root: Path
) -> None:
    """Two CPU processes over gloo: the same global batch, so the same weights but for rounding."""
    model = without_dropout(variant("gpt2"))
    one = run(model, task, tmp_path / "1", **RUN)
    (tmp_path / "no_pickle.py").write_text(NO_PICKLE)
    command = ["-m", "llm_sparsity.training.launch", "--config", root / "profiles/accelerate/cpu.yaml"]
    command += ["--processes", 2, tmp_path / "no_pickle.py", root / "scripts/finetune.py"]
    found, _ = listening(*command, *finetuning(model, task), folder=tmp_path, root=root)
    assert len(found) >= 3  # the store, and two processes
    assert {address for address, _ in found} <= {"127.0.0.1", "::1"}
    assert read_json(tmp_path / "out/runtime.json")["processes"] == 2
    same_but_for_rounding(one, tmp_path, removed(model))


@pytest.mark.slow
def test_two_machines_do_what_one_does_and_listen_on_the_interface_of_the_given_address(
    variant: Make, task: TaskFolder, tmp_path: Path, root: Path
) -> None:
    """Two stand-ins for machines; the address is one that a listener on loopback's own would not have."""
    outer = [entry.address for name, all_ in psutil.net_if_addrs().items() for entry in all_
             if name != interface("127.0.0.1") and entry.family == socket.AF_INET]  # fmt: skip
    address = next(iter(outer), "127.0.0.2")
    each = f"{sys.executable} {root / 'tests/standin_mpiexec.py'} --envall -n 2 --ppn 1 --cpu-bind none"
    model = without_dropout(variant("bert"))
    one = run(model, task, tmp_path / "1", **RUN)
    command = [root / "scripts/finetune.py", *finetuning(model, task)]
    for name, environment in (("machine", {}), ("machines", {"ON_EACH_NODE": each, "MASTER_ADDR": address})):
        (tmp_path / name).mkdir()
        found, said = listening(*command, folder=tmp_path / name, root=root, **environment)
        assert ("2 machines, 2 processes" in said) == (name == "machines")
        assert read_json(tmp_path / name / "out/runtime.json")["processes"] == 2
    allowed = {entry.address for entry in psutil.net_if_addrs()[interface(address)]}
    assert address in {where for where, _ in found}
    assert {where for where, _ in found} <= allowed | {address}
    same_but_for_rounding(one, tmp_path / "machine", removed(model))
    for file in ("out/metrics.json", "out/history.csv"):
        assert (tmp_path / "machine" / file).read_bytes() == (tmp_path / "machines" / file).read_bytes()
    saved, other = (next((tmp_path / name / "work").glob("*/epoch-1")) for name in ("machine", "machines"))
    assert sha256(saved / "model.safetensors") == sha256(other / "model.safetensors")


def test_the_first_to_listen_is_the_first_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    machines = [Rendezvous("127.0.0.1", port, 3).next_rendezvous() for _ in range(3)]
    assert [info.rank for info in machines] == [0, 1, 2]
    machines[0].store.set("key", "plain bytes")
    assert machines[2].store.get("key") == b"plain bytes"


def test_an_address_of_no_machine() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.9", 0))  # and nobody listens, as on another machine
        rendezvous = Rendezvous("127.0.0.9", taken.getsockname()[1], 2, patience=2)
        with pytest.raises(UserError, match=r"MASTER_ADDR: found 127.0.0.9, where no process of this run answers"):
            rendezvous.next_rendezvous()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone")
def test_the_interface_of_loopback() -> None:
    assert interface("127.0.0.1") == "lo"
