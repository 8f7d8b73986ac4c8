"""Model folders, read and written one tensor at a time: plain safetensors, and the sparse container.

A pruned tensor in a plain file is as large as a dense one: its zeros are stored. The sparse container stores where the
survivors are and what they are worth. It is a valid safetensors file in an ordinary transformers folder:

    model.safetensors   each tensor a blob of bytes (uint8), or itself where nothing is gained
      __metadata__      {"format": "llm-sparsity", "version": "1", "tensors": {name: dtype, shape, stored as, crc32}}

A blob is a row of chunks of 2^20 weights. A chunk holds the positions of the survivors (a bitmask, or the gaps between
them where they are rare), and their values byte plane by byte plane (signs and exponents compress well, mantissas do
not), each part zstd-compressed where that is smaller. Values of float32 that fit float16 or bfloat16 without loss are
stored so. Reading gives back every bit.
"""

import json
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import atomic, read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FORMAT, VERSION = "llm-sparsity", "1"
CHUNK = 1 << 20
MAPPED = 1 << 28  # bytes that are read of a file before it is mapped anew
# Weights hold no repeated strings: matches that are found by chance cost more than their bytes' entropy code.
ENTROPY = zstandard.ZstdCompressionParameters.from_level(1, strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6)

_SAFETENSORS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_TORCH = {name: dtype for dtype, name in _SAFETENSORS.items()}
_BITS: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_DENSE, _MASK, _GAPS = 0, 1, 2

Bytes = NDArray[np.uint8]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises:
        UserError: there are none, only pickles, or a shard is missing.
    """
    if (folder / INDEX).exists():
        shards = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        if missing := [shard for shard in shards if not (folder / shard).exists()]:
            raise UserError(f"{folder}: shard {missing[0]} of {INDEX} is missing; download the model again")
        return [folder / shard for shard in shards]
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if pickles := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
        raise UserError(
            f"{folder}: {pickles[0].name} is a pickle, which can run code when loaded, and there is no {WEIGHTS}; "
            "choose a revision that has safetensors, or convert it where you trust it"
        )
    raise UserError(f"{folder}: no {WEIGHTS}; expected the folder of a transformers model")


class Reader:
    """The tensors of a model folder, one at a time, whatever they are stored as.

    Raises:
        UserError: a file is missing, truncated or damaged (the tensor is named), or made by a newer version.
    """

    _file: Any  # the one that is mapped
    _path: Path
    _read: int  # bytes

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        self._stored: dict[str, tuple[tuple[int, ...], str]] = {}
        self._sparse: dict[str, dict[str, Any]] = {}
        self.files = weight_files(folder)
        for path in self.files:
            self._map(path)
            metadata = self._file.metadata() or {}
            if metadata.get("format") == FORMAT:
                if metadata["version"] != VERSION:
                    raise UserError(
                        f"{path}: container version {metadata['version']}, but this program reads {VERSION}; update it"
                    )
                self._sparse |= json.loads(metadata["tensors"])
            for name in self._file.keys():  # noqa: SIM118, it is no dict
                entry = self._file.get_slice(name)
                self._files[name], self._stored[name] = path, (tuple(entry.get_shape()), entry.get_dtype())
        self.names = sorted(self._files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file = None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._sparse[name]["shape"]) if name in self._sparse else self._stored[name][0]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, without reading it."""
        return _TORCH[self._sparse[name]["dtype"] if name in self._sparse else self._stored[name][1]]

    def tensor(self, name: str) -> Tensor:
        """One tensor, with the shape and dtype that it was written with."""
        path = self._files[name]
        if path != self._path or self._read > MAPPED:
            self._map(path)
        stored: Tensor = self._file.get_tensor(name)
        self._read += stored.nbytes
        if name not in self._sparse:
            return stored
        entry = self._sparse[name]
        blob = stored.reshape(-1).view(torch.uint8).numpy()
        if zlib.crc32(blob.data) != entry["crc32"]:
            raise UserError(f"{path}: tensor {name} is damaged (its checksum differs); make or download it again")
        if entry["stored"] == "raw":
            return stored
        narrow = _TORCH[entry["stored"]]
        size = int(np.prod(entry["shape"], dtype=np.int64))
        return _decode(blob, size, narrow).to(_TORCH[entry["dtype"]]).reshape(entry["shape"])

    def _map(self, path: Path) -> None:
        """Map a file, in place of the one before: what was read of it leaves the memory with its last tensor."""
        try:
            self._file = safe_open(path, framework="pt").__enter__()
        except SafetensorError as error:
            raise UserError(f"{path}: not a whole safetensors file ({error}); make or download it again") from None
        self._path, self._read = path, 0


