"""Prune a model to one sparsity: writes model/ (a sparse checkpoint) and sparsity.csv.

Settings: method, scope, sparsity, and the values of `prune:` in the config; for calibrated methods also `calibration:`.
"""

from pathlib import Path

from llm_sparsity.jobs.command import arguments, parse_and_lease, run
from llm_sparsity.jobs.lock import locked


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the dense model")
    parser.add_argument("--text", type=Path, nargs="?", help="manifest of the task with the calibration text")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parse_and_lease(parser)

    from llm_sparsity.data.tasks import TaskFolder
    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.pruning.prune import prune
    from llm_sparsity.study.sparsity import Sparsity

    with locked(args.output / ".prune.lock"):  # a job of a killed driver may still write there
        text = TaskFolder(args.text.parent) if args.text else None
        sparsity = Sparsity(args.settings.pop("sparsity"))
        prune(ModelFolder(args.model), {sparsity: args.output}, text=text, **args.settings)


if __name__ == "__main__":
    run(main)
