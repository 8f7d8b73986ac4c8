"""The files of a model folder: selection, checks, and the copy with a single weight file."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.roles import CLASSIFIERS
from llm_sparsity.storage.files import pickles_in, read_json
from llm_sparsity.storage.paths import inside

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
BYTES = "ByT5Tokenizer"  # the class of a tokenizer without such a file: its tokens are bytes
COMPANIONS = (
    "config.json", "generation_config.json", *TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "merges.txt", "bpe.codes", "dict.txt", "entity_vocab.json", "chat_template.jinja",
    "README.md", "LICENSE*",
)  # fmt: skip
MODEL_FILES = (*COMPANIONS, "*.safetensors", "*.safetensors.index.json")


def matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder that match any of several patterns, sorted."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds all that a tokenizer is made of."""
    if matching(folder, TOKENIZER_FILES):
        return True
    try:
        return bool(read_json(folder / "tokenizer_config.json")["tokenizer_class"] == BYTES)
    except (OSError, ValueError, KeyError, TypeError):  # anyone's JSON
        return False


def check_files(folder: Path, name: str) -> None:
    """Check that a folder holds configuration, weights and tokenizer, none of them a link that leads out of it.

    Args:
        folder: of a transformers model.
        name: of the source, for messages.

    Raises:
        UserError: a file is missing or elsewhere, or the weights are pickles only.
    """
    for path in matching(folder, MODEL_FILES):
        inside(folder, path.name, name)
    if not (folder / "config.json").exists():
        raise UserError(f"{name}: no config.json; expected the folder of a transformers model")
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{name}: adapter_config.json is of an adapter that is not merged; merge it into its base model (peft: "
            "merge_and_unload()) and save that, or remove its files"
        )
    if not matching(folder, ("*.safetensors",)):
        pickles = pickles_in(folder)  # never downloaded from a hub, so the file may have another name there
        pickle = pickles[0].name if pickles else "a file such as pytorch_model.bin"
        raise UserError(
            f"{name}: has no safetensors; {pickle} is a pickle, which can run code when it is loaded, and is not "
            "taken. Choose a revision that has safetensors, or add `converted: true` to its source for those that the "
            "hub itself made, or convert it where you trust it"
        )
    if not has_tokenizer(folder):
        raise UserError(f"{name}: no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}")


def check_weights(folder: Path) -> None:
    """Check that weight files are whole, agree with their index, and hold no dtype of quantised models, as F8_E4M3.

    Raises:
        UserError: they are not.
    """
    from safetensors import SafetensorError, safe_open

    from llm_sparsity.storage.container import INDEX, WEIGHTS, weight_files

    held: set[str] = set()
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118, not a dict
        except SafetensorError as error:
            raise UserError(f"{path}: not a whole safetensors file ({error}); make or download it again") from None
        if quantised := [name for name, dtype in dtypes.items() if dtype.startswith(("F8_", "F6_", "F4"))]:
            raise UserError(
                f"{path}: {quantised[0]} is {dtypes[quantised[0]]}, a quantised weight; "
                "choose the unquantised checkpoint"
            )
        held |= dtypes.keys()
    if not (folder / WEIGHTS).exists() and (absent := sorted(set(read_json(folder / INDEX)["weight_map"]) - held)):
        raise UserError(f"{folder / INDEX}: names {absent[0]}, which no shard holds; download it again")


