"""Prune a model to one sparsity: writes model/ (a sparse checkpoint) and sparsity.csv.

Settings: method, scope, sparsity, and what `prune:` in the config holds; of a calibrated method `calibration:` too.
"""

from pathlib import Path

from llm_sparsity.jobs.command import arguments, parse_and_lease, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the dense model")
    parser.add_argument("--text", type=Path, nargs="?", help="manifest of a prepared task to calibrate with")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parse_and_lease(parser)

    from llm_sparsity.pruning.prune import prune

    sparsity = args.settings.pop("sparsity")
    prune(args.model, {sparsity: args.output}, text=args.text and args.text.parent, **args.settings)


if __name__ == "__main__":
    run(main)
