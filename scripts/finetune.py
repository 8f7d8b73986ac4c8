"""Fine-tune a variant on a task with one seed: a classifier, or a language model on running text.

Settings: the fields of `FinetuneSettings`: seed, recipe (mask, schedule, distill, lora), the config's `finetune:`.
"""

import os
import platform
import shlex
import socket
import sys
from pathlib import Path

from llm_sparsity.jobs.command import arguments, run
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.jobs.lease import lease


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a variant")
    parser.add_argument("--task", type=Path, required=True, help="folder of a prepared task")
    parser.add_argument("--text", nargs="?", type=Path, help="manifest of another task, to train on its text")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder of caches")
    parser.add_argument(
        "--dense", nargs="?", type=Path, help="manifest of the dense run's model folder, if the recipe needs it"
    )
    parser.add_argument("--save-minutes", type=float, default=15, help="minutes between saves within an epoch")
    parser.add_argument("--code", default="", help="hash of the code, part of the cache's key")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--processes", type=int, default=1, help="minimum number of processes")
    parser.add_argument(
        "--gpus", type=int, default=0, help="number of GPUs to reserve, one per process (fewer if there are fewer)"
    )
    parser.add_argument("--accelerate", default="node", help="name of a file in profiles/accelerate")
    args = parser.parse_args()

    if "LOCAL_RANK" not in os.environ:
        here = lease(args.gpus)
        each = shlex.split(os.environ.get("ON_EACH_NODE", ""))  # set by a pool, or by hand within a batch job
        processes = max(args.processes, args.gpus if here and each else here)
        if processes > 1:
            launch(processes, here, each, args.accelerate, args.threads)

    import torch

    from llm_sparsity.data.tasks import TaskFolder
    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.training.finetune import finetune
    from llm_sparsity.training.settings import FinetuneSettings

    torch.set_num_threads(args.threads)
    finetune(
        ModelFolder(args.model),
        TaskFolder(args.task),
        args.output,
        args.work,
        FinetuneSettings.from_dict(args.settings),
        code=args.code,
        text=TaskFolder(args.text.parent) if args.text else None,
        dense=ModelFolder(args.dense.parent) if args.dense else None,
        save_minutes=args.save_minutes,
    )


def launch(processes: int, here: int, each: list[str], accelerate: str, threads: int) -> None:
    """Replace this process by `accelerate launch` of this script.

    Args:
        processes: number of processes on all machines, one per GPU.
        here: GPUs of this machine and of every other; 0: one process per machine.
        each: the command that starts another command once on each machine of a batch job; empty for one machine.
        accelerate: name of a file in profiles/accelerate; without a GPU, `cpu` is used.
        threads: of each process.

    Raises:
        UserError: the processes do not fill the machines.
    """
    machines, rest = divmod(processes, here or 1) if each else (1, 0)
    if rest:
        raise UserError(f"gpus: found {processes}, but a machine has {here}, and a run over several uses all of each")
    import torch

    profiles = Path(__file__).parent.parent / "profiles/accelerate"
    config = profiles / f"{accelerate if torch.cuda.is_available() else 'cpu'}.yaml"
    os.environ["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(config), "--num_processes", str(processes)]
    if machines > 1:
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        # All machines rendezvous at a port of this one and agree on their ranks. The rank given here only disables
        # accelerate's check that the port is free, which makes sense on this machine alone and was just made. The
        # default timeout of some seconds is too short if all machines import from a slow shared file system.
        command += ["--num_machines", str(machines), "--machine_rank", "1"]
        command += ["--rdzv_backend", "c10d", "--rdzv_conf", "read_timeout=300"]
        command += ["--main_process_ip", platform.node(), "--main_process_port", str(port)]
        command = [*each, *command]
    os.execvp(command[0], [*command, *sys.argv])


if __name__ == "__main__":
    run(main)
