"""Fine-tune a variant on a task with one seed: a classifier, or a language model on running text.

Settings: the fields of `FinetuneSettings`: seed, recipe (mask, schedule, distill, lora), the config's `finetune:`.
"""

import os
import shlex
import sys
from pathlib import Path

from llm_sparsity.jobs.command import add_devices, arguments, run
from llm_sparsity.jobs.lease import lease
from llm_sparsity.training.tracking import require


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
    parser.add_argument("--processes", type=int, default=1, help="minimum number of processes; at least one per GPU")
    parser.add_argument("--accelerate", default="node", help="name of a file in profiles/accelerate")
    parser.add_argument("--tracker", default="none", help="the config's tracker, or none")
    add_devices(parser)
    args = parser.parse_args()
    tracker = None if args.tracker == "none" else args.tracker
    if tracker:
        require(tracker)

    if "LOCAL_RANK" not in os.environ:
        here = lease(args.gpus)
        each = shlex.split(os.environ.get("ON_EACH_NODE", ""))  # set by a pool, or by hand within a batch job
        processes = max(args.processes, args.gpus if here and each else here)
        if processes > 1:
            import torch

            from llm_sparsity.training.launch import launch

            profiles = Path(__file__).parent.parent / "profiles/accelerate"
            profile = profiles / f"{args.accelerate if torch.cuda.is_available() else 'cpu'}.yaml"
            launch(sys.argv, processes, here, profile, args.threads, each)

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
        tracker=tracker,
    )


if __name__ == "__main__":
    run(main)
