"""The files of a model folder: selection, checks, and the copy with a single weight file."""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import read_json

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
COMPANIONS = (
    "config.json", "generation_config.json", *TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "merges.txt", "chat_template.jinja", "README.md", "LICENSE*",
)  # fmt: skip
MODEL_FILES = (*COMPANIONS, "*.safetensors", "*.safetensors.index.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder that match any of several patterns, sorted."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def check_model(folder: Path, name: str) -> None:
    """Check that a folder holds configuration, weights and tokenizer, and that an index agrees with its shards.

    Args:
        folder: of a transformers model.
        name: of the source, for messages.

    Raises:
        UserError: a file is missing or damaged, or the weights are pickles only.
    """
    from llm_sparsity.storage.container import INDEX, Reader

    if not (folder / "config.json").exists():
        raise UserError(f"{name}: no config.json; expected the folder of a transformers model")
    if not matching(folder, ("*.safetensors",)):
        pickles = matching(folder, PICKLES)  # never downloaded from a hub, so the file may have another name there
        pickle = pickles[0].name if pickles else "a file such as pytorch_model.bin"
        raise UserError(
            f"{name}: has no safetensors; {pickle} is a pickle, which can run code when it is loaded, and is not "
            "taken. Choose a revision that has safetensors, or add `converted: true` to its source for those that the "
            "hub itself made, or convert it where you trust it"
        )
    if not matching(folder, TOKENIZER_FILES):
        raise UserError(f"{name}: no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}")
    if (folder / INDEX).exists():
        try:
            indexed = set(read_json(folder / INDEX)["weight_map"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{folder / INDEX}: no index of a transformers model; download it again") from None
        with Reader(folder) as reader:
            if absent := sorted(indexed - set(reader.names)):
                raise UserError(f"{folder / INDEX}: names {absent[0]}, which no shard holds; download it again")


def copy_model(folder: Path, target: Path, *, link: bool) -> None:
    """Copy a model folder; the copy has a single weight file, `model.safetensors`.

    A single weight file keeps its bytes, so a sparse container stays one. Shards are merged into plain safetensors, one
    tensor in memory at a time.

    Args:
        folder: of a transformers model that `check_model` accepts.
        target: existing folder.
        link: make hard links where the file system allows it, for sources that nobody edits.
    """
    from llm_sparsity.storage.container import WEIGHTS, Reader, Writer, weight_files

    for path in matching(folder, COMPANIONS):
        _copy(path, target / path.name, link=link)
    files = weight_files(folder)
    if len(files) == 1:
        _copy(files[0], target / WEIGHTS, link=link)
        return
    with Reader(folder) as reader, Writer(target, sparse=False) as writer:
        for name in reader.names:
            writer.add(name, reader.tensor(name))


def _copy(path: Path, target: Path, *, link: bool) -> None:
    """Copy a file, following symbolic links."""
    if link:
        with suppress(OSError):
            os.link(path.resolve(), target)
            return
    shutil.copyfile(path, target)
