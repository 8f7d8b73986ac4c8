"""The lossless coding of one tensor as bytes. The container stores one such blob a tensor.

A tensor is flattened and cut into chunks of 2^20 values. A chunk is a header and its parts, little-endian:

    uint8    kind: 0 dense, 1 bitmask, 2 gaps
    uint32   number of values stored
    uint32   for each part two lengths in bytes: uncompressed and stored
    bytes    the parts: positions of the stored values (kinds 1 and 2), then the values, one part a byte plane

A value counts as zero if all of its bits are zero, so -0.0 is stored. Byte planes are separated because signs and
exponents compress well and mantissas do not. Each part is a zstd frame, or uncompressed if its two lengths are equal.
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 1 << 20  # values
MAX_MASK_DENSITY = 0.97  # above it, a bitmask takes more bytes than the zeros that it saves
# Weights contain no repeated strings: coding a match found by chance takes more bytes than coding its symbols.
ENTROPY = zstandard.ZstdCompressionParameters.from_level(1, strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6)

_UNSIGNED: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}  # by bytes a value
_DENSE, _MASK, _GAPS = 0, 1, 2

Bytes = NDArray[np.uint8]


def lossless_dtype(flat: Tensor) -> torch.dtype:
    """The narrowest dtype that holds these values bit by bit: float16 or bfloat16 for float32, else their own.

    Args:
        flat: (values,), of any floating-point dtype.
    """
    for dtype in (torch.float16, torch.bfloat16) if flat.dtype == torch.float32 else ():
        if all(
            torch.equal(part.to(dtype).float().view(torch.int32), part.view(torch.int32)) for part in flat.split(CHUNK)
        ):
            return dtype
    return flat.dtype


def encode(flat: Tensor, dtype: torch.dtype) -> Iterator[bytes]:
    """Encode a tensor, in pieces that are to be concatenated.

    Args:
        flat: (values,), floating point, contiguous, on the CPU.
        dtype: the dtype to store, see `lossless_dtype`.
    """
    compressor = zstandard.ZstdCompressor(compression_params=ENTROPY)
    for part in flat.split(CHUNK):
        kind, count, parts = _chunk_parts(part.to(dtype).view(torch.uint8).numpy().view(_UNSIGNED[dtype.itemsize]))
        stored = [min(raw, compressor.compress(raw), key=len) for raw in parts]  # of equal lengths, the uncompressed
        lengths = [length for raw, small in zip(parts, stored, strict=True) for length in (len(raw), len(small))]
        yield struct.pack(f"<BI{len(lengths)}I", kind, count, *lengths)
        yield from stored


def decode(blob: Bytes, size: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `encode`.

    Args:
        blob: (bytes,).
        size: number of values.
        dtype: the dtype stored.

    Returns:
        (size,), of `dtype`.
    """
    width = dtype.itemsize
    decompressor = zstandard.ZstdDecompressor()
    out = np.zeros(size, _UNSIGNED[width])
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
        values = bits if kind == _DENSE else np.empty(count, _UNSIGNED[width])
        planes = values.view(np.uint8).reshape(-1, width)
        for plane in range(width):
            planes[:, plane] = raws[plane - width]
        if kind == _MASK:
            present = np.unpackbits(raws[0], count=len(bits)).view(bool)
            bits[np.flatnonzero(present)] = values  # six times as fast as indexing by the mask
        elif kind == _GAPS:
            bits[_positions(raws[0])] = values
    return torch.from_numpy(out.view(np.uint8)).view(dtype)


def _chunk_parts(bits: NDArray[Any]) -> tuple[int, int, list[bytes]]:
    """The kind of a chunk, the number of values stored, and its uncompressed parts.

    Args:
        bits: (values,), unsigned integers of the stored dtype's width.
    """
    present = bits != 0
    where = np.flatnonzero(present)
    positions = []
    if len(where) > MAX_MASK_DENSITY * len(bits):
        kind, values = _DENSE, bits
    elif 8 * len(where) > len(bits):  # a bit a value takes less than a byte a stored value
        kind, values = _MASK, bits[where]
        positions = [np.packbits(present).tobytes()]
    else:
        kind, values = _GAPS, bits[where]
        positions = [_gaps(where).tobytes()]
    width = bits.itemsize
    planes = values.view(np.uint8).reshape(-1, width)
    return kind, len(values), positions + [np.ascontiguousarray(planes[:, plane]).tobytes() for plane in range(width)]


def _gaps(where: NDArray[np.int64]) -> Bytes:
    """Positions as the number of zeros before each stored value, a byte each; 255 continues in the next byte."""
    gaps = np.diff(where, prepend=-1) - 1
    ends = np.cumsum(gaps // 255 + 1) - 1
    out = np.full(ends[-1] + 1 if len(ends) else 0, 255, np.uint8)
    out[ends] = gaps % 255
    return out


def _positions(gaps: Bytes) -> NDArray[np.int64]:
    """The inverse of `_gaps`."""
    where: NDArray[np.int64] = np.cumsum(gaps, dtype=np.int64)[gaps != 255]
    return where + np.arange(len(where))
