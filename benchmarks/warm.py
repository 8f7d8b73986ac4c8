"""Seconds of a small run that is started alone, and of one that a warm process forks.

    PYTHONPATH=workflow python benchmarks/warm.py --model FOLDER --task FOLDER [--write]

Both are scripts/finetune.py on the first 32 training and validation rows, one epoch; they take turns. Seconds are those
of the clock, from start to end; the first warm run, which starts the process, is told apart.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from finetune import SCRIPT, SETTINGS
from table import machine, table, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a variant")
    parser.add_argument("--task", type=Path, required=True, help="folder of a prepared task")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="write the table into BENCHMARKS.md")
    args = parser.parse_args()
    from llm_sparsity.files import read_manifest, write_manifest

    seconds: dict[str, list[float]] = {"alone": [], "warm": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split in ("train", "validation"):
            lines = (args.task / f"{split}.jsonl").read_text().splitlines(keepends=True)
            (folder / f"{split}.jsonl").write_text("".join(lines[:32]))
        write_manifest(folder, kind="task", task="classification", labels=read_manifest(args.task)["labels"])
        for seed in range(args.rounds):
            for way, found in seconds.items():
                command = [sys.executable, SCRIPT, "--model", args.model, "--task", folder, "--output", folder / way]
                command += ["--work", folder / f"work-{way}", "--settings", json.dumps(SETTINGS | {"seed": seed})]
                command += ["--warm", "60"] if way == "warm" else []
                begun = time.perf_counter()
                subprocess.run(list(map(str, command)), check=True, capture_output=True)
                found.append(time.perf_counter() - begun)
                print(way, f"{found[-1]:.1f}", flush=True)
    first, *later = seconds["warm"]
    alone = statistics.median(seconds["alone"][1:])
    row = [f"{alone:.1f}", f"{first:.1f}", f"{statistics.median(later):.1f}", f"{alone - statistics.median(later):.1f}"]
    text = table(["alone, s", "first warm run, s", "warm, s", "saved by each run, s"], [row], texts=0)
    text += f"\n\n{args.model.name}, {args.task.name}, 32 rows. {machine(1)}."
    print(text)
    if args.write:
        write("warm", text)


if __name__ == "__main__":
    main()
