"""Measure how well runs are packed onto nodes, with real Snakemake, plugin and Parsl; runs sleep for scaled minutes.

Two cases, with runs of 25, 12 and 3 minutes: 36 runs on 5 nodes, and 500 on 20 nodes (or a fraction of both: --part 4
is 125 on 5). Every slot first runs a job that waits for all others, so that all pilots have started before the clock.
The plugin starts a Snakemake for each job, which costs seconds of CPU time. Twenty at once on two cores would distort
the simulation, so a stub replaces it unless --real is given. The times of jobs in slots come from Parsl's logs.

    PYTHONPATH=workflow python benchmarks/packing.py --write
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from shared import argument_parser, publish, table

from llm_sparsity.study.advice import PILOT_MINUTES, Queue, pack

SLOTS = 4  # GPUs of a node
NODES = Queue("any", SLOTS, 1, 100, 1, 6000, 1, "")
ROOT = Path(__file__).parent.parent
CASES = {
    "36 runs": ([25.0] * 18 + [3.0] * 18, 5, True),  # one batch job: every node is charged until the last run ends
    "500 runs": ([25.0] * 150 + [3.0] * 150 + [12.0] * 200, 20, False),  # one batch job per node
}
IDLE = 2.0  # minutes that an idle node is kept, as max_idletime in profiles/polaris/pools.py
SNAKEFILE = """
rule all:
    input: expand("out/run-{job}", job=range(config["runs"]))
    localrule: True
rule wait:
    output: "out/wait-{job}"
    resources: gpu=1
    shell: "sh job.sh wait {wildcards.job} {output}"
rule run:
    input: expand("out/wait-{job}", job=range(config["slots"]))
    output: "out/run-{job}"
    resources: gpu=1, runtime=lambda wildcards: round(config["minutes"][int(wildcards.job)])
    shell: "sh job.sh run {wildcards.job} {output}"
"""
JOB = """
if [ $1 = wait ]; then
    touch up/$2
    while [ $(ls up | wc -l) -lt $(cat slots) ]; do sleep 0.5; done
else
    sleep $(cat seconds/$2)
fi
touch $3
"""
STUB = """
import os, sys
target = sys.argv[sys.argv.index("--target-jobs") + 1]
rule, job = target.split(":job=")
os.execvp("sh", ["sh", "job.sh", rule, job, f"out/{rule}-{job}"])
"""
POOLS = """
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

config = Config(
    executors=[
        HighThroughputExecutor(
            label="gpu", address="127.0.0.1", available_accelerators={slots}, max_workers_per_node={slots},
            cores_per_worker=0.001, heartbeat_period=15, heartbeat_threshold=600,
            provider=LocalProvider(init_blocks={nodes}, min_blocks={nodes}, max_blocks={nodes}, cmd_timeout=300,
                                   worker_init="export PYTHONPATH={path}"),
        )
    ],
    strategy="none", strategy_period=5, run_dir="pilots",
)
"""


def simulate(
    folder: Path, minutes: list[float], nodes: int, scale: float, real: bool
) -> list[tuple[int, float, float]]:
    """Run the workflow. Returns (node, begin, end) of every run, in simulated minutes."""
    for name in ("up", "out", "seconds", "stub/snakemake"):
        (folder / name).mkdir(parents=True)
    path = f"{ROOT / 'workflow'}" if real else f"{folder / 'stub'}:{ROOT / 'workflow'}"
    (folder / "stub/snakemake/__main__.py").write_text(STUB)
    (folder / "stub/snakemake/__init__.py").touch()
    (folder / "Snakefile").write_text(SNAKEFILE)
    (folder / "job.sh").write_text(JOB)
    (folder / "slots").write_text(str(nodes * SLOTS))
    (folder / "pools.py").write_text(POOLS.format(slots=SLOTS, nodes=nodes, path=path))
    (folder / "config.json").write_text(json.dumps({"runs": len(minutes), "slots": nodes * SLOTS, "minutes": minutes}))
    for number, each in enumerate(minutes):
        (folder / "seconds" / str(number)).write_text(str(each * scale))
    command = [
        sys.executable, "-m", "snakemake", "--executor", "parsl", "--parsl-config", "pools.py", "--jobs", "1000",
        "--scheduler", "greedy", "--configfile", "config.json", "--quiet", "rules", "--latency-wait", "60",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow"), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"error: {(folder / 'log').read_text()[-3000:]}")
    return [(node, begin / scale, end / scale) for node, begin, end in held(folder, nodes * SLOTS)]


def held(folder: Path, first: int) -> list[tuple[int, float, float]]:
    """(node, begin, end) in seconds of every task after the `first` ones, from the workers' logs."""
    spans = []
    for log in folder.glob("pilots/000/gpu/block-*/*/worker_*.log"):
        node = int(log.parts[-3].removeprefix("block-"))
        times: dict[tuple[str, int], float] = {}
        for line in log.read_text().splitlines():
            found = re.match(r"(\d+\.\d+) .*(Received|Completed) executor task (\d+)", line)
            if found:
                times[found.group(2), int(found.group(3))] = float(found.group(1))
        spans += [
            (node, begin, times["Completed", task])
            for (event, task), begin in times.items()
            if event == "Received" and task > first
        ]
    zero = min(begin for _, begin, _ in spans)
    return sorted((node, begin - zero, end - zero) for node, begin, end in spans)


