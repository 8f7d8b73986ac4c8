"""Tasks as token ids: tokenised once per tokenizer, task and length, stored with `datasets`, batched by length.

    work/tokens/{key}/         splits train, validation and others that are scored too; columns input_ids,
                               token_type_ids where the model uses them, and labels of sentences
    work/tokens/{key}.lock     held while the folder is written

The Arrow files are memory-mapped: runs that share a task share the pages, and read only the rows that they use.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llm_sparsity.data.tasks import Examples, TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.jobs.lock import locked
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.files import MANIFEST, atomic_folder, sha256

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from torch import Tensor
    from transformers import DataCollatorWithPadding

SPLITS = ("train", "validation")
UNLABELLED = -100  # the class of a sentence without a label, which cross_entropy ignores; of a regression task, NaN
STRETCH = 32  # batches whose sequences are sorted by length together
NO_TYPES = {"big_bird"}  # types that its tokenizer makes, and transformers has never passed on
RESERVED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # tokens of the tokenizer's own
PIECE = 32  # tokens at the start of a window that are looked for in a training text
PART = 1 << 20  # tokens of the training text that are searched at a time


class TokenSplit:
    """A split of a task. A sequence is a sentence or pair with its label, or a window of text without a label.

    Args:
        data: columns input_ids, optionally token_type_ids, and labels of sentences.
        collate: pads the rows of a batch; None for windows, which are equally long.

    Attributes:
        lengths: tokens of each sequence, (sequences,), int64.
        labels: label of each sentence, see `UNLABELLED`; None for windows.
    """

    def __init__(self, data: "Dataset", collate: "DataCollatorWithPadding | None") -> None:
        import pyarrow.compute

        self.data, self._collate = data, collate
        if collate is None:
            self.data = data.with_format("torch")
        lengths = pyarrow.compute.list_value_length(data.data["input_ids"])
        self.lengths: NDArray[np.int64] = lengths.to_numpy().astype(np.int64)
        self.labels: list[float] | None = data["labels"][:] if "labels" in data.column_names else None

    def __len__(self) -> int:
        return len(self.data)

    @property
    def known_labels(self) -> list[float]:
        """The labels of the sentences that have one."""
        labels = self.labels or []
        if any(isinstance(label, float) for label in labels):  # numbers, of which any may be that of UNLABELLED
            return [label for label in labels if not math.isnan(label)]
        return [label for label in labels if label != UNLABELLED]

    @property
    def unlabelled(self) -> int:
        """How many sentences have no label."""
        return len(self.labels or ()) - len(self.known_labels)

    @property
    def rows(self) -> list[NDArray[np.int32]]:
        """The tokens of each sequence, without padding."""
        tokens = self.data.data["input_ids"].combine_chunks().flatten().to_numpy()
        return np.split(tokens, self.lengths.cumsum()[:-1])

    def batch(self, indices: NDArray[np.int64]) -> tuple[dict[str, "Tensor"], "Tensor"]:
        """Model inputs, (batch, longest), int64, and labels, (batch,), int64, or float32 of a regression task.

        Of windows, the tokens are the labels. There is an attention mask only if a sequence is padded: attention is
        faster without one.
        """
        rows = self.data[indices.tolist()]
        if self._collate is None:
            return {"input_ids": rows["input_ids"]}, rows["input_ids"]
        inputs = dict(self._collate(rows))
        labels = inputs.pop("labels")
        if inputs["attention_mask"].all():
            del inputs["attention_mask"]
        return inputs, labels

    # transformers groups by length as well, but in another order. Results depend on the order of the batches, so the
    # two functions below keep the order that all published results were made with.

    def shuffled(self, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """The batches of an epoch: shuffled, then sorted by length within stretches of 32 batches, longest first."""
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(self))
        batches = []
        for start in range(0, len(order), STRETCH * size):
            stretch = order[start : start + STRETCH * size]
            stretch = stretch[np.argsort(-self.lengths[stretch], kind="stable")]
            batches += [stretch[at : at + size] for at in range(0, len(stretch), size)]
        for number in generator.permutation(len(batches)):
            yield batches[number]

    def by_length(self, size: int) -> list[NDArray[np.int64]]:
        """Batches of all sequences, the shortest first."""
        order = np.argsort(self.lengths, kind="stable")
        return [order[at : at + size] for at in range(0, len(order), size)]


@dataclass(frozen=True)
class Tokens:
    """A tokenised task.

    key: the name of its folder in work/tokens.
    task: its name and labels, see `TaskFolder.facts`.
    others: splits that are scored beside validation, by name.
    num_labels: labels of a classification task, 1 for a regression task; 0 for a language model's.
    score: what a task with labels is judged by.
    """

    key: str
    task: dict[str, Any]
    train: TokenSplit
    validation: TokenSplit
    others: dict[str, TokenSplit]
    num_labels: int
    score: str


def tokenize(
    model: ModelFolder,
    task: TaskFolder,
    work: Path,
    *,
    max_length: int,
    code: str,
    text: TaskFolder | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Tokens:
    """Tokenise a task for a model, or read its tokens if they exist. One process writes them, others wait.

    Args:
        model: its tokenizer is used.
        task: a task with labels, or a language-model task.
        work: the folder of caches.
        max_length: tokens per sentence or pair, which are truncated; or per training window of a language model.
        code: the hash of the code.
        text: another task. Of a language-model task, its training split replaces that of `task`; of a task with labels,
            its training sentences are added, without labels.
        evaluation: sequence_length and max_tokens of the windows that a language model is evaluated on.

    Raises:
        UserError: a label outside the task's labels, or a text shorter than a window.
    """
    import datasets

    key = _key(model, task, text, max_length, code, evaluation)
    folder = work / "tokens" / key
    if not folder.exists():
        with locked(folder.with_name(f"{key}.lock")) as assert_held:
            if not folder.exists():
                if evaluation:
                    splits = _window_splits(model, task, text or task, max_length, evaluation)
                else:
                    splits = _sentence_splits(model, task, text, max_length)
                datasets.disable_progress_bars()
                with atomic_folder(folder) as fresh:
                    splits.save_to_disk(fresh)
                    assert_held()
    splits = datasets.load_from_disk(folder)
    collate = None if evaluation else _collator(model)
    found = {split: TokenSplit(splits[split], collate) for split in splits}
    train, validation = (found.pop(split) for split in SPLITS)
    return Tokens(key, task.facts, train, validation, found, 0 if evaluation else task.num_labels, task.score)


def seen(tokens: Tokens) -> int:
    """How many validation sequences are among those of the training split, token for token: they are remembered.

    Windows of a text begin anywhere, so one counts whose first 32 tokens follow each other in the training text.
    """
    trained, validated = tokens.train.rows, tokens.validation.rows
    if tokens.num_labels:
        known = {row.tobytes() for row in trained}
        return sum(row.tobytes() in known for row in validated)
    text, pieces, found = np.concatenate(trained), np.array([row[:PIECE] for row in validated]), set[bytes]()
    length = pieces.shape[1]
    for begin in range(0, len(text) - length + 1, PART):
        part = text[begin : begin + PART + length - 1]
        starts = np.arange(len(part) - length + 1)
        for position, tokens_there in enumerate(pieces.T):  # few starts are left after the first tokens
            starts = starts[np.isin(part[starts + position], tokens_there)]
        found |= {part[start : start + length].tobytes() for start in starts}
    return sum(piece.tobytes() in found for piece in pieces)


def windows(
    tokenizer: Any, task: TaskFolder, split: str, length: int, *, key: str, max_tokens: int | None = None
) -> NDArray[np.int32]:
    """Non-overlapping windows of tokens of a language-model task, (windows, length).

    Rows are joined by blank lines and tokenised as one text, with the tokenizer's special tokens; tokens after the last
    whole window are left out.

    Args:
        key: the setting that holds `length`, for the message.
        max_tokens: use the first `max_tokens` tokens only.

    Raises:
        UserError: the text is shorter than a window.
    """
    tokens = tokenizer("\n\n".join(task.texts(split)), verbose=False)["input_ids"]
    count = min(len(tokens), max_tokens or len(tokens)) // length
    if not count:
        limit = f", of which max_tokens allows {max_tokens}" if max_tokens else ""
        raise UserError(
            f"{key}: found {length}, but the split {split} of {task.name} has only {len(tokens)} tokens{limit}; "
            "lower it, or give more text"
        )
    return np.array(tokens[: count * length], np.int32).reshape(count, length)


def sentences(
    model: ModelFolder,
    task: TaskFolder,
    split: str,
    max_length: int,
    *,
    key: str = "max_length",
    unlabelled: TaskFolder | None = None,
) -> dict[str, Any]:
    """The sentences or pairs of a split as token ids: input_ids, labels, and token_type_ids where the model uses them.

    Args:
        key: the setting that holds `max_length`, for the message.
        unlabelled: another task, whose training sentences follow.

    Raises:
        UserError: a label outside the task's labels, pairs for sentences, or no room for a token of each.
    """
    examples = _checked(task, split)
    if unlabelled:
        examples = _joined(task, examples, unlabelled)
    special = model.tokenizer.num_special_tokens_to_add(pair=examples.pairs is not None)
    if max_length < (least := special + (1 if examples.pairs is None else 2)):
        what = "sentence" if examples.pairs is None else "pair"
        raise UserError(
            f"{key}: found {max_length}, but a {what} of {task.name} takes {least} tokens at least, {special} of them "
            f"special ones of {model.name}; raise it"
        )
    separator = task.manifest.get("separator", "") if model.structure.architecture == "decoder" else ""
    found = _encode(model.tokenizer, examples, max_length, separator)
    columns = {"input_ids": found["input_ids"], "labels": examples.labels}
    types = found.get("token_type_ids", [])
    # Since version 5 transformers leaves out the types of ALBERT, RemBERT and others, which were trained with them.
    named = "token_type_ids" in model.tokenizer.model_input_names
    made = model.model_config.model_type not in NO_TYPES and any(map(any, types))
    if model.token_types > 1 and types and (named or made):
        columns["token_type_ids"] = types
    return columns


def _window_splits(
    model: ModelFolder, task: TaskFolder, text: TaskFolder, max_length: int, evaluation: Mapping[str, Any]
) -> "DatasetDict":
    import datasets

    length, limit = evaluation["sequence_length"], evaluation["max_tokens"]
    train = windows(model.tokenizer, text, "train", max_length, key="max_length")
    validation = windows(model.tokenizer, task, "test", length, key="sequence_length", max_tokens=limit)
    found = zip(SPLITS, (train, validation), strict=True)
    return datasets.DatasetDict({split: datasets.Dataset.from_dict({"input_ids": ids}) for split, ids in found})


def _sentence_splits(
    model: ModelFolder, task: TaskFolder, unlabelled: TaskFolder | None, max_length: int
) -> "DatasetDict":
    import datasets
    from datasets import List, Value

    types = {"input_ids": List(Value("int32")), "token_type_ids": List(Value("int32"))}
    types["labels"] = Value("float64" if task.num_labels == 1 else "int64")
    splits = datasets.DatasetDict()
    for split in task.splits:
        columns = sentences(model, task, split, max_length, unlabelled=unlabelled if split == "train" else None)
        if [] in columns["input_ids"]:
            row = columns["input_ids"].index([]) + 1
            own = len(task.examples(split).texts)
            where = f"{task.path / split}.jsonl: line {row}" if row <= own else f"{unlabelled}: a sentence of train"
            raise UserError(f"{where} has no token for {model.name}; remove the row from the source")
        features = datasets.Features({name: types[name] for name in columns})
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    return splits


def _encode(tokenizer: Any, examples: Examples, max_length: int, separator: str = "") -> Any:
    """Token ids of sentences or pairs, with `separator` between two, truncated to `max_length`; and their token types.

    A token that the tokenizer itself puts around texts is text where a text spells it, as in scraped web pages: `</s>`
    within a sentence does not end it. Other special tokens, which a user has added as markers, are meant.
    """
    texts, pairs = examples.texts, examples.pairs
    for token in filter(None, [getattr(tokenizer, f"{role}_token", None) for role in RESERVED]):
        if len(token) > 1 and any(token in text for text in [*texts, *(pairs or [])]):
            apart = f"{token[0]} {token[1:]}"
            texts = [text.replace(token, apart) for text in texts]
            pairs = pairs and [text.replace(token, apart) for text in pairs]
    if pairs and separator:  # beside the cut that truncation makes in the longer text, not behind it
        if tokenizer.truncation_side == "left":
            texts = [text + separator for text in texts]
        else:
            pairs = [separator + text for text in pairs]
    return tokenizer(texts, pairs, truncation=True, max_length=max_length, return_token_type_ids=True)


def _checked(task: TaskFolder, split: str) -> Examples:
    examples = task.examples(split)
    if task.num_labels == 1:
        return examples
    for row, label in enumerate(examples.labels, 1):
        if not 0 <= label < task.num_labels:
            raise UserError(
                f"{task.path / split}.jsonl: line {row} has label {label}, but the task has {task.num_labels} "
                f"(0 to {task.num_labels - 1}); correct the task's `labels` and download it again"
            )
    return examples


def _joined(task: TaskFolder, examples: Examples, unlabelled: TaskFolder) -> Examples:
    """Examples, and after them the training sentences of another task, without their labels."""
    rows = unlabelled.rows("train")
    if ("text_pair" in rows[0]) != (examples.pairs is not None):
        raise UserError(f"{unlabelled}: has single sentences where {task} has pairs, or the reverse; name another task")
    none = math.nan if task.num_labels == 1 else UNLABELLED
    found = ((row["text"].strip(), row.get("text_pair", "").strip()) for row in rows)
    filled = [both for both in found if any(both)]  # running text has empty lines
    return Examples(
        examples.texts + [text for text, _ in filled],
        None if examples.pairs is None else examples.pairs + [pair for _, pair in filled],
        examples.labels + [none] * len(filled),
    )


def _collator(model: ModelFolder) -> "DataCollatorWithPadding":
    from transformers import DataCollatorWithPadding

    tokenizer = model.tokenizer
    tokenizer.padding_side = model.padding_side  # some decoders' tokenizers pad on the left, for generation
    if "attention_mask" not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]
    return DataCollatorWithPadding(tokenizer)


def _key(
    model: ModelFolder,
    task: TaskFolder,
    text: TaskFolder | None,
    max_length: int,
    code: str,
    evaluation: Mapping[str, Any] | None,
) -> str:
    """A hash of all that the tokens depend on. Weights are not part of it: the variants of a model share tokens."""
    files = {
        name: file["sha256"]
        for name, file in model.manifest["files"].items()
        if "safetensors" not in name and name not in ("config.json", "README.md") and not name.startswith("LICENSE")
    }
    versions = [version("tokenizers"), version("transformers")]
    texts = [sha256(folder.path / MANIFEST) for folder in (task, text) if folder]
    kind = [model.token_types, model.structure.architecture, model.model_config.model_type]
    parts = [files, kind, texts, max_length, dict(evaluation or {}), code, versions]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
