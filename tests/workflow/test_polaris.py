"""The profile for Polaris with real Snakemake and Parsl, under the stand-in for PBS."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from batch_site import HANGS, SOURCES, Site
from parsl.executors import HighThroughputExecutor
from parsl.jobs.strategy import Strategy

from snakemake_executor_plugin_parsl import pools

from .conftest import Project

Load = Callable[..., dict[str, HighThroughputExecutor]]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ends processes by a call of Linux")


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


def run_study(site: Site, hub: Path, root: Path, gpus: int, **mine: object) -> str:
    """Run the dense and a pruned model of the tiny study with the profile for Polaris, from download to report."""
    folder = site.folder / "study"
    for name in ("workflow", "scripts", "envs", "profiles", "studies"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "Snakefile", folder)
    values = yaml.safe_load((root / "tests/config.yaml").read_text())
    sparsities = [0, 0.9] if gpus == 1 else [0]
    values["study"] = [{"models": ["roberta-base"], "sparsities": sparsities, "tasks": ["sst2"], "measure": False}]
    values["models"]["roberta-base"] |= {"gpus": gpus, "accelerate": "fsdp"}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    pools = folder / "profiles/polaris/pools.py"
    text = pools.read_text()
    path = f"{Path(sys.executable).parent}:{site.folder / 'bin'}"
    mine |= {
        "ACCOUNT": "p", "QUEUE": "debug", "INTERFACE": "lo",
        "ENVIRONMENT": f"export PATH={path}:$PATH PYTHONPATH={folder / 'workflow'}:{SOURCES}",
    }  # fmt: skip
    for name, value in mine.items():
        text = re.sub(rf"^{name} = .*", f"{name} = {value!r}", text, flags=re.MULTILINE)
    if gpus > 1:  # one worker GPU per node; torch finds none, so each process uses a CPU
        text = re.sub(r'\["0.*?3"\]', '["0"]', text)
    pools.write_text(re.sub(r'"list:[^"]*"', '"none"', text).replace("strategy_period=30", "strategy_period=1"))
    environment = site.environment | {"PYTHONPATH": f"{folder / 'workflow'}:{SOURCES}"}
    done = Project(folder, hub).snakemake("--profile", "profiles/polaris", "--set-threads", "finetune=1", **environment)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Read reports/tiny/report.html" in said
    site.wait(lambda: {job["job_state"] for job in site.jobs().values()} == {"F"}, HANGS)
    return said


@pytest.fixture
def site(root: Path, tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as site:
        mpiexec = tmp_path / "bin/mpiexec"
        mpiexec.write_text(f'#!/bin/sh\nexec {sys.executable} -I {root}/tests/standin_mpiexec.py "$@"\n')
        mpiexec.chmod(0o755)
        site.environment["STANDIN_QUEUES"] = str(root / "profiles/polaris/queues.csv")
        yield site


@pytest.mark.slow
def test_the_profile_for_polaris_runs_a_study(site: Site, hub: Path, root: Path) -> None:
    """Two runs of the tiny study in one pilot under the stand-in for PBS."""
    said = run_study(site, hub, root, gpus=1, NODES=1)
    assert "Plan of tiny" in said
    assert "5 jobs in pools" in said
    assert len(site.jobs()) == 1


@pytest.mark.slow
def test_a_run_over_two_nodes_by_config(site: Site, hub: Path, root: Path) -> None:
    """Its batch job has two nodes and one manager, on the first; a stand-in for mpiexec starts it on both."""
    run_study(site, hub, root, gpus=2, NODES=2)
    scripts = {script.stem: script.read_text() for script in site.state.glob("*.sh")}
    (mine,) = [name for name, script in scripts.items() if "parsl.nodes" in script]
    assert "#PBS -l select=2:ncpus=64:system=polaris\n" in scripts[mine]
    assert len(scripts) == 2, "a second batch job for jobs that need no node of their own"
    study = site.folder / "study"
    assert len(list(study.glob("logs/parsl/000/nodes/block-0/*/manager.log"))) == 1
    (log,) = study.glob("logs/finetune/**/seed-0.log")
    assert log.read_text().count("stand-in for mpiexec: 2 times") == 1
    assert "--num_machines 2" in log.read_text()
    assert "--accelerate fsdp" in log.read_text()
    (runtime,) = study.glob("results/**/seed-0/runtime.json")
    assert json.loads(runtime.read_text())["processes"] == 2