class Writer:
    """Writes a model's weights tensor by tensor; the file appears whole when the block ends without an error.

    Memory: one tensor and a few chunks. With `sparse=False` the file is plain safetensors.
    """

    def __init__(self, folder: Path, *, sparse: bool = True) -> None:
        self._target = folder / WEIGHTS
        self._sparse = sparse
        self._header: dict[str, Any] = {}
        self._entries: dict[str, dict[str, Any]] = {}
        self._end = 0

    def __enter__(self) -> Self:
        self._atomic = atomic(self._target)
        self._temporary = self._atomic.__enter__()
        self._data_path = self._temporary.with_suffix(".data.tmp")
        self._data = self._data_path.open("wb")
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor of any shape and dtype that safetensors knows."""
        tensor = tensor.detach().contiguous().cpu()
        flat = tensor.reshape(-1)
        start, crc = self._end, 0
        if self._sparse and tensor.is_floating_point() and tensor.numel():
            narrow = narrowest(flat)
            for part in _encode(flat, narrow):
                self._write(part)
                crc = zlib.crc32(part, crc)
            if self._end - start < flat.nbytes:
                self._place(name, "U8", [self._end - start], start)
                self._entry(name, tensor, _SAFETENSORS[narrow], crc)
                return
            self._data.seek(start)
            self._data.truncate()
            self._end = start
        raw = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
        self._write(raw.data)
        self._place(name, _SAFETENSORS[tensor.dtype], list(tensor.shape), start)
        if self._sparse:
            self._entry(name, tensor, "raw", zlib.crc32(raw.data))

    def _write(self, part: bytes | memoryview) -> None:
        self._data.write(part)
        self._end += len(part)

    def _place(self, name: str, dtype: str, shape: list[int], start: int) -> None:
        self._header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, self._end]}

    def _entry(self, name: str, tensor: Tensor, stored: str, crc: int) -> None:
        dtype = _SAFETENSORS[tensor.dtype]
        self._entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "stored": stored, "crc32": crc}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._data.close()
            if error is None:
                self._finish()
        except BaseException as failure:
            self._atomic.__exit__(type(failure), failure, failure.__traceback__)
            raise
        finally:
            self._data_path.unlink(missing_ok=True)
        self._atomic.__exit__(kind, error, trace)

    def _finish(self) -> None:
        metadata = {"format": "pt"}
        if self._sparse:
            metadata = {"format": FORMAT, "version": VERSION, "tensors": json.dumps(self._entries)}
        header = json.dumps({"__metadata__": metadata, **self._header}).encode()
        header += b" " * (-len(header) % 8)  # safetensors wants the data aligned
        with self._temporary.open("wb") as file, self._data_path.open("rb") as data:
            file.write(struct.pack("<Q", len(header)) + header)
            shutil.copyfileobj(data, file, 1 << 24)


def load(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder."""
    with Reader(folder) as reader:
        return {name: reader.tensor(name) for name in reader.names}


def save(folder: Path, tensors: Mapping[str, Tensor], *, sparse: bool = True) -> None:
    """Write all tensors of a model folder."""
    with Writer(folder, sparse=sparse) as writer:
        for name in sorted(tensors):
            writer.add(name, tensors[name])


def is_sparse(folder: Path) -> bool:
    """Whether a model folder holds the sparse container."""
    with safe_open(weight_files(folder)[0], framework="pt") as file:
        return (file.metadata() or {}).get("format") == FORMAT


def to_plain(folder: Path, output: Path) -> None:
    """Convert a model folder to plain safetensors, which any program reads; configuration and tokenizer are copied."""
    output.mkdir(parents=True, exist_ok=True)
    copy_companions(folder, output)
    with Reader(folder) as reader, Writer(output, sparse=False) as writer:
        for name in reader.names:
            writer.add(name, reader.tensor(name))


