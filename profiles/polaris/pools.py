"""The pools of Polaris: a Parsl configuration, made from the settings in config.yaml beside this file.

For another site with PBS, change the first block, the affinities and queues.csv. For another batch system, also replace
the provider (parsl.readthedocs.io, "Providers").
"""

import shlex
import socket
from pathlib import Path

from parsl.addresses import address_by_interface
from parsl.config import Config
from parsl.errors import ConfigurationError
from parsl.executors import HighThroughputExecutor
from parsl.launchers import MpiExecLauncher, SimpleLauncher
from parsl.launchers.base import Launcher

from snakemake_executor_plugin_parsl.pbs import PBSProvider
from snakemake_executor_plugin_parsl.site import Site

SPARE = 3  # minutes of a pilot for its start and end, in which no run is planned
FILESYSTEMS = "home:eagle"
INTERFACE = "hsn0"  # network interface of the login node that compute nodes reach
# Activates this project's Python on a compute node.
ENVIRONMENT = f"source {shlex.quote(str(Path.cwd()))}/.venv/bin/activate"
# GPU 0 is nearest to the last cores of a node, GPU 3 to the first.
BESIDE_GPUS = "list:24-31,56-63:16-23,48-55:8-15,40-47:0-7,32-39"
ALL_CORES = "list:0-63"


def address() -> str:
    """The address at which pilots reach the driver."""
    if INTERFACE not in (names := [name for _, name in socket.if_nameindex()]):
        raise ConfigurationError(
            f"INTERFACE: found {INTERFACE!r}, but this machine has {', '.join(names)}; choose one of them"
        )
    return address_by_interface(INTERFACE)


def provider(site: Site, launcher: Launcher) -> PBSProvider:
    """Requests batch jobs from PBS and starts pilots on their nodes."""
    return PBSProvider(
        queues=Path(__file__).with_name("queues.csv"),
        account=site.account,
        queue=site.queue,
        nodes_per_block=site.nodes,
        init_blocks=0,
        max_blocks=site.pilots,
        walltime=site.walltime,
        cpus_per_node=64,
        select_options="system=polaris",
        # -r n: Parsl replaces pilots, PBS does not. -k doe: the only value that Polaris accepts.
        scheduler_options=f"#PBS -l filesystems={FILESYSTEMS}\n#PBS -l place=scatter\n#PBS -k doe\n#PBS -r n",
        launcher=launcher,
        # TMPDIR: that of PBS is too long for sockets. umask: that of PBS hides results from colleagues. ON_EACH_NODE:
        # prefix that starts a command once on every node, for runs over several nodes.
        worker_init=f"{ENVIRONMENT}\nexport TMPDIR=/tmp HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1\numask 022\n"
        f"export ON_EACH_NODE='mpiexec --envall -n {site.nodes} --ppn 1 --cpu-bind none'",
    )


def pool(site: Site, label: str, accelerators: list[str], affinity: str, launcher: Launcher) -> HighThroughputExecutor:
    """A pool of nodes with one worker for each item of `accelerators`, pinned to the cores in `affinity`."""
    return HighThroughputExecutor(
        label=label,
        provider=provider(site, launcher),
        address=address(),
        available_accelerators=accelerators,
        max_workers_per_node=len(accelerators),
        cpu_affinity=affinity,
        prefetch_capacity=0,  # no run waits behind another while a slot is free
        heartbeat_period=15,
        heartbeat_threshold=120,  # seconds; pilots of a killed driver end within this time
        drain_period=60 * max(1, site.minutes - SPARE),  # runs that would end later wait for another pilot
    )


def config(site: Site) -> Config:
    """The pools. One that no job needs requests no nodes."""
    every_node = MpiExecLauncher(bind_cmd="--cpu-bind", overrides="--depth=64 --ppn 1")  # a manager on each
    a_node = every_node if site.nodes > 1 else SimpleLauncher()
    return Config(
        executors=[
            pool(site, "gpu", ["0", "1", "2", "3"], BESIDE_GPUS, a_node),
            pool(site, "node", ["0,1,2,3"], ALL_CORES, a_node),  # for jobs that use several GPUs
            # for jobs that use several nodes: one manager per batch job
            pool(site, "nodes", ["0,1,2,3"], ALL_CORES, SimpleLauncher()),
        ],
        strategy="htex_auto_scale",  # nodes are requested when jobs wait and released when idle
        strategy_period=10,
        max_idletime=120,
        retries=0,  # the plugin restarts lost runs and counts the restarts
        run_dir="logs/parsl",  # logs of pilots; on a file system that compute nodes share
    )
