"""Calibrated pruning of a model of 1.2B RANDOM weights in a Llama's shape: CPU seconds and peak memory.

    PYTHONPATH=workflow python benchmarks/calibrated.py            Wanda at .5
    PYTHONPATH=workflow python benchmarks/calibrated.py --write    the same, and the table goes into BENCHMARKS.md

The checkpoint is that of benchmarks/prune.py --params. The calibration text is of random words, so the sequences are
real ones to the machine and to nobody else. Peak memory is the resident set of the pruning process, with libraries and
with the pages of mapped input files, which the system takes back when it needs them; extra memory is anonymous memory
beyond what the process had when pruning began (Linux).
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from prune import GIB, extra_memory, make
from shared import argument_parser, machine, publish, table, word_tokenizer

WORDS = 5000


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--params", type=float, default=1.2e9, help="size of the model (default 1.2e9)")
    parser.add_argument("--method", default="wanda", help="a calibrated method (default wanda)")
    parser.add_argument("--samples", type=int, default=8, help="calibration sequences (default 8)")
    parser.add_argument("--sequence-length", type=int, default=512, help="tokens in each (default 512)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1)")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--part", choices=["make", "prune"], help=argparse.SUPPRESS)  # what a child process does
    args = parser.parse_args()
    if args.part:
        print(json.dumps(_made(args) if args.part == "make" else _pruned(args)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        made, ours = (_run(temporary, part) for part in ("make", "prune"))
    found = [
        ("CPU s", f"{ours['seconds']:.0f}"),
        *(
            (f"{what}, GiB", f"{ours[key] / GIB:.2f}")
            for what, key in [("peak memory", "peak"), ("extra memory", "own")]
        ),
        ("one block in float32, GiB", f"{made['block'] / GIB:.2f}"),
        ("embeddings, GiB", f"{made['embeddings'] / GIB:.2f}"),
    ]
    text = (
        f"{made['size'] / 1e9:.2f}B random float32 weights in Llama's shape, {made['bytes'] / GIB:.1f} GiB, half of "
        f"every matrix removed by {args.method}, {args.samples} sequences of {args.sequence_length} tokens. "
        f"{machine(args.threads)}.\n\n"
    ) + table([what for what, _ in found], [[value for _, value in found]], texts=0)
    publish("calibrated", text, write=args.write)


def _run(folder: str, part: str) -> dict[str, Any]:
    """One part in a process of its own; what it measured."""
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder, "--part", part]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
    )
    print(part, found, file=sys.stderr)
    return found


def _made(args: argparse.Namespace) -> dict[str, Any]:
    """The model, a tokenizer for it, and a text."""
    from llm_sparsity.data.preparation import TaskSettings, prepare
    from llm_sparsity.storage.container import Reader
    from llm_sparsity.storage.files import write_manifest

    made = make(args.folder, str(int(args.params)))
    words = [f"w{number}" for number in range(WORDS)]
    word_tokenizer(args.folder / "dense", words)
    lines = random.Random(0).choices(words, k=2 * args.samples * args.sequence_length)
    (args.folder / "words.txt").write_text("\n".join(lines))
    facts = prepare({"train": args.folder / "words.txt"}, args.folder / "words", TaskSettings(kind="language-model"))
    write_manifest(args.folder / "words", kind="task", **facts)
    with Reader(args.folder / "dense") as reader:
        sizes = {name: 4 * reader.tensor(name).numel() for name in reader.names}
    return made | {
        "block": sum(size for name, size in sizes.items() if "layers.0." in name),
        "embeddings": sizes["model.embed_tokens.weight"],
    }


def _pruned(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from llm_sparsity.data.tasks import TaskFolder
    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.pruning.prune import prune
    from llm_sparsity.study.sparsity import Sparsity

    torch.set_num_threads(args.threads)
    begun = time.process_time()
    with extra_memory() as memory:
        prune(
            ModelFolder(args.folder / "dense"), {Sparsity("0.5"): args.folder / "pruned"}, method=args.method,
            scope="linear",
            calibration={"samples": args.samples, "sequence_length": args.sequence_length, "seed": 0},
            text=TaskFolder(args.folder / "words"),
        )  # fmt: skip
    seconds = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "own": memory[0], "peak": peak}


if __name__ == "__main__":
    main()
