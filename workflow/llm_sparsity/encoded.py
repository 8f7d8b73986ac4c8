"""A task as token ids: tokenised once for each tokenizer, task and length, mapped into memory, batched without padding.

    work/encoded/{key}.safetensors     {split}.ids (tokens,), {split}.offsets (sentences + 1,), {split}.labels,
                                       {split}.types where the model tells the sentences of a pair apart

The file is not compressed: runs that share a task share the pages of one file, and read only what they use.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm_sparsity import tasks
from llm_sparsity.errors import UserError
from llm_sparsity.files import MANIFEST, atomic, read_manifest, sha256
from llm_sparsity.lock import locked
from llm_sparsity.models import load_tokenizer

SPLITS = ("train", "validation")
STRETCH = 32  # batches whose sentences are sorted by length together


@dataclass(frozen=True)
class Encoded:
    """A split: its sentences' token ids behind each other, sentence i from offsets[i] to offsets[i + 1]."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    types: NDArray[np.int32] | None
    pad: int
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sentence."""
        return np.diff(self.offsets)

    def batch(self, indices: NDArray[np.int64]) -> tuple[dict[str, Tensor], Tensor]:
        """Model inputs (batch, longest), int64, padded no further than these sentences need; labels (batch,).

        Without padding there is no attention mask: attention is faster without one.
        """
        starts, lengths = self.offsets[indices], self.lengths[indices]
        positions = np.arange(lengths.max())
        there = positions < lengths[:, None]
        at = np.where(there, starts[:, None] + positions, 0)
        inputs = {"input_ids": torch.from_numpy(np.where(there, self.ids[at], self.pad).astype(np.int64))}
        if not there.all():
            inputs["attention_mask"] = torch.from_numpy(there.astype(np.int64))
        if self.types is not None:
            inputs["token_type_ids"] = torch.from_numpy(np.where(there, self.types[at], 0).astype(np.int64))
        return inputs, torch.from_numpy(self.labels[indices])

    def shuffled(self, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """The batches of an epoch: shuffled, then sorted by length within stretches of 32 batches, longest first."""
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(self))
        lengths = self.lengths
        batches = []
        for start in range(0, len(order), STRETCH * size):
            stretch = order[start : start + STRETCH * size]
            stretch = stretch[np.argsort(-lengths[stretch], kind="stable")]
            batches += [stretch[at : at + size] for at in range(0, len(stretch), size)]
        for number in generator.permutation(len(batches)):
            yield batches[number]

    def by_length(self, size: int) -> list[NDArray[np.int64]]:
        """Batches of all sentences, the shortest first."""
        order = np.argsort(self.lengths, kind="stable")
        return [order[at : at + size] for at in range(0, len(order), size)]


def encode(model: Path, task: Path, work: Path, *, max_length: int, code: str) -> Path:
    """Tokenise a task for a model unless that was done; the file.

    Args:
        model: folder of a model; only its tokenizer is used.
        task: folder of a prepared classification task.
        work: the folder of caches.
        max_length: tokens per sentence or pair; longer ones are cut.
        code: the hash of the code that runs.

    Raises:
        UserError: a label outside the task's.
    """
    path = work / "encoded" / f"{_key(model, task, max_length, code)}.safetensors"
    lock = path.with_suffix(".lock")
    if path.exists() and not lock.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock):
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # of an attempt that was killed
            left.unlink()
        if not path.exists():
            _write(path, model, task, max_length)
    return path


def load(path: Path) -> tuple[Encoded, Encoded]:
    """The training and the validation split of a tokenised task."""
    with safe_open(path, framework="pt") as file:
        facts = {name: int(value) for name, value in file.metadata().items()}
        arrays: dict[str, Any] = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118

    def split(name: str) -> Encoded:
        parts = {part: arrays.get(f"{name}.{part}") for part in ("ids", "offsets", "labels", "types")}
        return Encoded(**parts, **facts)  # type: ignore[arg-type]

    return split("train"), split("validation")


def _write(path: Path, model: Path, task: Path, max_length: int) -> None:
    tokenizer = load_tokenizer(model)
    tensors: dict[str, Tensor] = {}
    for split in SPLITS:
        encoded = _encode(tokenizer, _checked(task, split), max_length)
        tensors |= {f"{split}.{name}": torch.from_numpy(array) for name, array in encoded.items()}
    facts = {"pad": tokenizer.pad_token_id, "classes": tasks.label_count(task)}
    with atomic(path) as temporary:
        save_file(tensors, temporary, {name: str(value) for name, value in facts.items()})


def _key(model: Path, task: Path, max_length: int, code: str) -> str:
    """What the tokens depend on: variants of a model, whose weights differ, share them."""
    own = ("config.json", "README.md")
    files = {
        name: file["sha256"]
        for name, file in read_manifest(model)["files"].items()
        if "safetensors" not in name and name not in own and not name.startswith("LICENSE")
    }
    parts = [files, sha256(task / MANIFEST), max_length, code, version("tokenizers"), version("transformers")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _checked(task: Path, split: str) -> tasks.Examples:
    examples, count = tasks.load(task, split), tasks.label_count(task)
    for row, label in enumerate(examples.labels, 1):
        if not 0 <= label < count:
            raise UserError(
                f"{task / split}.jsonl: line {row} has label {label}, but the task has {count} (0 to {count - 1}); "
                "correct the task's `labels` and download it again"
            )
    return examples


def _encode(tokenizer: Any, examples: tasks.Examples, max_length: int) -> dict[str, NDArray[Any]]:
    """Tokenise a split, pairs together; no padding."""
    encoded = tokenizer(examples.texts, examples.pairs, truncation=True, max_length=max_length)
    ids = encoded["input_ids"]
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.concatenate(ids).astype(np.int32),
        "offsets": np.cumsum([0, *map(len, ids)], dtype=np.int64),
        "labels": np.array(examples.labels, np.int64),
    }
    if "token_type_ids" in tokenizer.model_input_names and "token_type_ids" in encoded:
        arrays["types"] = np.concatenate(encoded["token_type_ids"]).astype(np.int32)
    return arrays