def copy_companions(folder: Path, output: Path) -> None:
    """Copy what a model folder holds besides weights and manifest: configuration, tokenizer, licence."""
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.is_file() and "safetensors" not in path.name and path.name != "manifest.json":
            with atomic(output / path.name) as temporary:
                shutil.copyfile(path, temporary)


def narrowest(flat: Tensor) -> torch.dtype:
    """The dtype of fewest bits in which no bit of these values is lost: their own, or one of 16 bits for float32."""
    for dtype in (torch.float16, torch.bfloat16) if flat.dtype == torch.float32 else ():
        if all(
            torch.equal(part.to(dtype).float().view(torch.int32), part.view(torch.int32)) for part in flat.split(CHUNK)
        ):
            return dtype
    return flat.dtype


def _encode(flat: Tensor, dtype: torch.dtype) -> Iterator[bytes]:
    """The chunks of a tensor in a dtype: (kind, survivors, lengths of the parts), then the parts."""
    width = dtype.itemsize
    compressor = zstandard.ZstdCompressor(compression_params=ENTROPY)
    for part in flat.split(CHUNK):
        bits = part.to(dtype).view(torch.uint8).numpy().view(_BITS[width])
        present = bits != 0
        where = np.flatnonzero(present)
        parts = []
        if len(where) > 0.97 * len(bits):  # a bitmask would cost more than the zeros
            kind, values = _DENSE, bits
        elif 8 * len(where) > len(bits):
            kind, values = _MASK, bits[where]
            parts.append(np.packbits(present).tobytes())
        else:
            kind, values = _GAPS, bits[where]
            parts.append(_gaps(where).tobytes())
        planes = values.view(np.uint8).reshape(-1, width)
        parts += [np.ascontiguousarray(planes[:, plane]).tobytes() for plane in range(width)]
        packed = [min(raw, compressor.compress(raw), key=len) for raw in parts]  # equal length means raw
        lengths = [length for raw, small in zip(parts, packed, strict=True) for length in (len(raw), len(small))]
        yield struct.pack(f"<BI{len(lengths)}I", kind, len(values), *lengths)
        yield from packed


def _decode(blob: Bytes, size: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `_encode`: a flat tensor of `size` values."""
    width = dtype.itemsize
    decompressor = zstandard.ZstdDecompressor()
    out = np.zeros(size, _BITS[width])
    view = blob.data
    at = 0
    for start in range(0, size, CHUNK):
        bits = out[start : start + CHUNK]
        kind, count = struct.unpack_from("<BI", view, at)
        parts = width + (kind != _DENSE)
        lengths = struct.unpack_from(f"<{2 * parts}I", view, at + 5)
        at += 5 + 8 * parts
        raws = []
        for raw, small in zip(lengths[::2], lengths[1::2], strict=True):
            data = view[at : at + small]
            raws.append(np.frombuffer(data if raw == small else decompressor.decompress(data, raw), np.uint8))
            at += small
        values = bits if kind == _DENSE else np.empty(count, _BITS[width])
        planes = values.view(np.uint8).reshape(-1, width)
        for plane in range(width):
            planes[:, plane] = raws[plane - width]
        if kind == _MASK:
            present = np.unpackbits(raws[0], count=len(bits)).view(bool)
            bits[np.flatnonzero(present)] = values  # six times as fast as by the mask itself
        elif kind == _GAPS:
            bits[_positions(raws[0])] = values
    return torch.from_numpy(out.view(np.uint8)).view(dtype)


def _gaps(where: NDArray[np.int64]) -> Bytes:
    """Positions as the zeros before each survivor, a byte each; 255 says "255 zeros and on"."""
    gaps = np.diff(where, prepend=-1) - 1
    ends = np.cumsum(gaps // 255 + 1) - 1
    out = np.full(ends[-1] + 1 if len(ends) else 0, 255, np.uint8)
    out[ends] = gaps % 255
    return out


def _positions(gaps: Bytes) -> NDArray[np.int64]:
    """The inverse of `_gaps`."""
    where: NDArray[np.int64] = np.cumsum(gaps, dtype=np.int64)[gaps != 255]
    return where + np.arange(len(where))
