"""The lossless coding of one tensor as bytes. The container stores one such blob a tensor.

A tensor is flattened and cut into chunks of 2^20 values. A chunk is a header and its parts, little-endian:

    uint8    kind: 0 dense, 1 bitmask, 2 gaps
    uint32   number of values stored
    uint32   for each part two lengths in bytes: uncompressed and stored
    bytes    the parts: positions of the stored values (kinds 1 and 2), then the values, one part a byte plane

Values of 4 bits are one plane, two to a byte. A value counts as zero if all of its bits are zero, so -0.0 is stored.
Byte planes are separated because signs and exponents compress well and mantissas do not. Each part is a zstd frame, or
uncompressed if its two lengths are equal. docs/container.md specifies all of it.
"""

import itertools
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 1 << 20  # values
BLOCK = 1 << 18  # values of a chunk whose positions are in memory at once, a multiple of 8
MAX_MASK_DENSITY = 0.97  # above it, a bitmask takes more bytes than the zeros that it saves
# Weights contain no repeated strings: coding a match found by chance takes more bytes than coding its symbols.
ENTROPY = zstandard.ZstdCompressionParameters.from_level(1, strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6)

_UNSIGNED: dict[int, Any] = {4: np.uint8, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}  # by bits a value
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


def encode(flat: Tensor, dtype: torch.dtype, bits: int | None = None) -> Iterator[bytes]:
    """Encode a tensor, in pieces that are to be concatenated.

    Args:
        flat: (values,), floating point or int8, contiguous, on the CPU.
        dtype: the dtype to store, see `lossless_dtype`; int8 for int8.
        bits: of a stored value; default: those of the dtype. 4 for int8 in [-8, 8).
    """
    compressor = zstandard.ZstdCompressor(compression_params=ENTROPY)
    bits = bits or 8 * dtype.itemsize
    for part in flat.split(CHUNK):
        values = part.to(dtype).view(torch.uint8).numpy().view(_UNSIGNED[8 * dtype.itemsize])
        kind, count, parts = _chunk_parts(values, bits)
        stored = [min(raw, compressor.compress(raw), key=len) for raw in parts]  # of equal lengths, the uncompressed
        lengths = [length for raw, small in zip(parts, stored, strict=True) for length in (len(raw), len(small))]
        yield struct.pack(f"<BI{len(lengths)}I", kind, count, *lengths)
        yield from stored


