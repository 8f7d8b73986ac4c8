"""Measure what a variant costs: bytes, seconds to load, memory and seconds of inference.

Settings: what `measure:` in the config holds.
"""

from pathlib import Path

from llm_sparsity.errors import arguments, run
from llm_sparsity.lease import lease


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a variant")
    parser.add_argument("--dense", type=Path, required=True, help="folder of the dense model it was made from")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to lease, where there are so many")
    args = parser.parse_args()
    lease(args.gpus)

    import torch

    from llm_sparsity.measure import measure

    torch.set_num_threads(args.threads)
    measure(args.model, args.dense, args.output, **args.settings)


if __name__ == "__main__":
    run(main)
