"""Compressed files, read without letting a small file fill the memory or the disk."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from llm_sparsity.jobs.errors import UserError

FLOOR = 1 << 28  # bytes that every archive may hold
RATIO = 50  # times its size that a larger archive may hold; deflate reaches 1032, text 3 to 10
CHUNK = 1 << 20
OPENERS: dict[bytes, Callable[..., object]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def opener_of(path: Path) -> Callable[..., object]:
    """The function that opens a file to decompress it, by the file's first bytes; `open` if it is not compressed."""
    with path.open("rb") as file:
        start = file.read(max(map(len, OPENERS)))
    return next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), open)


class Budget:
    """The number of bytes that an archive may still give.

    Args:
        path: the archive.
        max_bytes: of all that it holds; default: 256 MiB, or 50 times its size if that is more.
    """

    def __init__(self, path: Path, max_bytes: int | None = None) -> None:
        self._name, self._limit = path.name, max_bytes or max(FLOOR, RATIO * path.stat().st_size)
        self._left = self._limit

    def spend(self, size: int) -> None:
        """Subtract bytes.

        Raises:
            UserError: the archive holds more than it may.
        """
        self._left -= size
        if self._left < 0:
            raise UserError(
                f"{self._name}: holds more than {self._limit} bytes once it is decompressed; check it, and set "
                "source.max_bytes if it is as large as it should be"
            )


class Bounded(io.RawIOBase):
    """A file that is decompressed while it is read, within a budget.

    Args:
        path: a file; its first bytes say how it is compressed, if it is.
        budget: of its decompressed bytes.
    """

    def __init__(self, path: Path, budget: Budget) -> None:
        self._file, self._budget = cast("BinaryIO", opener_of(path)(path, "rb")), budget

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, or the rest, a megabyte at a time."""
        parts, wanted = [], size if size is not None and size >= 0 else None
        while wanted is None or wanted > 0:
            part = self._file.read(CHUNK if wanted is None else min(CHUNK, wanted))
            if not part:
                break
            self._budget.spend(len(part))
            parts.append(part)
            wanted = wanted if wanted is None else wanted - len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
