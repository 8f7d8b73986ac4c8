"""Download a model, a task, or lm-evaluation-harness, and write a manifest of its files.

Settings of a model: source, architecture. Settings of a task: source, files, kind and columns; see config.yaml.
"""

from pathlib import Path

from llm_sparsity.jobs.command import arguments, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("kind", choices=["model", "task", "harness"], help="what to download")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--harness", type=Path, nargs="?", help="manifest of lm-evaluation-harness, for a zero-shot task"
    )
    parser.add_argument("--head", type=Path, nargs="?", help="manifest of the task that a model's head was trained on")
    parser.add_argument("--lock", type=Path, help="requirements file of the harness")
    args = parser.parse_args()

    from llm_sparsity.data import harness
    from llm_sparsity.data.download import download_model, download_task
    from llm_sparsity.data.tasks import TaskFolder

    match args.kind:
        case "model":
            download_model(args.output, head=args.head and TaskFolder(args.head.parent), **args.settings)
        case "task":
            download_task(args.output, packages=args.harness and args.harness.parent, **args.settings)
        case "harness":
            harness.install(args.output, lock=args.lock)


if __name__ == "__main__":
    run(main)
