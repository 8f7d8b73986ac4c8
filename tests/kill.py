"""Kill jobs with SIGKILL at random moments, resume them by the same command, and compare the files at the end.

    PYTHONPATH=workflow:. python tests/kill.py                      50 kills of one fine-tuning run
    PYTHONPATH=workflow:. python tests/kill.py --script             the same with scripts/finetune.py, started anew
    PYTHONPATH=workflow:. python tests/kill.py --all --kills 500    kills of every stage and recipe but zero_shot

A tiny model with RANDOM weights saves after every step. Attempts run in forks of a process that has all imports, so
kills hit the work of a job. An attempt that ends before its kill ends a run. Its files are compared with those of the
undisturbed run, and the next attempt starts anew.

With `--all`, Snakemake runs a small study once, and the command and the products of every job are recorded. Each run
then removes the products of one job from a copy of the study and repeats its command until it ends. All files of the
study have to be the same, none more and none less; of those that differ between two undisturbed runs (seconds, dates),
the names. The home folder cannot be written. What killed jobs leave in the system's temporary folder is counted.
"""

import argparse
import importlib
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from llm_sparsity.data.tasks import TaskFolder
    from llm_sparsity.models.folder import ModelFolder

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts/finetune.py"
SETTINGS: dict[str, Any] = {
    "mask": "kept", "seed": 0, "epochs": 3, "learning_rate": 5e-3, "batch_size": 16, "micro_batch_size": 8,
    "max_length": 32, "weight_decay": 0.01, "warmup_ratio": 0.1, "max_grad_norm": 1.0, "freeze_embeddings": False,
    "gradient_checkpointing": False,
}  # fmt: skip
EVERY_STEP = 1e-9  # minutes between saves
tqdm.set_lock(threading.RLock())  # its own lock is shared with forks, and one that is killed would hold it for ever


def main() -> None:
    from llm_sparsity.data.tasks import TaskFolder
    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.pruning.prune import prune
    from llm_sparsity.study.sparsity import Sparsity
    from tests.tiny import save_mood_task, save_tiny_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--script", action="store_true", help="start the script anew for every attempt")
    parser.add_argument("--all", action="store_true", help="kill every stage of a small study")
    parser.add_argument("--stage", help="with --all, only stages whose name starts so")
    args = parser.parse_args()
    if args.all:
        with tempfile.TemporaryDirectory() as name:
            kill_all(Path(name), args.kills, seed=args.seed, stage=args.stage or "")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = TaskFolder(save_mood_task(folder / "task"))
        dense = ModelFolder(save_tiny_model("bert", folder / "bert"))
        prune(dense, {Sparsity("0.9"): folder / "0.9"}, method="magnitude", scope="linear")
        model = ModelFolder(folder / "0.9/model")
        print(kill(model, task, folder, args.kills, seed=args.seed, script=args.script))


def kill(model: "ModelFolder", task: "TaskFolder", folder: Path, kills: int, *, seed: int, script: bool = False) -> str:
    """Kill at `kills` random moments; AssertionError if any file differs from the undisturbed run."""
    generator = random.Random(seed)
    assert not _attempt(model, task, folder / "whole", None, script)
    begun = time.monotonic()
    assert not _attempt(model, task, folder / "again", None, script)  # the first one is slow: nothing is cached yet
    longest = time.monotonic() - begun
    expected = _left(folder / "whole")
    done, runs, resumed = 0, 0, 0
    while done < kills:
        runs += 1
        place = folder / f"run-{runs}"
        while _attempt(model, task, place, generator.uniform(0, longest) if done < kills else None, script):
            done += 1
            resumed += any(place.glob("work/*/progress.json"))
        found = _left(place)
        assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
        assert found == expected, [name for name in found if found[name] != expected[name]]
    return f"{done} kills, {resumed} after a save, in {runs} runs: all files are those of the undisturbed run"


def _attempt(model: "ModelFolder", task: "TaskFolder", place: Path, seconds: float | None, script: bool) -> bool:
    """Run until the end, or until the kill after `seconds`; whether the run was killed."""
    place.mkdir(exist_ok=True)
    if script:
        arguments = ["--model", model.path, "--task", task.path, "--output", "out", "--save-minutes", str(EVERY_STEP)]
        child = subprocess.Popen(
            [sys.executable, SCRIPT, *arguments, "--settings", json.dumps(SETTINGS)],
            cwd=place,
            stderr=subprocess.DEVNULL,
        ).pid
    else:
        import datasets  # noqa: F401 - imported late by finetune
        import torch

        from llm_sparsity.evaluation import perplexity  # noqa: F401 - imported late by finetune
        from llm_sparsity.training.finetune import finetune
        from llm_sparsity.training.settings import FinetuneSettings

        torch.set_num_threads(1)  # a fork would lose other threads
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.chdir(place)
                os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
                settings = FinetuneSettings(**SETTINGS)
                finetune(model, task, Path("out"), Path("work"), settings, code="", save_minutes=EVERY_STEP)
                code = 0
            finally:
                os._exit(code)
    return _killed(child, seconds, place / "log")


