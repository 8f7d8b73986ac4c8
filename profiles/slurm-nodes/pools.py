"""The pools of a Slurm site that gives whole nodes: a Parsl configuration, made from the settings in config.yaml beside
this file. Edit the first block.
"""

import shlex
from pathlib import Path

from parsl.addresses import address_by_hostname
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SimpleLauncher, SrunLauncher
from parsl.launchers.base import Launcher
from parsl.providers import SlurmProvider

from snakemake_executor_plugin_parsl.site import Site

GPUS = 4  # of a node
CORES = 64  # of a node, as Slurm counts them: sinfo --Node --format="%N %c %G"
SPARE = 3  # minutes of a pilot for its start and end, in which no run is planned
ADDRESS = address_by_hostname()  # of this login node, as compute nodes reach it
# Activates this project's Python on a compute node.
ENVIRONMENT = f"source {shlex.quote(str(Path.cwd()))}/.venv/bin/activate"

# Without these, srun gives a task one core, and a second srun in the same batch job waits for the memory of the first.
STEP = f"--cpus-per-task={CORES} --cpu-bind=none --mem=0 --gpus-per-node={GPUS}"


def provider(site: Site, launcher: Launcher) -> SlurmProvider:
    """Requests batch jobs from Slurm and starts pilots on their nodes."""
    return SlurmProvider(
        account=site.account or None,
        partition=site.queue or None,
        nodes_per_block=site.nodes,
        init_blocks=0,
        max_blocks=site.pilots,
        walltime=site.walltime,
        exclusive=True,
        gpus_per_node=GPUS,
        cores_per_node=CORES,
        # mem=0: all of a node. no-requeue: Parsl replaces pilots, Slurm does not.
        scheduler_options="#SBATCH --mem=0\n#SBATCH --no-requeue",
        launcher=launcher,
        # ON_EACH_NODE: prefix that starts a command once on every node, for runs over several nodes.
        worker_init=f"{ENVIRONMENT}\nexport HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1\n"
        f"export ON_EACH_NODE='srun --nodes={site.nodes} --ntasks-per-node=1 {STEP}'",
        cmd_timeout=60,
    )


def pool(site: Site, label: str, accelerators: list[str], launcher: Launcher) -> HighThroughputExecutor:
    """A pool of nodes with one worker for each item of `accelerators`, each on its share of the cores."""
    return HighThroughputExecutor(
        label=label,
        provider=provider(site, launcher),
        address=ADDRESS,
        available_accelerators=accelerators,
        max_workers_per_node=len(accelerators),
        cpu_affinity="block",  # GPU 0 has the first cores; "block-reverse" where `nvidia-smi topo -m` shows the reverse
        prefetch_capacity=0,  # no run waits behind another while a slot is free
        heartbeat_period=15,
        heartbeat_threshold=120,  # seconds; pilots of a killed driver end within this time
        drain_period=60 * max(1, site.minutes - SPARE),  # runs that would end later wait for another pilot
    )


def config(site: Site) -> Config:
    """The pools. One that no job needs requests no nodes."""
    each = [str(gpu) for gpu in range(GPUS)]
    a_node = SrunLauncher(overrides=STEP) if site.nodes > 1 else SimpleLauncher()  # a manager on each
    return Config(
        executors=[
            pool(site, "gpu", each, a_node),
            pool(site, "node", [",".join(each)], a_node),  # for jobs that use several GPUs
            # for jobs that use several nodes: one manager per batch job
            pool(site, "nodes", [",".join(each)], SimpleLauncher()),
        ],
        strategy="htex_auto_scale",  # nodes are requested when jobs wait and released when idle
        strategy_period=10,
        max_idletime=120,
        retries=0,  # the plugin restarts lost runs and counts the restarts
        run_dir="logs/parsl",  # logs of pilots; on a file system that compute nodes share
    )
