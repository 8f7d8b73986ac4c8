"""Several processes of one run: `accelerate launch` with a rendezvous that only the run's machines can reach.

torchrun's own rendezvous listens on every interface, and its backend c10d unpickles what any peer sends: whoever
reaches the port can run code as the user. `Rendezvous` is a `TCPStore`, which holds plain bytes, on one address: of one
machine the loopback address, of several that of the first. The processes listen on the interface of that address, too.
They exchange tensors alone; torch's object collectives, which use pickle, are not used.
"""

import argparse
import errno
import os
import platform
import shlex
import socket
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from torch.distributed import DistNetworkError, DistStoreError, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from llm_sparsity.jobs.command import run
from llm_sparsity.jobs.errors import UserError

LOOPBACK = "127.0.0.1"
PATIENCE = 600  # seconds: the machines of a batch job import from one file system, some much later than others
_ELSEWHERE = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)  # the address is held by another process, or on another machine


class Rendezvous(RendezvousHandler):
    """The rendezvous of a run's machines. The one that can listen on the address serves the store and is the first.

    Args:
        address: IPv4 address of the first machine.
        port: 0 for any free one, if there is one machine.
        machines: number of machines.
        patience: seconds to wait for the first machine.
    """

    def __init__(self, address: str, port: int, machines: int, patience: float = PATIENCE) -> None:
        self._address, self._port, self._machines, self._patience = address, port, machines, patience

    def get_backend(self) -> str:
        """The name for `--rdzv_backend`."""
        return "one-address"

    @property
    def use_agent_store(self) -> bool:
        """Processes use this store, instead of starting another that listens on every interface."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """The store, this machine's rank and the number of machines.

        Raises:
            UserError: the first machine cannot be reached.
        """
        listener = _listener(self._address, self._port)
        port = listener.getsockname()[1] if listener else self._port
        more: dict[str, Any] = {"master_listen_fd": listener.detach()} if listener else {}
        try:
            store = TCPStore(
                self._address, port, is_master=bool(more), wait_for_workers=False, multi_tenant=True,
                timeout=timedelta(seconds=self._patience), **more,
            )  # fmt: skip
        except (DistNetworkError, DistStoreError) as error:
            raise UserError(
                f"MASTER_ADDR: found {self._address}, where no process of this run answers on port {port}; set it to "
                "the address at which the first machine is reached from the others"
            ) from error
        rank = 0 if more else store.add("machines", 1)
        info = RendezvousStoreInfo(self._address, port)
        return RendezvousInfo(PrefixStore("run", store), rank, self._machines, info)

    def is_closed(self) -> bool:
        """Never: a run starts once."""
        return False

    def set_closed(self) -> None:
        """Do nothing."""

    def num_nodes_waiting(self) -> int:
        """No machine joins later."""
        return 0

    def get_run_id(self) -> str:
        """A run has its own store and needs no name."""
        return "run"

    def shutdown(self) -> bool:
        """The store ends with the process."""
        return True


def launch(
    script: Sequence[str], processes: int, here: int, accelerate: Path, threads: int, each: Sequence[str] = ()
) -> None:
    """Replace this process by the processes of a run.

    Args:
        script: the script and its arguments.
        processes: number of processes on all machines, one per GPU.
        here: GPUs of this machine and of every other; 0: one process per machine.
        accelerate: a configuration file of accelerate.
        threads: of each process.
        each: the command that starts another command once on each machine of a batch job; empty for one machine.

    Raises:
        UserError: the processes do not fill the machines.
    """
    machines, rest = divmod(processes, here or 1) if each else (1, 0)
    if rest:
        raise UserError(f"gpus: found {processes}, but a machine has {here}, and a run over several uses all of each")
    command = [sys.executable, "-m", "llm_sparsity.training.launch", "--config", str(accelerate)]
    command += ["--processes", str(processes), "--machines", str(machines)]
    if machines > 1:
        address = os.environ.get("MASTER_ADDR") or socket.gethostbyname(platform.node())
        command += ["--address", f"{socket.gethostbyname(address)}:{_free_port(address)}"]
        command = [*each, *command]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.execvp(command[0], [*command, *script])


def main() -> None:
    """Start the processes of this machine, and wait for them."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a configuration file of accelerate")
    parser.add_argument("--processes", type=int, required=True, help="processes on all machines")
    parser.add_argument("--machines", type=int, default=1, help="machines, each of which runs this command")
    parser.add_argument("--address", default=f"{LOOPBACK}:0", help="IPv4 address of the first machine, and a free port")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the script and its arguments")
    args = parser.parse_args()
    address, _, port = args.address.rpartition(":")

    def make(params: RendezvousParameters) -> RendezvousHandler:
        return Rendezvous(address, int(port), params.max_nodes)

    rendezvous_handler_registry.register("one-address", make)
    _listen_on(interface(address), always=args.machines == 1)
    flags = ["--config_file", args.config, "--num_processes", str(args.processes)]
    flags += ["--num_machines", str(args.machines), "--main_process_ip", address, "--main_process_port", port]
    # Ranks are given by the rendezvous. Any rank but 0 disables accelerate's check that nobody listens on the port.
    flags += ["--machine_rank", "1" if args.machines > 1 else "0", "--rdzv_backend", "one-address"]
    print(f"{args.machines} machines, {args.processes} processes:", shlex.join(flags), file=sys.stderr)
    launch_command(launch_command_parser().parse_args([*flags, *args.script]))


def interface(address: str) -> str:
    """The name of this machine's network interface that leads to an IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # nothing is sent
        own = probe.getsockname()[0]
    found: dict[str, list[Any]] = psutil.net_if_addrs()
    return next(name for name, addresses in found.items() if any(entry.address == own for entry in addresses))


def _listen_on(name: str, *, always: bool) -> None:
    """Bind the processes' own connections to a network interface.

    Args:
        always: also if the environment names another: on a cluster, it names a fast network between machines.
    """
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if always or variable not in os.environ:
            os.environ[variable] = name


def _listener(address: str, port: int) -> socket.socket | None:
    """A socket that listens on this address alone; None if that is not for this process to do."""
    listener = socket.socket()
    try:
        listener.bind((address, port))
        listener.listen(socket.SOMAXCONN)
    except OSError as error:
        listener.close()
        if error.errno in _ELSEWHERE:
            return None
        raise
    return listener


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    run(main)
