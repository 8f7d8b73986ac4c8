"""Pools: the pool of each job, and the repairs of Parsl's executor."""

from pathlib import Path

import pytest
from parsl.executors import HighThroughputExecutor

from snakemake_executor_plugin_parsl import guard, pools


def test_without_pinned_devices_one_pool_takes_all_and_cpu_takes_no_gpu_job() -> None:
    plain = HighThroughputExecutor(label="htex", address="127.0.0.1")
    cpu = HighThroughputExecutor(label="cpu", address="127.0.0.1")
    assert pools.route({"htex": plain}, 4) == "htex"
    assert pools.route({"htex": plain, "cpu": cpu}, 0) == "cpu"
    assert pools.route({"htex": plain, "cpu": cpu}, 1) == "htex"
    with pytest.raises(ValueError, match="no pool"):
        pools.route({"cpu": cpu}, 1)


def test_an_interchange_is_tied_to_its_driver_and_removing_no_pilot_removes_none() -> None:
    executor = HighThroughputExecutor(label="gpu", address="127.0.0.1")
    executor.provider.parallelism = 0.5
    taken: list[int] = []
    executor.scale_in = lambda blocks, max_idletime=None: taken.append(blocks) or ["0"]
    pools.protect(executor)
    assert guard.__file__ in executor.interchange_launch_cmd
    assert executor.scale_in(0, max_idletime=1.0) == []
    assert executor.scale_in(2, max_idletime=1.0) == ["0"]
    assert taken == [2]
    assert executor.provider.parallelism == 0.5


def test_a_file_that_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not found"):
        pools.load(tmp_path / "none.py")
    (tmp_path / "empty.py").touch()
    with pytest.raises(ValueError, match="sets no `config"):
        pools.load(tmp_path / "empty.py")
