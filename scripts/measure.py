"""Measure the cost of a variant: bytes, seconds to load, memory and seconds of inference.

Settings: the fields of `measure:` in the config.
"""

from pathlib import Path

from llm_sparsity.jobs.command import arguments, parse_and_lease, run
from llm_sparsity.jobs.lock import locked


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a variant")
    parser.add_argument("--dense", type=Path, required=True, help="folder of the dense model it was made from")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parse_and_lease(parser)

    from llm_sparsity.inference.measure import measure
    from llm_sparsity.models.folder import ModelFolder

    with locked(args.output / ".measure.lock"):  # a job of a killed driver may still write there
        measure(ModelFolder(args.model), ModelFolder(args.dense), args.output, **args.settings)


if __name__ == "__main__":
    run(main)
