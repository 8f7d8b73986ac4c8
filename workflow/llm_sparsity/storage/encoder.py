"""Encodes the tensors of a model as the data and the header of a safetensors file: plain, or a sparse container."""

import zlib
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.codec import encode, lossless_dtype
from llm_sparsity.storage.header import DTYPES, write_header
from llm_sparsity.storage.quantized import Quantized

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Sink(Protocol):
    """The destination of the encoded bytes: a binary file, or a counter."""

    def write(self, part: bytes | memoryview, /) -> object:
        """Append bytes."""

    def seek(self, position: int, /) -> object:
        """Go back to a position."""

    def truncate(self) -> object:
        """Drop the bytes from the position on."""


class Encoder:
    """Encodes tensor after tensor.

    Args:
        sink: gets the data, at once; a code that turns out longer than its tensor is taken back.
        sparse: whether to make a sparse container; if not, plain safetensors.

    Attributes:
        size: of the data so far, in bytes.
    """

    def __init__(self, sink: Sink, *, sparse: bool = True) -> None:
        self._sink, self._sparse = sink, sparse
        self._header: dict[str, Any] = {}
        self._entries: dict[str, dict[str, Any]] = {}
        self.size = 0

    def header(self) -> bytes:
        """The bytes of the file before the data."""
        return write_header(self._header, self._entries if self._sparse else None)

    def add(self, name: str, tensor: Tensor | Quantized) -> None:
        """Append a tensor of any shape, of a floating-point, integer or boolean dtype.

        A quantised one is stored as its codes and scales; in plain safetensors, as its values.

        Raises:
            UserError: a tensor of another dtype.
        """
        if isinstance(tensor, Quantized):
            if self._sparse:
                self._add_quantized(name, tensor)
                return
            tensor = tensor.values()
        if tensor.dtype not in _NAMES:
            raise UserError(f"tensor {name} has {tensor.dtype}; expected one of {', '.join(DTYPES)}")
        tensor = tensor.detach().contiguous().cpu()
        flat = tensor.reshape(-1)
        start = self.size
        if self._sparse and tensor.is_floating_point() and tensor.numel():
            stored = lossless_dtype(flat)
            crc = self._write_all(encode(flat, stored))
            if self.size - start < flat.nbytes:
                blob = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "stored": _NAMES[stored]}
                self._entries[name] = {"crc32": crc, "blob": blob}
                self._add_header(name, "U8", [self.size - start], start)
                return
            self._sink.seek(start)
            self._sink.truncate()
            self.size = start
        raw = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
        self._write(raw.data)
        self._entries[name] = {"crc32": zlib.crc32(raw.data)}
        self._add_header(name, _NAMES[tensor.dtype], list(tensor.shape), start)

    def _add_quantized(self, name: str, tensor: Quantized) -> None:
        start = self.size
        crc = self._write_all(encode(tensor.scales.reshape(-1), torch.bfloat16))
        blob = {
            "dtype": _NAMES[tensor.dtype], "shape": list(tensor.codes.shape), "stored": f"I{tensor.bits}",
            "scales": self.size - start, "group": tensor.group,
        }  # fmt: skip
        crc = self._write_all(encode(tensor.codes.reshape(-1), torch.int8, tensor.bits), crc)
        self._entries[name] = {"crc32": crc, "blob": blob}
        self._add_header(name, "U8", [self.size - start], start)

    def _write_all(self, parts: Iterable[bytes], crc: int = 0) -> int:
        """Append bytes; the CRC-32 of those before and these."""
        for part in parts:
            self._write(part)
            crc = zlib.crc32(part, crc)
        return crc

    def _write(self, part: bytes | memoryview) -> None:
        self._sink.write(part)
        self.size += len(part)

    def _add_header(self, name: str, dtype: str, shape: list[int], start: int) -> None:
        self._header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, self.size]}
