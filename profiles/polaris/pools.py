"""Where jobs run on Polaris: an ordinary Parsl configuration file. The first block is yours to edit.

`python scripts/plan.py` says which QUEUE, JOBS, NODES and WALLTIME a study needs; queues.csv beside this file holds
what queues take. Another site: replace the provider (parsl.readthedocs.io, "Providers") and the affinities.
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

ACCOUNT = ""  # the project that pays; `sbank-list-allocations` shows yours
QUEUE = "debug-scaling"  # preemptable for hundreds of runs
JOBS = 1  # batch jobs at once, at most; the queue may take fewer
NODES = 5  # of each batch job; 1 where there are several jobs, 2 for models with `gpus: 8`, 3 with `gpus: 12`, ...
WALLTIME = "01:00:00"  # of each batch job, HH:MM:SS
SPARE = 10  # minutes before its end in which no run begins on a node; one that is cut off goes on from its last save
FILESYSTEMS = "home:eagle"
INTERFACE = "hsn0"  # of the login node: the network by which compute nodes reach it
ENVIRONMENT = f"source {Path.cwd()}/.venv/bin/activate"  # what makes `python` this project's on a compute node

hours, minutes, _ = map(int, WALLTIME.split(":"))


def address() -> str:
    """The address at which pilots find this run."""
    if INTERFACE not in (names := [name for _, name in socket.if_nameindex()]):
        raise ConfigurationError(
            f"INTERFACE: found {INTERFACE!r}, but this machine has {', '.join(names)}; name another"
        )
    return address_by_interface(INTERFACE)


def provider(launcher: Launcher) -> PBSProvider:
    """How nodes are asked for, and what is started on them."""
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
        # -r n: a pilot is replaced here, not by PBS. -k doe: Polaris takes no other.
        scheduler_options=f"#PBS -l filesystems={FILESYSTEMS}\n#PBS -l place=scatter\n#PBS -k doe\n#PBS -r n",
        launcher=launcher,
        # TMPDIR: PBS's own is too long for sockets. umask: PBS's own hides results from colleagues. ON_EACH_NODE: what
        # starts a command once on every node, for runs over several.
        worker_init=f"{ENVIRONMENT}\nexport TMPDIR=/tmp HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1\numask 022\n"
        f"export ON_EACH_NODE='mpiexec --envall -n {NODES} --ppn 1 --cpu-bind none'",
    )


def pool(label: str, accelerators: list[str], affinity: str, launcher: Launcher) -> HighThroughputExecutor:
    """A pool of nodes with one worker for each of `accelerators`, pinned to the cores in `affinity`."""
    return HighThroughputExecutor(
        label=label,
        provider=provider(launcher),
        address=address(),
        available_accelerators=accelerators,
        max_workers_per_node=len(accelerators),
        cpu_affinity=affinity,
        prefetch_capacity=0,  # a run never waits behind another while a slot is free
        heartbeat_period=15,
        heartbeat_threshold=120,  # seconds; a driver that was killed leaves pilots for so long, never longer
        drain_period=max(60, hours * 3600 + minutes * 60 - SPARE * 60),
        block_error_handler=wait_for_pilots,
    )


one_manager_a_node = (
    MpiExecLauncher(bind_cmd="--cpu-bind", overrides="--depth=64 --ppn 1") if NODES > 1 else SingleNodeLauncher()
)
config = Config(
    executors=[  # a pool that no job needs asks for nothing
        # GPU 0 is beside the last cores of a node, GPU 3 beside the first.
        pool("gpu", ["0", "1", "2", "3"], "list:24-31,56-63:16-23,48-55:8-15,40-47:0-7,32-39", one_manager_a_node),
        pool("node", ["0,1,2,3"], "list:0-63", one_manager_a_node),  # for jobs that use several GPUs
        pool("nodes", ["0,1,2,3"], "list:0-63", SimpleLauncher()),  # for more than a node has: one manager a batch job
    ],
    strategy="htex_auto_scale",  # nodes come when jobs wait, and go when idle
    strategy_period=30,
    max_idletime=120,
    retries=0,  # lost runs are started again by the plugin, which counts them
    run_dir="logs/parsl",  # of pilots; on a file system that compute nodes see
)
