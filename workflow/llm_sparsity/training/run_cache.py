"""The cache of one run: a run that is killed at any moment continues from its last save.

    work/{key}/             the key is a hash of all that the result depends on: settings, code, versions, inputs
      run.json              what was hashed, the results folder, the tokens that the run reads
      lock                  held by the process that works here, see `jobs/lock.py`
      progress.json         step, epoch, history, seconds; the names of the newest two folders below
      epoch-{n}/            a whole model folder: the weights after an epoch, in the sparse container
      step-{n}/             weights within an epoch; removed after the next save
      state-{n}/            everything else to continue after step n, such as the optimizer's moments; the newest only,
                            and none once the run has ended
    work/runs/{hash}/       of one results folder
      caches.json           its caches
      lock                  held by the process that writes results there

A folder counts once progress.json names it, and progress.json is replaced atomically. Random numbers are not saved:
each step seeds its own.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError, storage_message
from llm_sparsity.jobs.lock import locked
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage import container
from llm_sparsity.storage.files import MANIFEST, read_json, remove_partial, sha256, write_json, write_manifest

Tensors = Mapping[str, Tensor]
VERSIONED = ("torch", "transformers")  # libraries whose version is part of the key


class StoredTensors(Mapping[str, Tensor]):
    """The tensors in a folder, each read when it is asked for: a process that restores a save holds no second copy."""

    def __init__(self, folder: Path) -> None:
        self._reader = container.Reader(folder)
        for name in self:
            self[name]  # a damaged one is found before any is used

    def __getitem__(self, name: str) -> Tensor:
        return self._reader.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader.names)

    def __len__(self) -> int:
        return len(self._reader.names)


@dataclass(frozen=True)
class Saved:
    """A complete save: the fields of progress.json, the model's tensors, and others (none once the run has ended)."""

    progress: dict[str, Any]
    weights: Tensors
    state: Tensors


