"""Measure the zero-shot accuracy of a causal language model, dense or pruned, on a task of lm-evaluation-harness.

Settings: batch_size of `evaluate:` in the config.
"""

from pathlib import Path

from llm_sparsity.jobs.command import arguments, parse_and_lease, run
from llm_sparsity.jobs.lock import locked


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a variant")
    parser.add_argument("--task", type=Path, required=True, help="folder of a prepared task")
    parser.add_argument("--harness", type=Path, required=True, help="folder of the harness")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parse_and_lease(parser)

    from llm_sparsity.data.tasks import TaskFolder
    from llm_sparsity.evaluation.zero_shot import zero_shot
    from llm_sparsity.models.folder import ModelFolder

    with locked(args.output / ".zero_shot.lock"):  # a job of a killed driver may still write there
        model, task = ModelFolder(args.model), TaskFolder(args.task)
        zero_shot(model, task, args.output, packages=args.harness, **args.settings)


if __name__ == "__main__":
    run(main)
