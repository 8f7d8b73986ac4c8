"""The profile for Polaris with real Snakemake and Parsl, under the stand-in for PBS."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from batch_site import HANGS, SOURCES, Site
from parsl.executors import HighThroughputExecutor
from parsl.jobs.strategy import Strategy

from llm_sparsity.study import advice
from snakemake_executor_plugin_parsl import ExecutorSettings, config

from .conftest import Project, checkout

Load = Callable[..., dict[str, HighThroughputExecutor]]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ends processes by a call of Linux")


@pytest.fixture
def polaris(root: Path, tmp_path: Path) -> Load:
    """Load profiles/polaris/pools.py for a site, on this machine's loopback interface."""

    def load(interface: str = "lo", **settings: object) -> dict[str, HighThroughputExecutor]:
        shutil.copytree(root / "profiles/polaris", tmp_path / "polaris", dirs_exist_ok=True)
        file = tmp_path / "polaris/pools.py"
        file.write_text(file.read_text().replace('INTERFACE = "hsn0"', f'INTERFACE = "{interface}"'))
        profile = yaml.safe_load((root / "profiles/polaris/config.yaml").read_text())
        ours = {name: profile[f"parsl-{name}"] for name in ("queue", "pilots", "nodes", "minutes")}
        site = ExecutorSettings(**ours | {"account": "p"} | settings).site()
        return {executor.label: executor for executor in config.load(file, site).executors}

    return load


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"account": ""}, "parsl-account: missing"),
        ({"interface": "hsn9"}, "INTERFACE: found 'hsn9', but this machine has"),
        (
            {"nodes": 11},
            "parsl-nodes, parsl-minutes: found 11 nodes for 60 minutes, but queue debug-scaling takes 1-10",
        ),
        ({"minutes": 61}, "found 5 nodes for 61 minutes, but queue debug-scaling takes 1-10 nodes for 5-60 minutes"),
        ({"queue": "debgu"}, "parsl-queue: found 'debgu'"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(polaris: Load, values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=r"polaris/pools\.py: ") as error:
        polaris(**values)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", ["1:00", "01:00:00", "an hour", "0", "-5", "1.5"])
def test_minutes_that_are_no_whole_number_are_refused(polaris: Load, wrong: str) -> None:
    with pytest.raises(ValueError, match=rf"^parsl-minutes: found '{wrong}'; write a whole number, such as 60$"):
        polaris(minutes=wrong)
    assert polaris(minutes="60")["gpu"].provider.walltime == "01:00:00"


def test_the_plan_prints_what_the_profile_takes(root: Path) -> None:
    """Its lines replace those of the profile, and nothing else of it."""
    work = [SimpleNamespace(minutes=3.0, gpus=1, done=False, local=False)] * 5
    printed = advice.advise(work, advice.queues(root / "profiles/polaris/queues.csv"))
    lines = yaml.safe_load("\n".join(line for line in printed.splitlines() if line.startswith("parsl-")))
    profile = yaml.safe_load((root / "profiles/polaris/config.yaml").read_text())
    assert lines == {"parsl-queue": "debug", "parsl-pilots": 1, "parsl-nodes": 2, "parsl-minutes": 15}
    assert not set(lines) - set(profile)


def test_jobs_go_to_the_first_pool_with_enough_gpus(polaris: Load) -> None:
    executors = polaris()
    assert [config.route(executors, gpus) for gpus in (0, 1, 2, 4)] == ["gpu", "gpu", "node", "node"]
    with pytest.raises(ValueError, match=r"^gpu: a job uses 5, but .* \(gpu: 1, node: 4, nodes: 20\); change"):
        config.route(executors, 5)
    gpu = executors["gpu"]
    assert gpu.workers_per_node == 4
    assert gpu.cpu_affinity.split(":")[1] == "24-31,56-63", "GPU 0 is beside the last cores"


def test_a_job_of_several_nodes_gets_them_all_or_is_refused(polaris: Load) -> None:
    executors = polaris(nodes=2)
    assert [config.route(executors, gpus) for gpus in (0, 1, 4, 8)] == ["gpu", "gpu", "node", "nodes"]
    for gpus in (6, 12):
        with pytest.raises(ValueError, match=f"gpu: a job uses {gpus}, but no pool"):
            config.route(executors, gpus)
    nodes = executors["nodes"].provider
    assert (nodes.nodes_per_block, nodes.init_blocks) == (2, 0)
    assert nodes.launcher("command", 1, 2) == "command", "one manager, on the first node"
    assert "mpiexec" in executors["node"].provider.launcher("command", 1, 2)
    assert "ON_EACH_NODE='mpiexec --envall -n 2 --ppn 1 --cpu-bind none'" in nodes.worker_init


def test_the_batch_script(polaris: Load, tmp_path: Path) -> None:
    provider = polaris(nodes=5)["gpu"].provider
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
    provider = polaris(queue="preemptable", nodes=1, pilots=20)["gpu"].provider
    assert provider.max_blocks == 20
    assert "mpiexec" not in provider.launcher("command", 1, 1)


def test_parsl_asks_for_a_block_per_job_where_a_worker_has_all_nodes(polaris: Load) -> None:
    """By Parsl's own strategy, which counts one slot per node."""
    nodes = polaris(queue="preemptable", nodes=2, pilots=20)["nodes"]
    config.repair(nodes)
    asked: list[int] = []
    nodes.outstanding, nodes.scale_out_facade = lambda: 3, asked.append
    strategy = Strategy(strategy="htex_auto_scale", max_idletime=1)
    strategy.add_executors([nodes])
    strategy.strategize([nodes])
    assert asked == [0, 3]


def run_study(site: Site, hub: Path, root: Path, sparsity: float, gpus: int, nodes: int, *targets: str) -> str:
    """Run a model of the tiny study with the profile for Polaris, from download to report or to the targets."""
    folder = site.folder / "study"
    folder.mkdir()
    checkout(root, folder)
    values = yaml.safe_load((root / "tests/config.yaml").read_text())
    values["study"] = [{"models": ["roberta-base"], "sparsities": [sparsity], "tasks": ["sst2"], "measure": False}]
    values["models"]["roberta-base"] |= {"gpus": gpus, "accelerate": "fsdp"}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    pools = folder / "profiles/polaris/pools.py"
    text = pools.read_text()
    path = f"{Path(sys.executable).parent}:{site.folder / 'bin'}"
    ours = f"export PATH={path}:$PATH PYTHONPATH={folder / 'workflow'}:{SOURCES}"
    for name, value in (("INTERFACE", "lo"), ("ENVIRONMENT", ours), ("ALL_CORES", "none"), ("BESIDE_GPUS", "none")):
        text, changed = re.subn(rf"^{name} = .*", f"{name} = {value!r}", text, flags=re.MULTILINE)
        assert changed == 1
    pools.write_text(text.replace("strategy_period=10", "strategy_period=1"))
    environment = site.environment | {"PYTHONPATH": f"{folder / 'workflow'}:{SOURCES}"}
    done = Project(folder, hub).snakemake(
        "--profile", "profiles/polaris", "--set-threads", "finetune=1", "--parsl-account", "p",
        "--parsl-queue", "debug", "--parsl-nodes", str(nodes), *targets, **environment,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
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
    """A run of the tiny study in one pilot under the stand-in for PBS."""
    target = "results/roberta-base/magnitude-all-0.9/sst2/kept/seed-0/metrics.json"
    said = run_study(site, hub, root, 0.9, 1, 1, target)
    assert (site.folder / "study" / target).exists()
    assert "Plan of tiny" in said
    assert re.search(r"left: \d+ jobs in pools", said)
    assert len(site.jobs()) == 1


@pytest.mark.exhaustive
def test_a_run_over_two_nodes_by_config(site: Site, hub: Path, root: Path) -> None:
    """Its batch job has two nodes and one manager, on the first; a stand-in for mpiexec starts it on both.

    Four processes on each, as there are four GPUs; torch finds none here, so each uses a CPU.
    """
    assert "Read reports/tiny/report.html" in run_study(site, hub, root, sparsity=0, gpus=8, nodes=2)
    scripts = {script.stem: script.read_text() for script in site.state.glob("*.sh")}
    (mine,) = [name for name, script in scripts.items() if "parsl.nodes" in script]
    assert "#PBS -l select=2:ncpus=64:system=polaris\n" in scripts[mine]
    assert len(scripts) == 2, "a second batch job for jobs that need no node of their own"
    assert not list((site.folder / "home").glob("*.nodes")), "no list of nodes is left there"
    study = site.folder / "study"
    assert len(list(study.glob("logs/parsl/000/nodes/block-0/*/manager.log"))) == 1
    (log,) = study.glob("logs/finetune/**/seed-0.log")
    assert log.read_text().count("stand-in for mpiexec: 2 times") == 1
    assert "--num_machines 2" in log.read_text()
    assert "--accelerate fsdp" in log.read_text()
    (runtime,) = study.glob("results/**/seed-0/runtime.json")
    assert json.loads(runtime.read_text())["processes"] == 8
