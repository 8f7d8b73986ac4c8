"""Fine-tune a variant on a classification task with one seed, its mask kept or released.

Settings: mask, seed, and what `finetune:` in the config holds.
"""

import os
import sys
from pathlib import Path

from llm_sparsity.errors import arguments, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a variant")
    parser.add_argument("--task", type=Path, required=True, help="folder of a prepared task")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder of cached checkpoints")
    parser.add_argument("--code", default="", help="hash of the code, part of a cached checkpoint's name")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--processes", type=int, default=1, help="more than one: started by accelerate launch")
    args = parser.parse_args()

    if args.processes > 1 and "LOCAL_RANK" not in os.environ:
        launch = ["accelerate", "launch", "--num_processes", str(args.processes), "--num_machines", "1"]
        launch += [
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--num_cpu_threads_per_process",
            str(args.threads),
        ]
        os.execvp(sys.executable, [sys.executable, "-m", "accelerate.commands.accelerate_cli", *launch[1:], *sys.argv])

    import torch

    from llm_sparsity.finetune import finetune

    torch.set_num_threads(args.threads)
    finetune(args.model, args.task, args.output, args.work, code=args.code, **args.settings)


if __name__ == "__main__":
    run(main)