class RunCache:
    """The folder of one run below `work`; use it within `opened`.

    Args:
        work: the folder of all caches.
        output: the run's results folder.
        model: the variant.
        inputs: the other folders that the run reads, by name.
        settings: of the run, JSON values.
        code: the hash of the code.
        main: whether this process writes; of several, one does.
    """

    def __init__(
        self,
        work: Path,
        output: Path,
        model: ModelFolder,
        inputs: Mapping[str, ModelFolder | TaskFolder],
        *,
        settings: Mapping[str, Any],
        code: str,
        main: bool,
    ) -> None:
        self._run = {
            "settings": settings,
            "code": code,
            "versions": {name: version(name) for name in VERSIONED},
            "inputs": {name: sha256(folder.path / MANIFEST) for name, folder in {"model": model, **inputs}.items()},
        }
        self._work, self._output, self._model, self._main = work, output, model, main
        self._facts = model.facts | {"task": inputs["task"].facts}  # of the manifest of an epoch
        self.folder = work / _hash(json.dumps(self._run, sort_keys=True))
        self._of_output = work / "runs" / _hash(str(output))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the cache and the results folder, and remove what killed attempts have left in both."""
        if not self._main:
            yield
            return
        # Another run may use the same cache, as another study's, or the same results folder, as with other settings.
        with locked(self.folder / "lock") as self._assert_locked, locked(self._of_output / "lock"):
            ours = [self.folder, self._of_output, self._output, self._output / "model"]
            for folder in [*ours, *self.folder.glob("*/")]:
                remove_partial(folder, alone=True)
            if progress := self._progress():
                self._remove_old(progress)
            if not (self.folder / "run.json").exists():
                self._register()
                self._describe()
            yield

    def uses(self, tokens: str) -> None:
        """Write down which folder of work/tokens the run reads, for `clean`."""
        if self._main:
            self._describe(tokens=tokens)

    def load(self) -> Saved | None:
        """The last save; None if there is none, or if it is damaged."""
        if not (progress := self._progress()):
            return None
        try:
            weights, state = (
                StoredTensors(self.folder / folder) if folder else {}
                for folder in (progress["weights"], progress["state"])
            )
        except (UserError, ValueError) as error:
            print(f"{self.folder}: not used, the run starts anew: {error}", file=sys.stderr)
            return None
        print(f"{self.folder}: going on after step {progress['step']}", file=sys.stderr)
        return Saved(progress, weights, state)

    def save(self, progress: Mapping[str, Any], weights: Tensors, state: Tensors) -> None:
        """Save within an epoch; every process calls this.

        Args:
            progress: `step`, and other JSON values.
            weights: the model's tensors; sharded ones are gathered one at a time.
            state: all other tensors to continue from.

        Raises:
            UserError: no space or permission, or another process has taken over; the last save stays intact.
        """
        with self._storage_errors():
            self._save(self.folder / f"step-{progress['step']}", progress, weights, state)

    def save_epoch(
        self, epoch: int, progress: Mapping[str, Any], weights: Tensors, state: Tensors, *, config: Any, pruned: Any
    ) -> None:
        """Save after an epoch (from 1), as a whole model folder that stays.

        Args:
            config: the model's configuration.
            pruned: the manifest's entry about removed weights; None for a dense model.
        """
        with self._storage_errors():
            self._save(self.epoch_folder(epoch), progress, weights, state, config, pruned)

    def record(self, progress: Mapping[str, Any]) -> None:
        """Replace the progress of the last save."""
        if self._main:
            write_json(self.folder / "progress.json", {**self._progress(), **progress})

    def finish(self) -> None:
        """Remove what only a run that goes on needs, once all results are written: twice the size of the model."""
        if self._main:
            self._assert_locked()
            last = {**self._progress(), "state": None}
            write_json(self.folder / "progress.json", last)
            self._remove_old(last)

    def epoch_folder(self, epoch: int) -> Path:
        """The model folder after an epoch (from 1)."""
        return self.folder / f"epoch-{epoch}"

    def saved_step(self) -> int:
        """The step that a repeated run would continue from; 0 for the beginning."""
        return int(self._progress().get("step", 0))

    def _progress(self) -> dict[str, Any]:
        """The progress of the last save; empty if there is none, or if its file is damaged."""
        path = self.folder / "progress.json"
        if not path.exists():
            return {}
        with suppress(ValueError, TypeError):
            progress = dict(read_json(path))
            if {"step", "weights", "state"} <= progress.keys():
                return progress
        print(f"{path}: damaged, the run starts anew", file=sys.stderr)
        return {}

    def _save(
        self,
        folder: Path,
        progress: Mapping[str, Any],
        weights: Tensors,
        state: Tensors,
        config: Any = None,
        pruned: Any = None,
    ) -> None:
        if self._main:
            self._assert_locked()
        rest = self.folder / f"state-{progress['step']}"
        self._write(folder, weights)
        self._write(rest, state)
        if self._main:
            if config is not None:
                self._complete_model(folder, config, pruned)
            self._assert_locked()
            names = {"weights": folder.name, "state": rest.name}
            write_json(self.folder / "progress.json", {**progress, **names})
            self._remove_old(names)

    def _write(self, folder: Path, tensors: Tensors) -> None:
        with container.writing(folder) if self._main else nullcontext() as writer:
            for name in sorted(tensors):
                tensor = gathered(tensors[name])
                if writer:
                    writer.add(name, tensor)

    def _complete_model(self, folder: Path, config: Any, pruned: Any) -> None:
        """Add configuration, tokenizer and manifest to the weights of an epoch."""
        container.copy_companions(self._model.path, folder)
        config.save_pretrained(folder)
        write_manifest(folder, **self._facts | ({"pruned": pruned} if pruned else {}))

    def _remove_old(self, progress: Mapping[str, Any]) -> None:
        for old in [*self.folder.glob("step-*"), *self.folder.glob("state-*")]:
            if old.name not in (progress["weights"], progress["state"]):
                shutil.rmtree(old, ignore_errors=True)  # what is left, such as a file in use, goes at the next start

    def _describe(self, **more: Any) -> None:
        path, run = self.folder / "run.json", {**self._run, "output": str(self._output), **more}
        if not path.exists() or read_json(path) != run:
            write_json(path, run)

    def _register(self) -> None:
        """Add this cache to those of its results folder, and say why the others are not used."""
        index = self._of_output / "caches.json"
        try:
            others = read_json(index) if index.exists() else []
        except ValueError:  # damaged: the others are not named
            others = []
        others = [key for key in others if (self._work / key / "run.json").exists()]
        for key in others:
            other = read_json(self._work / key / "run.json")
            print(f"{self._work / key}: not used, made with {_difference(other, self._run)}", file=sys.stderr)
        write_json(index, [*others, self.folder.name])

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Turn errors of the disk into one line that names the save that is intact."""
        try:
            yield
        except OSError as error:
            message = storage_message(error)
            if message is None:
                raise
            saved = self.saved_step()
            kept = f"the checkpoint of step {saved} is intact" if saved else "no step was saved yet"
            raise UserError(f"{message} ({self.folder}: {kept})") from None


def gathered(tensor: Tensor) -> Tensor:
    """A tensor in full; a collective call if it is sharded over processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """How a cache's run differs from this one, such as "epochs 2 instead of 3, another task"."""
    values, wanted = ({**run["settings"], **run["versions"]} for run in (one, other))
    changed = [
        f"{name} {values.get(name)!r} instead of {wanted.get(name)!r}"
        for name in sorted(values.keys() | wanted.keys())
        if values.get(name) != wanted.get(name)
    ]
    parts, found = ({"code": run["code"], **run["inputs"]} for run in (one, other))
    rest = [f"another {part}" for part in sorted(parts.keys() | found.keys()) if parts.get(part) != found.get(part)]
    return ", ".join(changed + rest)
