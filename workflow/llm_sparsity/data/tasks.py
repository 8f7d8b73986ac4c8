"""Prepared tasks: a folder of JSON lines, one file a split, read as rows, examples or lines."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import read_manifest


@dataclass(frozen=True)
class Examples:
    """A split of a task with labels: classes from 0, or of a regression task numbers."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[float]


class TaskFolder:
    """The folder of a prepared task, read once and passed on in place of its path.

    Args:
        path: a folder that the stage download has made, see `preparation.prepare`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The folder's own name, for messages."""
        return self.path.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds.

        Raises:
            UserError: there is none, so the task has not been downloaded.
        """
        return read_manifest(self.path)

    @property
    def facts(self) -> dict[str, Any]:
        """The name and the labels of a task, which a head is trained for; of a number, transformers' name for it."""
        number = ["LABEL_0"] if self.manifest.get("task") == "regression" else None
        return {"name": self.name, "labels": self.manifest.get("labels", number)}

    @property
    def num_labels(self) -> int:
        """The number of labels of a task; 1 for a regression task, whose label is a number."""
        return 1 if self.manifest.get("task") == "regression" else len(self.manifest["labels"])

    @property
    def score(self) -> str:
        """The score that a task with labels is judged by; the manifest names it unless it is accuracy."""
        return str(self.manifest.get("score", "accuracy"))

    @property
    def splits(self) -> list[str]:
        """The splits of a task with labels: train, validation, and others that are scored too."""
        return list(dict.fromkeys(["train", "validation", *self.manifest.get("rows", {})]))

    def rows(self, split: str) -> list[dict[str, Any]]:
        """The rows of a split, of a task of any kind.

        Raises:
            UserError: the task has no such split, or it is empty or damaged.
        """
        try:
            with (self.path / f"{split}.jsonl").open(encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
        except ValueError as error:
            raise UserError(f"{self.path}/{split}.jsonl: is damaged ({error}); download the task again") from None
        except FileNotFoundError:
            raise UserError(
                f"{self.path}: no {split}.jsonl; the task has no such split, or was not downloaded"
            ) from None
        if not rows:
            raise UserError(f"{self.path}/{split}.jsonl: has no rows; download the task again")
        return rows

    def examples(self, split: str) -> Examples:
        """A split of a task with labels."""
        rows = self.rows(split)
        pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
        return Examples([row["text"] for row in rows], pairs, [row["label"] for row in rows])

    def texts(self, split: str) -> list[str]:
        """The lines of a split of a language-model task."""
        return [row["text"] for row in self.rows(split)]
