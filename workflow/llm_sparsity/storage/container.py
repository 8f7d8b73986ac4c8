"""The weights of a model folder, read and written one tensor at a time: plain safetensors, or the sparse container.

Plain safetensors stores a pruned tensor's zeros, so its file is as large as the dense one. The sparse container stores
the positions and values of the nonzero weights. It is a valid safetensors file in an ordinary transformers folder:

    model.safetensors   each tensor a blob of bytes (uint8, see codec.py), or uncoded where the blob is not smaller
      __metadata__      version, checksum of the header, checksum of each tensor, what each blob encodes (see header.py)

float32 values that float16 or bfloat16 represent exactly are stored so. A quantised tensor is stored as codes of 8 or 4
bits and scales, and read as their products. A tensor is read back with every bit as it was written, or refused in one
line. docs/container.md specifies the file.
"""

import math
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.codec import decode, is_blob
from llm_sparsity.storage.encoder import Encoder
from llm_sparsity.storage.files import MANIFEST, PICKLES, atomic, pickles_in, read_json, temporary_path
from llm_sparsity.storage.header import CODES, DTYPES, Blob, Entry, damaged, read_entries
from llm_sparsity.storage.paths import inside
from llm_sparsity.storage.quantized import Quantized, scales_shape

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_MAPPED = 1 << 28  # bytes read from a mapped file before it is mapped again, which frees its pages


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights, as transformers chooses them: `model.safetensors`, or an index's shards.

    So an index is ignored beside `model.safetensors`, and an adapter's or any other file is none of them.

    Raises:
        UserError: the folder has no weights, has only pickles, lacks a shard, or its index is damaged.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        try:
            shards = sorted({str(shard) for shard in read_json(folder / INDEX)["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{folder / INDEX}: no index of a transformers model; download it again") from None
        paths = [inside(folder, shard, f"{folder / INDEX}: weight_map") for shard in shards]
        if missing := [path.name for path in paths if not path.exists()]:
            raise UserError(f"{folder}: shard {missing[0]} of {INDEX} is missing; download the model again")
        if paths:
            return paths
    if (folder / "adapter_model.safetensors").exists():
        raise UserError(
            f"{folder}: an adapter alone, and no {WEIGHTS}; merge it into its base model "
            "(peft: merge_and_unload()) and save that"
        )
    if pickles := pickles_in(folder):
        raise UserError(
            f"{folder}: {pickles[0].name} is a pickle, which can run code when loaded, and there is no {WEIGHTS}; "
            "choose a revision that has safetensors, or convert it where you trust it"
        )
    if others := sorted(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder}: no {WEIGHTS}, but {others[0].name}; rename it to {WEIGHTS} if it holds all weights, or "
            f"download {INDEX} too if it is one of several shards"
        )
    raise UserError(f"{folder}: no {WEIGHTS}; expected the folder of a transformers model")


class Reader:
    """Reads the tensors of a model folder one at a time, from either format.

    Args:
        folder: a model folder.

    Attributes:
        files: the safetensors files.
        names: the names of the tensors, sorted.
        sparse: whether a file is a sparse container.

    Raises:
        UserError: a file is missing, truncated, damaged (the message names the tensor) or of another version.
    """

    _file: Any  # the mapped file; one at a time
    _path: Path
    _read: int  # bytes read since it was mapped

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        self._stored: dict[str, tuple[tuple[int, ...], str]] = {}
        self._entries: dict[str, Entry] = {}
        self.files = weight_files(folder)
        for path in self.files:
            self._map(path)
            stored: dict[str, tuple[tuple[int, ...], str]] = {}
            for name in self._file.keys():  # noqa: SIM118, not a dict
                entry = self._file.get_slice(name)
                stored[name] = tuple(entry.get_shape()), entry.get_dtype()
            self._entries |= read_entries(path, self._file.metadata() or {}, stored)
            self._stored |= stored
            self._files |= dict.fromkeys(stored, path)
        self.names = sorted(self._files)
        self.sparse = bool(self._entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file = None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        blob = self._blob(name)
        return blob.shape if blob else self._stored[name][0]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, without reading it."""
        blob = self._blob(name)
        dtype = blob.dtype if blob else self._stored[name][1]
        if dtype not in DTYPES:
            raise UserError(
                f"{self._files[name]}: tensor {name} has dtype {dtype}; expected one of {', '.join(DTYPES)}"
            )
        return DTYPES[dtype]

    def tensor(self, name: str) -> Tensor:
        """Read a tensor, of the shape and dtype that were written."""
        stored = self.stored(name)
        return stored.values() if isinstance(stored, Quantized) else stored

    def stored(self, name: str) -> Tensor | Quantized:
        """Read a tensor as it is stored: a quantised one as its codes and scales."""
        path, blob = self._files[name], self._blob(name)
        if path != self._path or self._read > MAX_MAPPED:
            self._map(path)
        try:
            stored: Tensor = self._file.get_tensor(name)
        except (SafetensorError, TypeError, RuntimeError) as error:
            raise damaged(path, error, name) from None
        self._read += stored.nbytes
        if name not in self._entries:
            if stored.dtype == torch.uint8 and stored.dim() == 1 and is_blob(stored.numpy()):
                raise damaged(path, "its bytes are encoded, but the metadata that say how are missing", name)
            return stored
        data = stored.reshape(-1).view(torch.uint8).numpy()
        if zlib.crc32(data.data) != self._entries[name].crc32:
            raise damaged(path, "its checksum differs", name)
        if blob is None:
            return stored
        try:
            if blob.stored in CODES:
                return _quantized(data, blob)
            values = decode(data, math.prod(blob.shape), DTYPES[blob.stored])
        except ValueError as error:
            raise damaged(path, error, name) from None
        return values.to(DTYPES[blob.dtype]).reshape(blob.shape)

    def _blob(self, name: str) -> Blob | None:
        """What a tensor's bytes encode; None if they are the tensor."""
        return self._entries[name].blob if name in self._entries else None

    def _map(self, path: Path) -> None:
        """Map a file instead of the previous one, whose memory is freed with the last tensor read from it."""
        try:
            self._file = safe_open(path, framework="pt").__enter__()
        except SafetensorError as error:
            reason = str(error).partition("\n")[0][:200]
            raise UserError(f"{path}: not a whole safetensors file ({reason}); make or download it again") from None
        self._path, self._read = path, 0


@contextmanager
def writing(folder: Path, *, sparse: bool = True) -> Iterator[Encoder]:
    """Write the weights of a model folder tensor by tensor; yields what they are added to.

    The file appears, complete, when the block ends without an error. Peak memory is one tensor and a few chunks.

    Args:
        folder: a model folder.
        sparse: whether to write the sparse container; if not, plain safetensors.
    """
    data_path = temporary_path((folder / WEIGHTS).with_suffix(".data"))
    with atomic(folder / WEIGHTS) as temporary:
        try:
            with data_path.open("w+b") as data:
                encoder = Encoder(data, sparse=sparse)
                yield encoder
                data.seek(0)
                with temporary.open("wb") as file:
                    file.write(encoder.header())
                    shutil.copyfileobj(data, file, 1 << 24)
        finally:
            data_path.unlink(missing_ok=True)


def _quantized(data: NDArray[np.uint8], blob: Blob) -> Quantized:
    """The codes and scales of a quantised tensor; ValueError if the bytes do not encode it."""
    split, group = blob.scales or 0, blob.group or 1
    rows, groups = scales_shape(blob.shape, group)
    scales = decode(data[:split], rows * groups, torch.bfloat16).view(rows, groups)
    bits = CODES[blob.stored]
    codes = decode(data[split:], math.prod(blob.shape), torch.int8, bits).view(blob.shape)
    return Quantized(codes, scales, bits, group, DTYPES[blob.dtype])


def is_sparse(folder: Path) -> bool:
    """Whether the weights of a model folder are in the sparse container."""
    with Reader(folder) as reader:
        return reader.sparse


def copy_companions(folder: Path, output: Path) -> None:
    """Copy the files of a model folder besides weights and manifest: configuration, tokenizer, licence.

    Others in `output` are of an earlier model, whose tokenizer would be used, and are removed.
    """
    output.mkdir(parents=True, exist_ok=True)
    companions = {path.name: path for path in sorted(folder.iterdir()) if _is_companion(path)}
    for old in output.glob("[!.]*"):  # a hidden file may be one that a network file system keeps while it is read
        if _is_companion(old) and old.name not in companions:
            old.unlink()
    for name, path in companions.items():
        with atomic(output / name) as temporary:
            shutil.copyfile(path, temporary)


def _is_companion(path: Path) -> bool:
    others = path.suffix in PICKLES | {".gguf", ".h5", ".msgpack"}  # weights in other formats
    return path.is_file() and "safetensors" not in path.name and path.name != MANIFEST and not others
