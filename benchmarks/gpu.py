"""Every CUDA path of this project, proved and measured by one command, in at most eight minutes and without a network.

    PYTHONPATH=workflow python benchmarks/gpu.py --output gpu                 all parts, on the GPU
    PYTHONPATH=workflow python benchmarks/gpu.py --output gpu --parts speed   one part
    PYTHONPATH=workflow python benchmarks/gpu.py --output gpu --device cpu    the rehearsal: tiny shapes, any machine
    PYTHONPATH=workflow python benchmarks/gpu.py --output gpu --write         the table, from the results that exist

Each part prints PASS or FAIL with its figures, writes `{output}/{part}.json`, and goes on after a failure. A part whose
file exists is not run again; delete the file to repeat it. Models have RANDOM weights: correctness and seconds depend
on shapes alone. `recovery` needs real data: `--real FOLDER` holds model/ (MiniLM) and task/ (prepared SST-2).

Stages run as their scripts do, in processes of their own, with the GPU or with it hidden: the same code for both. The
processes are forks of one that has imported the libraries and computed nothing.
"""

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import gpu_children
from gpu_bench import Bench, Check, preload
from gpu_parts import PARTS
from shared import replace_block, table


def run_part(bench: Bench, name: str) -> bool:
    """Run a part and write its file; whether nothing failed."""
    checks, begun = [], time.perf_counter()
    try:
        for check in PARTS[name](bench):
            checks.append(check)
            word = {True: "PASS", False: "FAIL", None: "    "}[check.ok]
            print(f"{word}  {name}: {check.name}: {check.figure}", flush=True)
    except Exception as error:  # a part that fails must not take the others with it
        checks.append(Check("ended early", f"{type(error).__name__}: {error}", ok=False))
        print(f"FAIL  {name}: {checks[-1].figure}", flush=True)
    facts = {"device": bench.child(gpu_children.device_name), "seconds": time.perf_counter() - begun}
    facts["checks"] = [asdict(check) for check in checks]
    (bench.folder / f"{name}.json").write_text(json.dumps(facts, indent=1))
    return all(check.ok is not False for check in checks)


def report(folder: Path) -> str:
    """The table of all parts that have a file."""
    rows, devices = [], []
    for name in PARTS:
        if (folder / f"{name}.json").exists():
            found = json.loads((folder / f"{name}.json").read_text())
            devices.append(found["device"])
            words = {True: "yes", False: "no", None: ""}
            rows += [[name, check["name"], check["figure"], words[check["ok"]]] for check in found["checks"]]
    heads = ["part", "what", "figure", "correct"]
    return f"{'; '.join(dict.fromkeys(devices))}\n\n" + table(heads, rows, texts=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for results, logs and the work folder")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu rehearses with tiny shapes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default all)")
    parser.add_argument("--real", type=Path, help="folder with model/ and task/ for the part recovery")
    parser.add_argument("--write", action="store_true", help="write the table of existing results to BENCHMARKS.md")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    bench = Bench(args.output.resolve(), args.device, args.real and args.real.resolve())
    if args.write:
        replace_block("gpu", report(args.output))
        return
    preload()
    left = [name for name in args.parts if not (args.output / f"{name}.json").exists()]
    passed = [run_part(bench, name) for name in left]
    shutil.rmtree(bench.work, ignore_errors=True)
    print(report(args.output))
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