def _killed(child: int, seconds: float | None, log: Path) -> bool:
    """Wait for a process until its end, or kill it and its children after `seconds`; whether it was killed."""
    end = time.monotonic() + (seconds if seconds is not None else 600)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0, log.read_text()[-2000:]
            return False
        if time.monotonic() > end:
            with suppress(ProcessLookupError):  # no group of its own
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.002)


def kill_all(folder: Path, kills: int, *, seed: int, stage: str = "") -> None:
    """Kill the jobs of a small study at `kills` random moments, all jobs about equally often.

    Raises:
        AssertionError: a job did not go on, or left other files than the undisturbed study has.
    """
    generator = random.Random(seed)
    study = folder / "study"
    _empty(folder / "tmp")
    jobs = [job for job in _recorded(study) if job.stage.startswith(stage)]
    _import_all()
    for job in jobs:
        again = _without(study, job.products, folder / "again")
        begun = time.monotonic()
        assert not _forked(job.command, again, None), job.stage
        job.seconds = time.monotonic() - begun
        ours, others = _files(study), _files(again)
        assert ours.keys() == others.keys(), (job.stage, sorted(ours.keys() ^ others.keys()))
        job.changing = {name for name in ours if ours[name] != others[name]}
        shutil.rmtree(again)
    done: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    left_in_tmp: Counter[str] = Counter()
    expected = _files(study)
    while done.total() < kills:
        job = min(jobs, key=lambda job: (done[job.name], runs[job.name]))
        place = _without(study, job.products, folder / "again")
        runs[job.name] += 1
        left = min(generator.randint(1, 3), kills - done.total())  # most jobs begin anew and would never end
        while _forked(job.command, place, generator.uniform(0, job.seconds) if left else None):
            done[job.name] += 1
            left -= 1
        left_in_tmp[job.stage] += len([*(folder / "tmp").iterdir()])
        _empty(folder / "tmp")
        found = _files(place)
        assert found.keys() == expected.keys(), (job.name, sorted(found.keys() ^ expected.keys()))
        other = [name for name in found if found[name] != expected[name] and name not in job.changing]
        assert not other, (job.name, other)
        shutil.rmtree(place)
        print(f"{done.total()} kills: {job.name}", file=sys.stderr)
    for job in jobs:
        print(f"{done[job.name]:4} kills in {runs[job.name]:3} runs: {job.name}")
    print(f"{done.total()} kills in {runs.total()} runs: all files are those of the undisturbed study, and no others")
    print(
        "left in TMPDIR:", ", ".join(f"{count} by {name}" for name, count in left_in_tmp.items() if count) or "nothing"
    )


@dataclass
class Job:
    """A job of the study: its command, the files that it made, its duration, and the files that differ each time."""

    command: list[str]
    products: list[str]
    seconds: float = 0.0
    changing: set[str] = field(default_factory=set)

    @property
    def stage(self) -> str:
        """The name of its script."""
        return Path(self.command[0]).stem

    @property
    def name(self) -> str:
        """The stage and the folder that it writes."""
        return f"{self.stage} {self.command[self.command.index('--output') + 1]}"


RECORDER = r"""
python() {
    record=$(mktemp -d "$RECORDS/XXXXXX")
    printf '%s\0' "$@" > "$record/command"
    find . -type f -not -path './.snakemake/*' | sort > "$record/before"
    command python "$@" || return
    find . -type f -not -path './.snakemake/*' | sort > "$record/after"
}
"""
STUDY = """
name: kill
study:
  - {models: [bert], methods: [magnitude], scopes: [linear], sparsities: [0, 0.9], tasks: [mood],
     recipes: [kept, released, gradual, lora, taught]}
  - {models: [llama], methods: [wanda, structured], scopes: [linear], sparsities: [0, 0.5], tasks: [text]}
  - {models: [llama], methods: [uniform], scopes: [linear], sparsities: [2of4], tasks: [lines], recipes: [lora]}
recipes:
  taught: {schedule: {end: 0.7}, distill: {hidden: 1}}
calibration: {task: lines, samples: 4, sequence_length: 32}
models:
  bert: {architecture: encoder, source: {folder: inputs/bert}}
  llama: {architecture: decoder, source: {folder: inputs/llama}}
tasks:
  mood:
    kind: classification
    source: {folder: inputs/mood}
    files: {train: train.jsonl, validation: validation.jsonl}
    label: label
    labels: [bad, good]
  text: {kind: language-model, source: {folder: inputs/text}, files: {test: test.jsonl}}
  lines:
    kind: language-model
    source: {folder: inputs/text}
    files: {train: train.jsonl, test: test.jsonl}
    finetune: {epochs: 1}
finetune: {epochs: 2, learning_rate: 1.0e-3, batch_size: 16, micro_batch_size: 8, max_length: 32}
measure: {batch_sizes: [1], sequence_length: 32, repeats: 3}
evaluate: {sequence_length: 32, max_tokens: 512}
"""


