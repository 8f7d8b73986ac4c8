"""Fine-tune a variant on a task with one seed: a classifier, or a language model on running text.

Settings: seed, the recipe (mask, schedule, distill, lora), and what `finetune:` in the config holds.
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
    parser.add_argument("--text", nargs="?", type=Path, help="manifest of the task whose text is trained on instead")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder of cached checkpoints")
    parser.add_argument(
        "--dense", nargs="?", type=Path, help="checkpoints.csv of the dense run, if the recipe needs it"
    )
    parser.add_argument("--save-minutes", type=float, default=15, help="between saves within an epoch")
    parser.add_argument("--code", default="", help="hash of the code, part of a cached checkpoint's name")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--processes", type=int, default=1, help="how many, at least")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to lease, where there are so many; one a process")
    parser.add_argument(
        "--accelerate", default="node", help="how processes work together: a file of profiles/accelerate"
    )
    args = parser.parse_args()

    if "LOCAL_RANK" not in os.environ:
        here = lease(args.gpus)
        each = shlex.split(os.environ.get("ON_EACH_NODE", ""))  # set by a pool, or by hand within a batch job
        processes = max(args.processes, args.gpus if here and each else here)
        if processes > 1:
            launch(processes, here, each, args.accelerate, args.threads)

    import torch

    from llm_sparsity.training.finetune import finetune

    torch.set_num_threads(args.threads)
    finetune(
        args.model,
        args.task,
        args.output,
        args.work,
        code=args.code,
        text=args.text and args.text.parent,
        dense=args.dense,
        save_minutes=args.save_minutes,
        **args.settings,
    )


def launch(processes: int, here: int, each: list[str], accelerate: str, threads: int) -> None:
    """Become `accelerate launch` of this script, with a file of profiles/accelerate/.

    Args:
        processes: how many in all, one a GPU.
        here: GPUs of this machine, and of every other; 0: one process a machine, if there are several.
        each: what starts a command once on each machine of a batch job, this one included; empty: there is no other.
        accelerate: the file's name; without a GPU it is cpu.
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
        # They meet here and agree who is first. The rank is read by none but a check of the port, which is of use here
        # alone, and was just made. Some seconds are too few where all read the same files of a slow disk.
        command += ["--num_machines", str(machines), "--machine_rank", "1"]
        command += ["--rdzv_backend", "c10d", "--rdzv_conf", "read_timeout=300"]
        command += ["--main_process_ip", platform.node(), "--main_process_port", str(port)]
        command = [*each, *command]
    os.execvp(command[0], [*command, *sys.argv])


if __name__ == "__main__":
    run(main)
