"""The header of the sparse container: written with a checksum, and checked before anything is read by it.

docs/container.md specifies it. A flipped bit, a wrong type or a size that the file cannot hold is one UserError.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.codec import most_values
from llm_sparsity.storage.quantized import scales_shape

FORMAT = "llm-sparsity"
PLAIN, QUANTISED = VERSIONS = "2", "3"  # a file without quantised tensors is one of version 2
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

CODES = {"I8": 8, "I4": 4}  # stored forms of a quantised tensor -> bits of a code
SCALES = 16  # bits of a scale, a bfloat16
# A checked header begins so; 64 digits follow. The checksum is of all bytes after them.
_BEGINS = {
    version: f'{{"__metadata__": {{"format": "{FORMAT}", "version": "{version}", "sha256": "'.encode()
    for version in VERSIONS
}
_BEGIN = len(_BEGINS[PLAIN])  # bytes, in both versions
_NARROWER = {("F32", "F16"), ("F32", "BF16")}  # dtypes that may be stored in a narrower one
MAX_DIMENSIONS = 64

Float = Literal["F64", "F32", "F16", "BF16"]
Stored = Mapping[str, tuple[tuple[int, ...], str]]  # name -> shape and dtype in the safetensors header


class Blob(BaseModel):
    """The tensor that a blob encodes, and the dtype of the values in it.

    A quantised tensor, stored as I8 or I4, has two more: `scales`, the bytes of its scales, which come before its
    codes, and `group`, the number of codes that share a scale.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    dtype: Float
    shape: tuple[Annotated[int, Field(ge=1, strict=True)], ...] = Field(strict=False, max_length=MAX_DIMENSIONS)
    stored: Float | Literal["I8", "I4"]
    scales: int | None = Field(None, ge=1)
    group: int | None = Field(None, ge=1, lt=1 << 32)


class Entry(BaseModel):
    """What the metadata say of a tensor: the checksum of its bytes, and what they encode unless they are the tensor."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    crc32: int = Field(ge=0, lt=1 << 32)
    blob: Blob | None = None


_ENTRIES = TypeAdapter(dict[str, Entry])


def damaged(path: Path, reason: object, tensor: str | None = None) -> UserError:
    """The error of a damaged file: one line, whatever the file holds."""
    part = "its header" if tensor is None else f"tensor {tensor}"
    line = f"{path}: {part} is damaged ({reason}); make or download it again"
    return UserError("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


def write_header(tensors: Mapping[str, Any], entries: Mapping[str, Any] | None) -> bytes:
    """The first bytes of a file, up to the data.

    Args:
        tensors: name -> dtype, shape and data_offsets, as safetensors defines them.
        entries: name -> `Entry`, as JSON values; None for plain safetensors.
    """
    metadata = {"format": "pt"}
    version = QUANTISED if any(map(_is_quantised, (entries or {}).values())) else PLAIN
    if entries is not None:
        metadata = {"format": FORMAT, "version": version, "sha256": "0" * 64, "tensors": json.dumps(entries)}
    header = json.dumps({"__metadata__": metadata, **tensors}).encode()
    header += b" " * (-len(header) % 8)  # safetensors requires aligned data
    if entries is not None:
        header = _BEGINS[version] + _checksum(header) + header[_BEGIN + 64 :]
    return struct.pack("<Q", len(header)) + header


def _is_quantised(entry: Any) -> bool:
    """Whether an entry, as a JSON value, is of a quantised tensor."""
    blob = entry.get("blob") if isinstance(entry, Mapping) else None
    return isinstance(blob, Mapping) and blob.get("stored") in tuple(CODES)


def read_entries(path: Path, metadata: Mapping[str, str], stored: Stored) -> dict[str, Entry]:
    """Check the header of a file, and read its entries; none of plain safetensors.

    Args:
        path: the file.
        metadata: of its safetensors header.
        stored: the tensors of its safetensors header, which safetensors has compared with the file's size.

    Raises:
        UserError: the file is damaged, or of another version.
    """
    if not (metadata.get("format") == FORMAT or {"sha256", "tensors"} & metadata.keys()):
        return {}
    version = metadata.get("version", "")
    if version not in VERSIONS and version.isdecimal() and metadata.get("format") == FORMAT:
        if len(version) == 1 and version < PLAIN:
            raise UserError(f"{path}: made by an older version (container {version}, not {PLAIN}): make it again")
        raise UserError(f"{path}: container version {version[:9]}, but this program reads {QUANTISED}; update it")
    with path.open("rb") as file:
        header = file.read(struct.unpack("<Q", file.read(8))[0])
    if not header.startswith(tuple(_BEGINS.values())) or header[_BEGIN : _BEGIN + 64] != _checksum(header):
        raise damaged(path, "its checksum differs")
    try:
        entries = _ENTRIES.validate_json(metadata.get("tensors", ""))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise damaged(path, f"tensors: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if names := entries.keys() ^ stored.keys():
        raise damaged(path, "it has no data or no checksum", min(names))
    for name, entry in entries.items():
        if reason := _impossible(entry.blob, *stored[name]):
            raise damaged(path, reason, name)
    quantised = any(entry.blob and entry.blob.stored in CODES for entry in entries.values())
    if version != (QUANTISED if quantised else PLAIN):
        raise damaged(path, f"version {version} is {'not ' if quantised else ''}for quantised tensors")
    return entries


def _checksum(header: bytes) -> bytes:
    return hashlib.sha256(memoryview(header)[_BEGIN + 64 :]).hexdigest().encode()


def _impossible(blob: Blob | None, shape: tuple[int, ...], dtype: str) -> str | None:
    """Why an entry of the header does not fit the tensor's stored shape and dtype; None if it does."""
    if blob is None:
        return None if dtype in DTYPES else f"its dtype is {dtype}"
    if dtype != "U8" or len(shape) != 1:
        return "a blob that is no row of bytes"
    if blob.stored in CODES:
        return _impossible_codes(blob, shape[0])
    if blob.stored != blob.dtype and (blob.dtype, blob.stored) not in _NARROWER:
        return f"{blob.dtype} stored as {blob.stored}"
    if blob.scales is not None or blob.group is not None:
        return f"scales, but stored as {blob.stored}"
    fits = math.prod(blob.shape) <= most_values(shape[0], 8 * DTYPES[blob.stored].itemsize)
    return None if fits else f"{shape[0]} bytes cannot hold its shape"


def _impossible_codes(blob: Blob, length: int) -> str | None:
    """Why `length` bytes cannot encode a quantised tensor; None if they can."""
    if blob.scales is None or blob.group is None or not blob.shape:
        return "quantised, but without scales"
    scales = math.prod(scales_shape(blob.shape, blob.group))
    fits = (
        blob.scales < length
        and scales <= most_values(blob.scales, SCALES)
        and math.prod(blob.shape) <= most_values(length - blob.scales, CODES[blob.stored])
    )
    return None if fits else f"{length} bytes cannot hold its shape"
