"""The cache of one run: what it has trained so far, so that nothing that was trained is lost or trained twice.

    work/{key}/             the key is a hash of settings, code and input manifests: all that the result depends on
      run.json              what was hashed, the results folder that it is for, the tokens that it reads
      lock                  who works here; see `lock.py`
      progress.json         the step that was reached, history, seconds; which folders below are the newest
      epoch-{n}/            an ordinary model folder: the weights after an epoch, in the sparse container
      step-{n}/             weights within an epoch; gone when something newer is whole
      state-{n}/            what else is needed to go on after step n: the optimizer's moments; only the newest is kept

A folder counts once progress.json names it, and progress.json is replaced in one move: a run that is killed at any
moment goes on from the last save. Random numbers are no state: each step seeds its own.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from llm_sparsity.jobs.errors import UserError, storage_message
from llm_sparsity.jobs.lock import locked
from llm_sparsity.storage import container as checkpoint
from llm_sparsity.storage.files import MANIFEST, read_json, read_manifest, sha256, write_json, write_manifest

Tensors = Mapping[str, Tensor]


class Cache:
    """One run's folder below `work`, opened with `with`: locked, tidied, its progress read.

    Args:
        work: the folder of all caches.
        output: the run's results folder; only said, so that a cache can be recognised.
        inputs: the folders that the run reads, each with a manifest: model, task, and what else there is.
        settings, code: see the module.
        main: whether this process writes; with several, one does.

    Attributes:
        progress: `step` (done so far), `loss` (their sum in the current epoch), `history`, `checkpoints`, seconds.
    """

    def __init__(
        self,
        work: Path,
        output: Path,
        inputs: Mapping[str, Path],
        *,
        settings: dict[str, Any],
        code: str,
        main: bool,
    ) -> None:
        self._run = describe(inputs, settings=settings, code=code)
        self._work, self._output, self._model, self._main = work, output, inputs["model"], main
        self.folder = work / key(self._run)
        self.progress: dict[str, Any] = {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the cache for as long as the block lasts."""
        if not self._main:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock") as self._assert_locked:
            for left in [*self.folder.rglob(".*.tmp"), *self._output.glob(".*.tmp")]:  # of attempts that were killed
                left.unlink()
            if (self.folder / "progress.json").exists():
                self._remove_old(read_json(self.folder / "progress.json"))
            if not (self.folder / "run.json").exists():
                self._tell_of_others()
                write_json(self.folder / "run.json", {**self._run, "output": str(self._output)})
            yield

    def uses(self, tokens: Path) -> None:
        """Write down which file of `encoded.py` this run reads, so that cleaning knows."""
        run = {**self._run, "output": str(self._output), "tokens": tokens.name}
        if self._main and read_json(self.folder / "run.json") != run:
            write_json(self.folder / "run.json", run)

    def resume(self) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
        """Read `progress`, and the weights and state that it names; None when there is nothing to go on from."""
        self.progress = {"step": 0, "loss": 0.0, "history": [], "checkpoints": []}
        self.progress |= {f"{part}_seconds": 0.0 for part in ("setup", "train", "save", "eval")}
        if not (self.folder / "progress.json").exists():
            return None
        try:
            progress = read_json(self.folder / "progress.json")
            found = tuple(checkpoint.load(self.folder / progress[part]) for part in ("weights", "state"))
        except (UserError, ValueError, KeyError) as error:
            print(f"{self.folder}: not used, the run starts anew: {error}", file=sys.stderr)
            return None
        self.progress = progress
        print(f"{self.folder}: going on after step {progress['step']}", file=sys.stderr)
        return found[0], found[1]

    def save(self, weights: Tensors, state: Tensors, *, epoch: int | None, config: Any, pruned: Any) -> None:
        """Save what is needed to go on after `progress["step"]`; every process calls this.

        Args:
            weights: the model's; sharded ones are gathered one at a time.
            state: everything else that changes from step to step.
            epoch: the epoch that has just ended, whose weights are to stay; None within an epoch.
            config: the model's configuration.
            pruned: what the manifest of an epoch's weights says about removed weights.

        Raises:
            UserError: no space or permission, or another process has taken over; the last save stays intact.
        """
        step = self.progress["step"]
        folder = self.folder / (f"step-{step}" if epoch is None else f"epoch-{epoch}")
        try:
            self._assert_locked() if self._main else None
            self._write(folder, weights)
            self._write(self.folder / f"state-{step}", state)
            if epoch is not None:
                self.progress["checkpoints"].append({"epoch": epoch, "path": str(folder)})
            if not self._main:
                return
            if epoch is not None:
                checkpoint.copy_companions(self._model, folder)  # the tokenizer: the folder is a whole model
                config.save_pretrained(folder)
                facts = {k: v for k, v in read_manifest(self._model).items() if k not in ("files", "bytes", "pruned")}
                write_manifest(folder, **facts, **({"pruned": pruned} if pruned else {}))
                file = folder / checkpoint.WEIGHTS
                self.progress["checkpoints"][-1] |= {"bytes": file.stat().st_size, "sha256": sha256(file)}
            self._assert_locked()
            self.progress |= {"weights": folder.name, "state": f"state-{step}"}
            self.record()
        except OSError as error:
            message = storage_message(error)
            if message is None:
                raise
            saved = self.saved_step()
            kept = f"the checkpoint of step {saved} is intact" if saved else "no step was saved yet"
            raise UserError(f"{message} ({self.folder}: {kept})") from None
        self._remove_old(self.progress)

    def _remove_old(self, progress: dict[str, Any]) -> None:
        for old in [*self.folder.glob("step-*"), *self.folder.glob("state-*")]:
            if old.name not in (progress["weights"], progress["state"]):
                shutil.rmtree(old)

    def record(self) -> None:
        """Write `progress` alone: what was measured since the last save."""
        if self._main:
            write_json(self.folder / "progress.json", self.progress)

    def saved_step(self) -> int:
        """The step from which a repeated run would go on; 0 for the beginning."""
        path = self.folder / "progress.json"
        return int(read_json(path)["step"]) if path.exists() else 0

    def _write(self, folder: Path, tensors: Tensors) -> None:
        with checkpoint.Writer(folder) if self._main else nullcontext() as writer:
            for name in sorted(tensors):
                tensor = whole(tensors[name])
                if writer:
                    writer.add(name, tensor)

    def _tell_of_others(self) -> None:
        """Say that a cache for the same results is not used, and why."""
        for path in sorted(self._work.glob("*/run.json")):
            other = read_json(path)
            if other["output"] == str(self._output):
                print(f"{path.parent}: not used, made with {_difference(other, self._run)}", file=sys.stderr)


def describe(inputs: Mapping[str, Path], *, settings: dict[str, Any], code: str) -> dict[str, Any]:
    """All that the result of a run depends on."""
    hashes = {name: sha256(folder / MANIFEST) for name, folder in inputs.items()}
    return {"settings": settings, "code": code, "inputs": hashes}


def key(run: dict[str, Any]) -> str:
    """The name of a run's folder."""
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over processes, as one; a collective call where it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    settings = [
        f"{name} {one['settings'].get(name)!r} instead of {other['settings'].get(name)!r}"
        for name in sorted(one["settings"].keys() | other["settings"].keys())
        if one["settings"].get(name) != other["settings"].get(name)
    ]
    one, other = ({"code": run["code"], **run.get("inputs", {})} for run in (one, other))
    rest = [f"another {part}" for part in sorted(one.keys() | other.keys()) if one.get(part) != other.get(part)]
    return ", ".join(settings + rest)
