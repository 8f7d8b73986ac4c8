"""Parsl configuration for Polaris. Edit the first block.

`python scripts/plan.py` recommends QUEUE, JOBS, NODES and WALLTIME for a study. queues.csv beside this file lists the
limits of the queues. For another site, replace the provider (parsl.readthedocs.io, "Providers") and the affinities.
"""

import socket
from pathlib import Path

from parsl.addresses import address_by_interface
from parsl.config import Config
from parsl.errors import ConfigurationError
from parsl.executors import HighThroughputExecutor
from parsl.launchers import MpiExecLauncher, SimpleLauncher, SingleNodeLauncher
from parsl.launchers.base import Launcher

from snakemake_executor_plugin_parsl.pbs import PBSProvider, wait_for_pilots

ACCOUNT = ""  # the project that is charged; `sbank-list-allocations` lists yours
QUEUE = "debug-scaling"  # preemptable for hundreds of runs
JOBS = 1  # maximum number of batch jobs at once; the queue may allow fewer
NODES = 5  # of each batch job; 1 if JOBS > 1; 2 for models with `gpus: 8`, 3 for `gpus: 12`, ...
WALLTIME = "01:00:00"  # of each batch job, HH:MM:SS
SPARE = (
    10  # minutes before the end of a batch job in which no run starts; an interrupted run resumes from its last save
)
FILESYSTEMS = "home:eagle"
INTERFACE = "hsn0"  # network interface of the login node that compute nodes reach
ENVIRONMENT = f"source {Path.cwd()}/.venv/bin/activate"  # activates this project's Python on a compute node

hours, minutes, _ = map(int, WALLTIME.split(":"))


def address() -> str:
    """The address at which pilots reach the driver."""
    if INTERFACE not in (names := [name for _, name in socket.if_nameindex()]):
        raise ConfigurationError(
            f"INTERFACE: found {INTERFACE!r}, but this machine has {', '.join(names)}; choose one of them"
        )
    return address_by_interface(INTERFACE)


def provider(launcher: Launcher) -> PBSProvider:
    """Requests batch jobs from PBS and starts pilots on their nodes."""
    return PBSProvider(
        queues=Path(__file__).with_name("queues.csv"),
        account=ACCOUNT,
        queue=QUEUE,
        nodes_per_block=NODES,
        init_blocks=0,
        max_blocks=JOBS,
        walltime=WALLTIME,
        cpus_per_node=64,
        select_options="system=polaris",
        # -r n: Parsl replaces pilots, PBS does not. -k doe: the only value that Polaris accepts.
        scheduler_options=f"#PBS -l filesystems={FILESYSTEMS}\n#PBS -l place=scatter\n#PBS -k doe\n#PBS -r n",
        launcher=launcher,
        # TMPDIR: that of PBS is too long for sockets. umask: that of PBS hides results from colleagues. ON_EACH_NODE:
        # prefix that starts a command once on every node, for runs over several nodes.
        worker_init=f"{ENVIRONMENT}\nexport TMPDIR=/tmp HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1\numask 022\n"
        f"export ON_EACH_NODE='mpiexec --envall -n {NODES} --ppn 1 --cpu-bind none'",
    )


def pool(label: str, accelerators: list[str], affinity: str, launcher: Launcher) -> HighThroughputExecutor:
    """A pool of nodes with one worker for each item of `accelerators`, pinned to the cores in `affinity`."""
    return HighThroughputExecutor(
        label=label,
        provider=provider(launcher),
        address=address(),
        available_accelerators=accelerators,
        max_workers_per_node=len(accelerators),
        cpu_affinity=affinity,
        prefetch_capacity=0,  # no run waits behind another while a slot is free
        heartbeat_period=15,
        heartbeat_threshold=120,  # seconds; pilots of a killed driver end within this time
        drain_period=max(60, hours * 3600 + minutes * 60 - SPARE * 60),
        block_error_handler=wait_for_pilots,
    )


one_manager_a_node = (
    MpiExecLauncher(bind_cmd="--cpu-bind", overrides="--depth=64 --ppn 1") if NODES > 1 else SingleNodeLauncher()
)
config = Config(
    executors=[  # a pool that no job needs requests no nodes
        # GPU 0 is nearest to the last cores of a node, GPU 3 to the first.
        pool("gpu", ["0", "1", "2", "3"], "list:24-31,56-63:16-23,48-55:8-15,40-47:0-7,32-39", one_manager_a_node),
        pool("node", ["0,1,2,3"], "list:0-63", one_manager_a_node),  # for jobs that use several GPUs
        pool(
            "nodes", ["0,1,2,3"], "list:0-63", SimpleLauncher()
        ),  # for jobs that use several nodes: one manager per batch job
    ],
    strategy="htex_auto_scale",  # nodes are requested when jobs wait and released when idle
    strategy_period=30,
    max_idletime=120,
    retries=0,  # the plugin restarts lost runs and counts the restarts
    run_dir="logs/parsl",  # logs of pilots; on a file system that compute nodes share
)
