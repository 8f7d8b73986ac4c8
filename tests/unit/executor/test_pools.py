"""The configuration file for Polaris, and the pool of each job."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from parsl.executors import HighThroughputExecutor
from parsl.jobs.strategy import Strategy

from snakemake_executor_plugin_parsl import guard, pools

Load = Callable[..., dict[str, HighThroughputExecutor]]


@pytest.fixture
def polaris(root: Path, tmp_path: Path) -> Load:
    """Load profiles/polaris/pools.py with other values in its first block."""

    def load(**values: object) -> dict[str, HighThroughputExecutor]:
        shutil.copytree(root / "profiles/polaris", tmp_path / "polaris", dirs_exist_ok=True)
        file = tmp_path / "polaris/pools.py"
        text = file.read_text()
        for name, value in values.items():
            text, changed = re.subn(rf"^{name} = [^#\n]*", f"{name} = {value!r}  ", text, flags=re.MULTILINE)
            assert changed == 1
        file.write_text(text)
        return {executor.label: executor for executor in pools.load(file).executors}

    return load


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "ACCOUNT: missing"),
        ({"ACCOUNT": "p"}, "INTERFACE: found 'hsn0', but this machine has"),
        ({"ACCOUNT": "p", "INTERFACE": "lo", "NODES": 11}, "queue debug-scaling takes 1-10 nodes for 5-60 minutes"),
        ({"ACCOUNT": "p", "INTERFACE": "lo", "QUEUE": "debgu"}, "QUEUE: found 'debgu'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(polaris: Load, values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=r"polaris/pools\.py: ") as error:
        polaris(**values)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_jobs_go_to_the_first_pool_with_enough_gpus(polaris: Load) -> None:
    executors = polaris(ACCOUNT="p", INTERFACE="lo")
    assert [pools.route(executors, gpus) for gpus in (0, 1, 2, 4)] == ["gpu", "gpu", "node", "node"]
    with pytest.raises(ValueError, match=r"^gpus: a job uses 5, but .* \(gpu: 1, node: 4, nodes: 20\); change"):
        pools.route(executors, 5)
    gpu = executors["gpu"]
    assert gpu.workers_per_node == 4
    assert gpu.cpu_affinity.split(":")[1] == "24-31,56-63", "GPU 0 is beside the last cores"


def test_a_job_of_several_nodes_gets_them_all_or_is_refused(polaris: Load) -> None:
    executors = polaris(ACCOUNT="p", INTERFACE="lo", NODES=2)
    assert [pools.route(executors, gpus) for gpus in (0, 1, 4, 8)] == ["gpu", "gpu", "node", "nodes"]
    for gpus in (6, 12):
        with pytest.raises(ValueError, match=f"gpus: a job uses {gpus}, but no pool"):
            pools.route(executors, gpus)
    nodes = executors["nodes"].provider
    assert (nodes.nodes_per_block, nodes.init_blocks) == (2, 0)
    assert nodes.launcher("command", 1, 2) == "command", "one manager, on the first node"
    assert "mpiexec" in executors["node"].provider.launcher("command", 1, 2)
    assert "ON_EACH_NODE='mpiexec --envall -n 2 --ppn 1 --cpu-bind none'" in nodes.worker_init


def test_without_pinned_devices_one_pool_takes_all_and_cpu_takes_no_gpu_job() -> None:
    plain = HighThroughputExecutor(label="htex", address="127.0.0.1")
    cpu = HighThroughputExecutor(label="cpu", address="127.0.0.1")
    assert pools.route({"htex": plain}, 4) == "htex"
    assert pools.route({"htex": plain, "cpu": cpu}, 0) == "cpu"
    assert pools.route({"htex": plain, "cpu": cpu}, 1) == "htex"
    with pytest.raises(ValueError, match="no pool"):
        pools.route({"cpu": cpu}, 1)


def test_the_batch_script(polaris: Load, tmp_path: Path) -> None:
    provider = polaris(ACCOUNT="p", INTERFACE="lo", NODES=5)["gpu"].provider
    (tmp_path / "000/submit_scripts").mkdir(parents=True)
    provider.script_dir = str(tmp_path / "000/submit_scripts")
    commands = []
    provider.execute_wait = lambda command: (commands.append(command), (0, "1.server\n", ""))[1]
    provider.submit("process_worker_pool.py", 1, "parsl.gpu.block-0")
    assert re.match(r"qsub +-q debug-scaling -A p /", commands[0])
    script = Path(commands[0].split()[-1]).read_text()
    header = script[: script.index("source ")]
    for line in (
        "-l walltime=01:00:00", "-l select=5:ncpus=64:system=polaris", "-l filesystems=home:eagle",
        "-l place=scatter", "-k doe", "-r n",
    ):  # fmt: skip
        assert f"#PBS {line}\n" in header
    assert "mpiexec" in script
    assert "export TMPDIR=/tmp HF_HUB_OFFLINE=1" in script


def test_one_node_jobs_need_no_mpiexec(polaris: Load) -> None:
    provider = polaris(ACCOUNT="p", INTERFACE="lo", QUEUE="preemptable", NODES=1, JOBS=20)["gpu"].provider
    assert provider.max_blocks == 20
    assert "mpiexec" not in provider.launcher("command", 1, 1)


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


def test_parsl_asks_for_a_block_per_job_where_a_worker_has_all_nodes(polaris: Load) -> None:
    """By Parsl's own strategy, which counts one slot per node."""
    nodes = polaris(ACCOUNT="p", INTERFACE="lo", QUEUE="preemptable", NODES=2, JOBS=20)["nodes"]
    pools.protect(nodes)
    asked: list[int] = []
    nodes.outstanding, nodes.scale_out_facade = lambda: 3, asked.append
    strategy = Strategy(strategy="htex_auto_scale", max_idletime=1)
    strategy.add_executors([nodes])
    strategy.strategize([nodes])
    assert asked == [0, 3]


def test_a_file_that_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not found"):
        pools.load(tmp_path / "none.py")
    (tmp_path / "empty.py").touch()
    with pytest.raises(ValueError, match="sets no `config"):
        pools.load(tmp_path / "empty.py")
