"""Fine-tune a variant on a classification task with one seed, its mask kept or released.

Settings: mask, seed, and what `finetune:` in the config holds.
"""

import os
import sys
from pathlib import Path

from llm_sparsity.errors import arguments, run
from llm_sparsity.lease import lease


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a variant")
    parser.add_argument("--task", type=Path, required=True, help="folder of a prepared task")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder of cached checkpoints")
    parser.add_argument("--save-minutes", type=float, default=15, help="between saves within an epoch")
    parser.add_argument("--code", default="", help="hash of the code, part of a cached checkpoint's name")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--processes", type=int, default=1, help="how many, at least")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to lease, where there are so many; one a process")
    args = parser.parse_args()

    if "LOCAL_RANK" not in os.environ:
        processes = max(args.processes, lease(args.gpus))
        if processes > 1:
            launch(processes, args.threads)

    import torch

    from llm_sparsity.finetune import finetune

    torch.set_num_threads(args.threads)
    finetune(
        args.model, args.task, args.output, args.work, code=args.code, save_minutes=args.save_minutes, **args.settings
    )


def launch(processes: int, threads: int) -> None:
    """Become the launcher of this script's processes: accelerate's on GPUs, torch's own on CPUs, which accelerate
    starts through MPI alone.
    """
    import torch

    if torch.cuda.is_available():
        module = ["accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", str(processes)]
        module += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    else:
        module = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        module += ["--nproc-per-node", str(processes)]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.execv(sys.executable, [sys.executable, "-m", *module, *sys.argv])


if __name__ == "__main__":
    run(main)