def decode(blob: Bytes, size: int, dtype: torch.dtype, bits: int | None = None) -> Tensor:
    """The inverse of `encode`.

    Nothing of the tensor's size is allocated before all chunks are known to hold exactly `size` values. Besides the
    tensor, memory holds the uncompressed parts of one chunk and the positions of a block of values.

    Args:
        blob: (bytes,).
        size: number of values.
        dtype: the dtype stored.
        bits: of a stored value, see `encode`.

    Returns:
        (size,), of `dtype`.

    Raises:
        ValueError: the bytes do not encode `size` values.
    """
    bits = bits or 8 * dtype.itemsize
    planes_of_value = max(bits // 8, 1)
    for _ in _chunks(blob.data, size, bits):
        pass
    decompressor = zstandard.ZstdDecompressor()
    whole = np.zeros(size, _UNSIGNED[bits])
    for start, chunk in zip(range(0, size, CHUNK), _chunks(blob.data, size, bits), strict=True):
        out = whole[start : start + CHUNK]
        parts = [_uncompressed(decompressor, data, length) for data, length in chunk.parts]
        positions, planes = parts[:-planes_of_value], parts[-planes_of_value:]
        if bits == 4:
            planes = [_unpacked(planes[0], chunk.kept)]
        if chunk.kind == _DENSE:
            _join(planes, out)
        elif chunk.kind == _MASK:
            _scatter(out, positions[0], planes)
        else:
            where = _positions(positions[0])
            if len(where) != chunk.kept or (chunk.kept and where[-1] >= len(out)):
                raise ValueError("gaps that do not fit their chunk")
            out[where] = _join(planes, np.empty(chunk.kept, out.dtype))
    return torch.from_numpy(whole.view(np.uint8)).view(dtype)


def most_values(length: int, bits: int) -> int:
    """The largest number of values that a blob of `length` bytes can hold: its chunks have at least a header."""
    return CHUNK * (length // (5 + 8 * max(bits // 8, 1)))


def is_blob(data: Bytes) -> bool:
    """Whether bytes begin as the coding of a tensor does, or as that of a quantised tensor's scales."""
    for bits in (16, 32, 64):
        with suppress(ValueError):
            chunk = _chunk(data.data, bits)
            if chunk.kept or chunk.kind == _GAPS:  # zeros could be dense chunks of no value
                return True
    return False


class _Chunk(NamedTuple):
    kind: int
    kept: int  # number of values stored
    parts: list[tuple[memoryview, int]]  # stored bytes, uncompressed length
    length: int  # in bytes, with the header


def _chunk(view: memoryview, bits: int) -> _Chunk:
    """The chunk at the beginning of some bytes; ValueError if there is none."""
    try:
        kind, count = struct.unpack_from("<BI", view)
        planes = max(bits // 8, 1)
        parts = planes + (kind != _DENSE)
        lengths = struct.unpack_from(f"<{2 * parts}I", view, 5)
    except struct.error:
        raise ValueError("a chunk that is cut off") from None
    raw, stored = lengths[::2], lengths[1::2]
    ends = list(itertools.accumulate(stored, initial=5 + 8 * parts))
    if kind > _GAPS or set(raw[-planes:]) != {_plane(count, bits)} or ends[-1] > len(view):
        raise ValueError("an impossible chunk")
    if any(small > whole for whole, small in zip(raw, stored, strict=True)):
        raise ValueError("a part that is longer than its content")
    data = [view[start:end] for start, end in itertools.pairwise(ends)]
    return _Chunk(kind, count, list(zip(data, raw, strict=True)), ends[-1])


def _chunks(view: memoryview, size: int, bits: int) -> Iterator[_Chunk]:
    """The chunks of `size` values; ValueError unless counts and lengths are possible and they fill the bytes."""
    for start in range(0, size, CHUNK):
        chunk = _chunk(view, bits)
        values, count, positions = min(CHUNK, size - start), chunk.kept, chunk.parts[0][1]
        if not (
            (chunk.kind == _DENSE and count == values)
            or (chunk.kind == _MASK and count <= values and positions == (values + 7) // 8)
            or (chunk.kind == _GAPS and 8 * count <= values and 0 <= positions - count <= (values - count) // 255)
        ):
            raise ValueError(f"a chunk of another size than {values} values")
        yield chunk
        view = view[chunk.length :]
    if len(view):
        raise ValueError(f"{len(view)} bytes after the last chunk")


def _plane(count: int, bits: int) -> int:
    """The length of a plane of `count` values, in bytes."""
    return (count + 1) // 2 if bits == 4 else count


def _packed(values: Bytes) -> Bytes:
    """Two values of 4 bits to a byte, the first in its low bits."""
    pairs = np.zeros(_plane(len(values), 4) * 2, np.uint8)
    pairs[: len(values)] = values & 15
    return np.bitwise_or(pairs[::2], np.left_shift(pairs[1::2], 4, dtype=np.uint8))


def _unpacked(plane: Bytes, count: int) -> Bytes:
    """The inverse of `_packed`, with the sign of each value extended to 8 bits."""
    values = np.empty(2 * len(plane), np.uint8)
    values[::2], values[1::2] = plane & 15, plane >> 4
    values ^= 8
    values -= 8
    return values[:count]


def _uncompressed(decompressor: zstandard.ZstdDecompressor, data: memoryview, length: int) -> Bytes:
    """A part of `length` bytes."""
    if len(data) == length:
        return np.frombuffer(data, np.uint8)
    try:
        if zstandard.frame_content_size(data) == length:  # zstandard allocates what the frame says
            return np.frombuffer(decompressor.decompress(data, allow_extra_data=False), np.uint8)
    except zstandard.ZstdError as error:
        raise ValueError(f"zstd: {error}") from None
    raise ValueError("a part of another length than its zstd frame")


def _join(planes: list[Bytes], out: NDArray[Any]) -> NDArray[Any]:
    """Write values, given as byte planes, to `out`, and return it."""
    to = out.view(np.uint8).reshape(-1, len(planes))
    for number, plane in enumerate(planes):
        to[:, number] = plane
    return out


def _scatter(bits: NDArray[Any], mask: Bytes, planes: list[Bytes]) -> None:
    """Write the stored values to the positions of a bitmask, block by block, which bounds the memory of positions."""
    at, count = 0, len(planes[0])
    for start in range(0, len(bits), BLOCK):
        block = bits[start : start + BLOCK]
        present = np.unpackbits(mask[start // 8 : (start + BLOCK) // 8], count=len(block)).view(bool)
        where = np.flatnonzero(present)  # six times as fast as indexing by the mask
        end = at + len(where)
        if end > count:
            break
        block[where] = _join([plane[at:end] for plane in planes], np.empty(len(where), bits.dtype))
        at = end
    if at != count or end > count:
        raise ValueError("a bitmask of another number of values")


def _chunk_parts(whole: NDArray[Any], bits: int) -> tuple[int, int, list[bytes]]:
    """The kind of a chunk, the number of values stored, and its uncompressed parts.

    Args:
        whole: (values,), unsigned integers of the stored dtype's width.
        bits: of a stored value.
    """
    present = whole != 0
    where = np.flatnonzero(present)
    positions = []
    if len(where) > MAX_MASK_DENSITY * len(whole):
        kind, values = _DENSE, whole
    elif 8 * len(where) > len(whole):  # a bit a value takes less than a byte a stored value
        kind, values = _MASK, whole[where]
        positions = [np.packbits(present).tobytes()]
    else:
        kind, values = _GAPS, whole[where]
        positions = [_gaps(where).tobytes()]
    if bits == 4:
        return kind, len(values), [*positions, _packed(values).tobytes()]
    width = whole.itemsize
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
    where += np.arange(len(where))
    return where
