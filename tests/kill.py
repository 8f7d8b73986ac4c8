"""Kill a fine-tuning run with SIGKILL at random moments, resume it each time, and compare its files at the end.

    PYTHONPATH=workflow:. python tests/kill.py                 50 kills
    PYTHONPATH=workflow:. python tests/kill.py --script        the same with scripts/finetune.py, started anew each time

A tiny model with RANDOM weights saves after every step. Attempts run in forks of a process that has all imports, so
kills hit training, saving, evaluating and reporting. An attempt that ends before its kill ends a run. Its files are
compared with those of the undisturbed run, and the next attempt starts anew.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_sparsity.data.tasks import TaskFolder
    from llm_sparsity.models.folder import ModelFolder

SCRIPT = Path(__file__).parent.parent / "scripts/finetune.py"
SETTINGS: dict[str, Any] = {
    "mask": "kept", "seed": 0, "epochs": 3, "learning_rate": 5e-3, "batch_size": 16, "micro_batch_size": 8,
    "max_length": 32, "weight_decay": 0.01, "warmup_ratio": 0.1, "max_grad_norm": 1.0, "freeze_embeddings": False,
    "gradient_checkpointing": False,
}  # fmt: skip
EVERY_STEP = 1e-9  # minutes between saves


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
    args = parser.parse_args()
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

        from llm_sparsity.evaluation import metrics  # noqa: F401 - imported late by finetune
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
    end = time.monotonic() + (seconds if seconds is not None else 600)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0, (place / "log").read_text()[-2000:]
            return False
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.002)


def _left(place: Path) -> dict[str, bytes]:
    """The files that must not depend on kills: all but those that hold seconds."""
    changing = ("log", "runtime.json", "progress.json", "run.json")
    files = {str(path.relative_to(place)): path for path in place.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if path.name not in changing}


if __name__ == "__main__":
    main()