def _recorded(study: Path) -> list[Job]:
    """Run the small study by Snakemake; its jobs, in the order in which they ran."""
    from tests.tiny import save_mood_task, save_text_task, save_tiny_model

    for kind in ("bert", "llama"):
        save_tiny_model(kind, study / "inputs" / kind)
    save_mood_task(study / "inputs/mood")
    save_text_task(study / "inputs/text")
    (study / "study.yaml").write_text(STUDY)
    with tempfile.TemporaryDirectory() as name:
        records, recorder = Path(name), Path(name, "recorder.sh")
        recorder.write_text(RECORDER)
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--configfile", "study.yaml"]
        done = subprocess.run(
            [*command, "--cores", "1"], cwd=study, text=True, capture_output=True, check=False,
            env=os.environ | {"BASH_ENV": str(recorder), "RECORDS": name, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert done.returncode == 0, (done.returncode, done.stdout[-3000:] + done.stderr[-3000:])
        shutil.rmtree(study / ".snakemake")
        jobs = []
        for record in sorted(records.glob("*/command"), key=lambda path: path.stat().st_mtime_ns):
            before, after = ((record.parent / part).read_text().splitlines() for part in ("before", "after"))
            argv = record.read_text().split("\0")[:-1]
            if "--save-minutes" in argv:
                argv[argv.index("--save-minutes") + 1] = str(EVERY_STEP)
            jobs.append(Job(argv, sorted(set(after) - set(before))))
        return jobs


def _without(study: Path, products: list[str], place: Path) -> Path:
    """A copy of the study without the products of a job, and without the folders that only they were in."""
    shutil.copytree(study, place)
    for product in products:
        (place / product).unlink()
        for parent in Path(product).parents[:-1]:
            if not any((place / parent).iterdir()):
                (place / parent).rmdir()
    return place


def _empty(folder: Path) -> None:
    """Make a folder anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _files(place: Path) -> dict[str, bytes]:
    """The files of a study but the logs, and its empty folders."""
    paths = [
        path for path in place.rglob("*") if "logs" not in path.parts and (path.is_file() or not [*path.iterdir()])
    ]
    return {str(path.relative_to(place)): path.read_bytes() if path.is_file() else b"" for path in paths}


def _import_all() -> None:
    """Import what the scripts use; a fork then takes no time."""
    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch

    for path in sorted((ROOT / "workflow/llm_sparsity").glob("*/*.py")):
        if path.stem not in ("__init__", "zero_shot"):
            importlib.import_module(f"llm_sparsity.{path.parent.name}.{path.stem}")
    torch.set_num_threads(1)  # a fork would lose other threads


def _forked(command: list[str], place: Path, seconds: float | None) -> bool:
    """Run a script's command until the end, or until the kill after `seconds`; whether it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            os.chdir(place)
            (place / "logs").mkdir(exist_ok=True)
            for descriptor in (1, 2):
                os.dup2(os.open("logs/attempt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
            os.environ |= {"TMPDIR": str(place.parent / "tmp"), "HOME": "/proc/none"}
            tempfile.tempdir = None  # read TMPDIR anew
            sys.argv[:] = command
            runpy.run_path(command[0], run_name="__main__")
            code = 0
        except SystemExit as error:
            print(error.code)
            code = int(bool(error.code))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return _killed(child, seconds, place / "logs/attempt")


def _left(place: Path) -> dict[str, bytes]:
    """The files that must not depend on kills: all but those that hold seconds."""
    changing = ("log", "runtime.json", "progress.json", "run.json")
    files = {str(path.relative_to(place)): path for path in place.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if path.name not in changing}


if __name__ == "__main__":
    main()