def check_tokenizer(model: ModelFolder, embeddings: int) -> None:
    """Check that a model's tokenizer loads, and gives no token that the model does not know.

    Args:
        model: a model folder.
        embeddings: number of tokens that the model has embeddings for.

    Raises:
        UserError: it does not; see also `ModelFolder.tokenizer`.
    """
    token, last = max(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
    if last >= embeddings:
        raise UserError(
            f"{model}: the tokenizer has token {last}, {token!r}, but the model has embeddings for {embeddings} "
            "tokens; choose the tokenizer that it was trained with, or call resize_token_embeddings and save both"
        )
    if model.structure.architecture != "encoder-decoder":
        return
    end = getattr(model.model_config, "eos_token_id", None)
    if not isinstance(end, int):
        raise UserError(
            f"{model}/config.json: found `eos_token_id` {end}, but {model.model_type} classifies at one token, which "
            f"ends a text; write its id, {model.tokenizer.eos_token_id} in the tokenizer"
        )
    if end not in model.tokenizer("a")["input_ids"]:
        raise UserError(
            f"{model}: the tokenizer does not end a text with token {end}, `eos_token_id` of config.json, at which "
            f"{model.model_type} classifies; add it to the `post_processor` in tokenizer.json"
        )


def check_head(model: ModelFolder, task: TaskFolder) -> None:
    """Check that the classification head that config.json states is one of a task: its labels, in their order.

    Where config.json states no labels, the head's shape tells, see `loading.check_classifier`.

    Args:
        model: a model folder.
        task: that the head was trained on, as the user states.

    Raises:
        UserError: it states none, or other labels, or the task's labels in another order.
    """
    if model.class_name and not model.class_name.endswith("ForSequenceClassification"):
        raise UserError(
            f"head: found {task.name!r}, but {model} is a {model.class_name}, which has no classification head for "
            "texts; remove `head` from the model's entry"
        )
    stated = model.config.get("id2label") or {}
    names = [str(name) for _, name in sorted(stated.items(), key=lambda item: int(item[0]))]
    if names and len(names) != task.num_labels:
        raise UserError(
            f"head: found {task.name!r}, which has {task.num_labels} labels, but the classification head of {model} "
            f"has {len(names)}; name the task that it was trained on"
        )
    known, theirs = ([name.lower() for name in each] for each in (task.facts["labels"], names))
    if known != theirs and sorted(known) == sorted(theirs):
        order = [known.index(name) for name in theirs]
        ordered, numbered = (json.dumps([each(n) for n in order]) for each in (task.facts["labels"].__getitem__, str))
        raise UserError(
            f"head: {model} has the labels of {task.name} in another order, {', '.join(names)}; write `labels: "
            f"{ordered}` in the task's entry if its column holds names, `labels: {numbered}` if it holds numbers"
        )
    numbers = all(re.fullmatch(r"(label_)?\d+", name) for name in theirs)
    if len(theirs) > 1 and sorted(known) != sorted(theirs) and not numbers:
        raise UserError(
            f"head: {model} names its labels {', '.join(names)}, {task.name} {', '.join(task.facts['labels'])}, so "
            "their order cannot be compared; if the task's column holds numbers, write these names of the model as "
            "`labels` in its entry, in the order of the numbers; if it holds names, rename them as the model does"
        )


def copy_model(model: ModelFolder, target: Path, *, link: bool, head: bool) -> None:
    """Copy a model folder; the copy has a single weight file, `model.safetensors`.

    A single weight file keeps its bytes, so a sparse container stays one. Shards are merged into plain safetensors, one
    tensor in memory at a time.

    Args:
        model: a folder that `check_files` accepts.
        target: existing folder.
        link: make hard links where the file system allows it, for sources that nobody edits.
        head: keep the classification head. One of an unknown task is of no use.
    """
    from llm_sparsity.storage.container import WEIGHTS, Reader, weight_files, writing

    for path in matching(model.path, COMPANIONS):
        _copy(path, target / path.name, link=link)
    files = weight_files(model.path)
    with Reader(model.path) as reader:
        names = [name for name in reader.names if head or not re.search(CLASSIFIERS, name)]
        if len(files) == 1 and names == reader.names:
            _copy(files[0], target / WEIGHTS, link=link)
            return
        with writing(target, sparse=reader.sparse) as writer:
            for name in names:
                writer.add(name, reader.tensor(name))


def _copy(path: Path, target: Path, *, link: bool) -> None:
    """Copy a file, following symbolic links."""
    if link:
        with suppress(OSError):
            os.link(path.resolve(), target)
            return
    shutil.copyfile(path, target)
