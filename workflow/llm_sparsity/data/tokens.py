"""A task as token ids: tokenised once for each tokenizer, task and length, mapped into memory, batched without padding.

    work/encoded/{key}.safetensors     {split}.ids (tokens,), {split}.offsets (sequences + 1,), {split}.labels of
                                       sentences, {split}.types where the model tells those of a pair apart

The file is not compressed: runs that share a task share the pages of one file, and read only what they use.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
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

from llm_sparsity.data import tasks
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.jobs.lock import locked
from llm_sparsity.models.loading import load_tokenizer
from llm_sparsity.storage.files import MANIFEST, atomic, read_manifest, sha256

SPLITS = ("train", "validation")
STRETCH = 32  # batches whose sequences are sorted by length together


@dataclass(frozen=True)
class Encoded:
    """A split: its sequences' token ids behind each other, sequence i from offsets[i] to offsets[i + 1].

    A sequence is a sentence or pair with its label; or, without labels, a window of running text.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    types: NDArray[np.int32] | None
    pad: int
    classes: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence."""
        return np.diff(self.offsets)

    def batch(self, indices: NDArray[np.int64]) -> tuple[dict[str, Tensor], Tensor]:
        """Model inputs (batch, longest), int64, padded no further than these sequences need; labels (batch,), int64.

        Without padding there is no attention mask: attention is faster without one. Of windows the tokens are the
        labels, (batch, length).
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
        return inputs, inputs["input_ids"] if self.labels is None else torch.from_numpy(self.labels[indices])

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
        """Batches of all sequences, the shortest first."""
        order = np.argsort(self.lengths, kind="stable")
        return [order[at : at + size] for at in range(0, len(order), size)]


def encode(
    model: Path,
    task: Path,
    work: Path,
    *,
    max_length: int,
    code: str,
    text: Path | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Path:
    """Tokenise a task for a model unless that was done; the file.

    Args:
        model: folder of a model; only its tokenizer is used.
        task: folder of a prepared task: classification, or a language model's.
        work: the folder of caches.
        max_length: tokens per sentence or pair, longer ones are cut; tokens of a language model's training windows.
        code: the hash of the code that runs.
        text: folder of another language-model task, for its split train instead of this one's.
        evaluation: sequence_length and max_tokens of the windows that a language model is measured on.

    Raises:
        UserError: a label outside the task's; a text shorter than a window.
    """
    path = work / "encoded" / f"{_key(model, task, text, max_length, code, evaluation)}.safetensors"
    lock = path.with_suffix(".lock")
    if path.exists() and not lock.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock):
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # of an attempt that was killed
            left.unlink()
        if not path.exists():
            _write(path, model, task, text or task, max_length, evaluation)
    return path


def windows(
    tokenizer: Any, task: Path, split: str, length: int, *, key: str, max_tokens: int | None = None
) -> NDArray[np.int32]:
    """A split of a language-model task as windows of tokens that do not overlap, (windows, length).

    Rows are joined by blank lines and tokenised as one text, with what the tokenizer sets before a text; what is left
    behind the last whole window is left out.

    Args:
        key: the setting that says `length`, for the message.
        max_tokens: use at most the first so many tokens.

    Raises:
        UserError: the text is shorter than a window.
    """
    tokens = tokenizer("\n\n".join(tasks.load_text(task, split)), verbose=False)["input_ids"]
    count = min(len(tokens), max_tokens or len(tokens)) // length
    if not count:
        raise UserError(
            f"{key}: found {length}, but the split {split} of {task.name} has only {len(tokens)} tokens "
            f"(max_tokens: {max_tokens}); lower it, or give more text"
        )
    return np.array(tokens[: count * length], np.int32).reshape(count, length)


def load(path: Path) -> tuple[Encoded, Encoded]:
    """The training and the validation split of a tokenised task."""
    with safe_open(path, framework="pt") as file:
        facts = {name: int(value) for name, value in file.metadata().items()}
        arrays: dict[str, Any] = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118

    def split(name: str) -> Encoded:
        parts = {part: arrays.get(f"{name}.{part}") for part in ("ids", "offsets", "labels", "types")}
        return Encoded(**parts, **facts)  # type: ignore[arg-type]

    return split("train"), split("validation")


def _write(
    path: Path, model: Path, task: Path, text: Path, max_length: int, evaluation: Mapping[str, Any] | None
) -> None:
    tokenizer = load_tokenizer(model)
    if evaluation:
        length, limit = evaluation["sequence_length"], evaluation["max_tokens"]
        encoded = {
            "train": _behind(windows(tokenizer, text, "train", max_length, key="max_length")),
            "validation": _behind(windows(tokenizer, task, "test", length, key="sequence_length", max_tokens=limit)),
        }
    else:
        encoded = {split: _encode(tokenizer, _checked(task, split), max_length) for split in SPLITS}
    tensors = {f"{split}.{name}": torch.from_numpy(array) for split in SPLITS for name, array in encoded[split].items()}
    facts = {"pad": tokenizer.pad_token_id, "classes": 0 if evaluation else tasks.label_count(task)}
    with atomic(path) as temporary:
        save_file(tensors, temporary, {name: str(value) for name, value in facts.items()})


def _behind(found: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    """Windows as `Encoded` keeps them."""
    return {"ids": found.reshape(-1), "offsets": np.arange(len(found) + 1, dtype=np.int64) * found.shape[1]}


def _key(
    model: Path, task: Path, text: Path | None, max_length: int, code: str, evaluation: Mapping[str, Any] | None
) -> str:
    """What the tokens depend on: variants of a model, whose weights differ, share them."""
    own = ("config.json", "README.md")
    files = {
        name: file["sha256"]
        for name, file in read_manifest(model)["files"].items()
        if "safetensors" not in name and name not in own and not name.startswith("LICENSE")
    }
    versions = [version("tokenizers"), version("transformers")]
    texts = [sha256(folder / MANIFEST) for folder in (task, text) if folder]
    parts = [files, texts, max_length, dict(evaluation or {}), code, versions]
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
