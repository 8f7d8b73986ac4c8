"""Training samples per second compared with transformers' example script, run_glue_no_trainer.py.

    PYTHONPATH=workflow python benchmarks/finetune.py --peer run_glue_no_trainer.py --model FOLDER --tasks FOLDER...
    ... --accuracy 3     instead of the speed: the accuracy of both, with three seeds (for example at --sparsity 0.5)
    ... --write          and the table goes into BENCHMARKS.md

Both sides train the same pruned model: the same weights, rows, batch size, learning rate, length limit, padding to the
longest sequence of a batch, threads. Ours also keeps its mask and clips gradients; with --accuracy it releases the
mask, since the peer has none. Each side runs in a process of its own, and the sides take turns. Seconds are CPU
seconds from the first optimizer step to the last of one epoch over the same rows, so they can be compared on a busy
machine. The peer loads its metric from a hub, which is replaced by this library's; the script is otherwise unchanged.
"""

import csv
import json
import math
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shared import argument_parser, machine, publish, table

SCRIPT = Path(__file__).parent.parent / "scripts/finetune.py"
SETTINGS: dict[str, Any] = {
    "mask": "kept", "seed": 0, "epochs": 1, "learning_rate": 1e-4, "batch_size": 32, "micro_batch_size": 32,
    "max_length": 128, "weight_decay": 0.0, "warmup_ratio": 0.0, "max_grad_norm": 1.0, "freeze_embeddings": False,
    "gradient_checkpointing": False,
}  # fmt: skip
SIDES = ("this", "peer")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    if sys.argv[1] == "--timed":
        return timed(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    parser = argument_parser(__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="transformers' run_glue_no_trainer.py")
    parser.add_argument("--model", type=Path, required=True, help="folder of a dense model, as downloaded")
    parser.add_argument("--tasks", type=Path, nargs="+", required=True, help="folders of prepared tasks")
    parser.add_argument("--sparsity", default="0.9", help="of the matrices of the model (default 0.9)")
    parser.add_argument("--rows", type=int, default=1600, help="training rows of each task")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--accuracy", type=int, metavar="SEEDS", help="compare the accuracy of SEEDS seeds")
    parser.add_argument("--epochs", type=int, default=2, help="with --accuracy")
    args = parser.parse_args()
    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.pruning.prune import prune
    from llm_sparsity.storage.container import Reader, copy_companions, writing
    from llm_sparsity.study.sparsity import Sparsity

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outputs = {Sparsity(args.sparsity): folder / "pruned"}
        prune(ModelFolder(args.model), outputs, method="magnitude", scope="linear")
        copy_companions(folder / "pruned/model", folder / "plain")
        with Reader(folder / "pruned/model") as reader, writing(folder / "plain", sparse=False) as writer:
            for tensor in reader.names:
                writer.add(tensor, reader.tensor(tensor))
        jobs = [Job(folder, task, args.rows, args.peer) for task in args.tasks]
        text = accuracy(jobs, args.accuracy, args.epochs) if args.accuracy else speed(jobs, args.rounds)
    peer = args.peer.read_text().partition('check_min_version("')[2].partition('"')[0]
    text += (
        f"\n\n{args.model.name}, {args.sparsity} of its matrices removed; the peer's script is of {peer}. {machine(1)}."
    )
    publish("finetune-accuracy" if args.accuracy else "finetune", text, write=args.write)


class Job:
    """The first rows of a task, in the formats of both sides."""

    def __init__(self, folder: Path, task: Path, rows: int, peer: Path) -> None:
        from llm_sparsity.storage.files import read_manifest, write_manifest

        self.name, self.folder, self.peer = task.name, folder / task.name, peer.resolve()
        self.folder.mkdir()
        for split in ("train", "validation"):
            lines = (task / f"{split}.jsonl").read_text().splitlines(keepends=True)
            lines = lines[: rows if split == "train" else None]
            (self.folder / f"{split}.jsonl").write_text("".join(lines))
            examples = [json.loads(line) for line in lines]
            names = {"text": "sentence1", "text_pair": "sentence2", "label": "label"}
            with (self.folder / f"{split}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(names[key] for key in names if key in examples[0])
                writer.writerows([row[key] for key in names if key in row] for row in examples)
            if split == "train":
                self.rows = len(examples)
        facts = read_manifest(task)
        write_manifest(self.folder, kind="task", task="classification", labels=facts["labels"])

    def run(self, side: str, seed: int, epochs: int, steps: int, mask: str) -> tuple[dict[str, float], Path]:
        """Train; CPU seconds per step ("step", and "mask" within it), and the output folder."""
        output = Path(tempfile.mkdtemp(dir=self.folder))
        models = self.folder.parent
        if side == "this":
            settings = SETTINGS | {"seed": seed, "epochs": epochs, "mask": mask}
            command = [SCRIPT, "--model", models / "pruned/model", "--task", self.folder, "--output", output]
            command += ["--work", output / "work", "--settings", json.dumps(settings)]
        else:
            command = [self.peer, "--model_name_or_path", models / "plain", "--output_dir", output]
            command += ["--train_file", self.folder / "train.csv", "--validation_file", self.folder / "validation.csv"]
            command += ["--per_device_train_batch_size", SETTINGS["batch_size"], "--per_device_eval_batch_size", 64]
            command += ["--max_length", SETTINGS["max_length"], "--learning_rate", SETTINGS["learning_rate"]]
            command += ["--num_train_epochs", epochs, "--seed", seed]
        times = output / "times.json"
        done = subprocess.run(
            [sys.executable, __file__, "--timed", *map(str, [times, steps, *command])],
            env=os.environ | ENVIRONMENT | {"HF_DATASETS_CACHE": str(output / "cache")}, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        if not times.exists() or done.returncode:
            sys.exit(f"error: {side} failed on {self.name}:\n{done.stderr[-3000:]}")
        return json.loads(times.read_text()), output


def timed(times: Path, steps: int, command: list[str]) -> None:
    """Run a script and stop it after `steps` optimizer steps (0: at its end); write CPU seconds per step."""
    import evaluate
    import torch
    import transformers
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from llm_sparsity.evaluation.scores import LocalMetric
    from llm_sparsity.training.mask import Mask

    torch.set_num_threads(1)
    evaluate.load = lambda *_: LocalMetric("accuracy")
    transformers.utils.send_example_telemetry = lambda *_: None  # removed in transformers 5, but the script imports it
    stamps: list[float] = []
    masking, hold = [0.0], Mask.hold

    def held(self: Mask) -> None:
        begun = time.process_time()
        hold(self)
        masking[0] += time.process_time() - begun

    def stepped(*_: Any) -> None:
        stamps.append(time.process_time())
        if len(stamps) == steps:
            raise SystemExit(0)

    Mask.hold = held  # type: ignore[method-assign]
    register_optimizer_step_post_hook(stepped)
    sys.argv = command
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        if len(stamps) > 1:
            times.write_text(
                json.dumps({"step": (stamps[-1] - stamps[0]) / (len(stamps) - 1), "mask": masking[0] / len(stamps)})
            )


def speed(jobs: list[Job], rounds: int) -> str:
    rows = []
    for job in jobs:
        steps = math.ceil(job.rows / SETTINGS["batch_size"])
        found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(rounds):
            for side in SIDES:
                found[side].append(job.run(side, 0, 1, steps, "kept")[0])
                print(job.name, side, found[side][-1], flush=True)
        seconds = {side: statistics.median(run["step"] for run in found[side]) for side in SIDES}
        ratios = [peer["step"] / this["step"] for this, peer in zip(*found.values(), strict=True)]
        masking = statistics.median(run["mask"] / (run["step"] - run["mask"]) for run in found["this"])
        row = [job.name, str(job.rows), *(f"{SETTINGS['batch_size'] / seconds[side]:.0f}" for side in SIDES)]
        rows.append([*row, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}", f"{masking:.1%}"])
    heads = ["", "rows", "this, samples/CPU s", "peer, samples/CPU s", "ratio", "lowest ratio", "cost of the kept mask"]
    return table(heads, rows)


def accuracy(jobs: list[Job], seeds: int, epochs: int) -> str:
    rows = []
    for job in jobs:
        found: dict[str, list[float]] = {side: [] for side in SIDES}
        for seed in range(seeds):
            for side in SIDES:
                _, output = job.run(side, seed, epochs, 0, "released")
                if side == "this":
                    value = json.loads((output / "metrics.json").read_text())["metrics"]["accuracy"]
                else:
                    value = json.loads((output / "all_results.json").read_text())["eval_accuracy"]
                found[side].append(value)
                print(job.name, seed, side, value, flush=True)
        for side in SIDES:
            values = " ".join(f"{value:.3f}" for value in found[side])
            rows.append([job.name, side, str(job.rows), str(epochs), values, f"{statistics.mean(found[side]):.3f}"])
    return table(["", "", "rows", "epochs", "accuracy of each seed", "mean"], rows, texts=2)


if __name__ == "__main__":
    main()