def measure(name: str, part: int, scale: float, real: bool) -> list[str]:
    """One row of the table."""
    minutes, nodes, together = CASES[name]
    minutes, nodes = minutes[::part], max(1, nodes // part)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        spans = simulate(Path(folder), minutes, nodes, scale, real)
    end = max(end for *_, end in spans)
    released = {node: max(end for other, _, end in spans if other == node) for node, *_ in spans}
    paid = sum(end if together else min(end, last + IDLE) for last in released.values())
    best = sum(minutes) / SLOTS
    schedule = pack([SimpleNamespace(minutes=each, gpus=1) for each in minutes], nodes, NODES, 0, 0)
    least = schedule * nodes if together else best
    naive = sum(each + PILOT_MINUTES for each in minutes)
    took = paid + PILOT_MINUTES * nodes
    per_run = sum(end - begin for _, begin, end in spans) / len(spans) - sum(minutes) / len(minutes)
    return [
        f"{len(minutes)} runs" + (f" (1/{part} of {name})" if part > 1 else ""), str(nodes), f"{scale:g}",
        f"{schedule:.1f}", f"{end:.1f}", f"{least / paid:.1%}", f"{best / paid:.1%}", f"{per_run * 60:.0f}",
        f"{took / 60:.1f}", f"{naive / 60:.1f}", f"{naive / took:.1f}",
    ]  # fmt: skip


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="run this case only")
    parser.add_argument("--scale", type=float, default=4.0, help="seconds per simulated minute")
    parser.add_argument("--part", type=int, default=1, help="divide the 500 runs and 20 nodes by this number")
    parser.add_argument("--real", action="store_true", help="start a Snakemake for every job, as the plugin does")
    args = parser.parse_args()

    begun = time.monotonic()
    rows = []
    for name in args.case or CASES:
        rows.append(measure(name, args.part if name == "500 runs" else 1, args.scale, args.real))
        print(*rows[-1], flush=True)
    heads = [
        "", "nodes", "seconds per minute", "ideal, minutes", "measured, minutes", "of the ideal", "slots in use",
        "overhead, s per run", "node-hours", "node-hours, one batch job per run", "ratio",
    ]  # fmt: skip
    stub = "" if args.real else " A stub replaces the Snakemake of each job."
    text = (
        f"Runs are sleeps.{stub} Node-hours include {PILOT_MINUTES} minutes for the start of every batch job. "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end, "
        f"{time.monotonic() - begun:.0f} s in total.\n\n" + table(heads, rows)
    )
    publish("packing", text, write=args.write)


if __name__ == "__main__":
    main()
