"""Bytes and speed of the sparse container beside other ways to store a pruned tensor.

    PYTHONPATH=workflow python benchmarks/storage.py            16M Gaussian float32 weights at four sparsities
    PYTHONPATH=workflow python benchmarks/storage.py --write    the same, and the table goes into BENCHMARKS.md

Peers: bitmask and values as they are; CSR with 32-bit columns; gzip (level 6) and zstd (level 3) of the dense bytes;
and ZipNN (Hershcovitch et al. 2024, arXiv:2411.05239), which has to be installed for it (pip install zipnn). All give
back every bit, which is checked. Sizes are shares of dense float32; speeds are dense bytes by seconds of the processor,
so that they can be compared on a machine that does other work. Ours writes and reads a file and checks its sum; the
others work in memory.
"""

import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from shared import argument_parser, machine, publish, table
from torch import Tensor

from llm_sparsity.storage import container as checkpoint

SHAPE = (4096, 4096)
LEVELS = (0.5, 0.9, 0.95, 0.99)


def main() -> None:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes: dict[str, list[str]] = {}
    speeds: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        coders = _coders(Path(folder))
        for level in LEVELS:
            weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
            cut = weight.abs().flatten().kthvalue(round(level * weight.numel())).values
            weight[weight.abs() <= cut] = 0
            for name, (encode, decode) in coders.items():
                encoding, blob = _timed(lambda encode=encode, weight=weight: encode(weight))
                decoding, back = _timed(lambda decode=decode, blob=blob: decode(blob))
                assert np.array_equal(np.asarray(back).view(np.uint32).ravel(), weight.numpy().view(np.uint32).ravel())
                sizes.setdefault(name, []).append(f"{_size(blob) / weight.nbytes:.4f}")
                speeds.setdefault(name, []).append(f"{weight.nbytes / decoding / 1e9:.1f}")
                print(f"{level} {name}: {sizes[name][-1]}, decode {speeds[name][-1]} GB/s, encode {encoding:.1f} s")
    heads = ["", *(f"bytes at {level}" for level in LEVELS), *(f"GB/s at {level}" for level in LEVELS)]
    text = (
        f"{SHAPE[0]}x{SHAPE[1]} Gaussian float32 weights, the smallest removed; bytes as a share of dense, and "
        f"decoding. {machine(1)}.\n\n" + table(heads, [[name, *sizes[name], *speeds[name]] for name in sizes])
    )
    publish("storage", text, write=args.write)


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """The least seconds of the processor of five calls, and what the last one gave."""
    seconds = []
    for _ in range(5):
        begun = time.process_time()
        result = function()
        seconds.append(time.process_time() - begun)
    return min(seconds), result


def _size(blob: Any) -> int:
    if isinstance(blob, tuple):
        return sum(map(_size, blob))
    return blob if isinstance(blob, int) else memoryview(blob).nbytes


def _coders(folder: Path) -> dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Any]]]:
    def save(weight: Tensor) -> Any:
        with checkpoint.writing(folder) as writer:
            writer.add("weight", weight)
        return (folder / checkpoint.WEIGHTS).stat().st_size

    def read(_: Any) -> Any:
        with checkpoint.Reader(folder) as reader:
            return reader.tensor("weight").numpy()

    def mask(weight: Tensor) -> Any:
        flat = weight.numpy().ravel()
        return np.packbits(flat != 0), flat[flat != 0]

    def unmask(blob: Any) -> Any:
        out = np.zeros(SHAPE[0] * SHAPE[1], np.float32)
        out[np.unpackbits(blob[0]).view(bool)] = blob[1]
        return out

    def csr(weight: Tensor) -> Any:
        present = weight.numpy() != 0
        return (
            np.concatenate([[0], present.sum(1).cumsum()]).astype(np.int32),
            np.nonzero(present)[1].astype(np.int32),
            weight.numpy()[present],
        )

    def from_csr(blob: Any) -> Any:
        out = np.zeros(SHAPE, np.float32)
        out[np.repeat(np.arange(SHAPE[0]), np.diff(blob[0])), blob[1]] = blob[2]
        return out

    coders = {
        "this": (save, read),
        "bitmask and values": (mask, unmask),
        "CSR": (csr, from_csr),
        "gzip": (
            lambda weight: zlib.compress(weight.numpy(), 6),
            lambda blob: np.frombuffer(zlib.decompress(blob), np.float32),
        ),
        "zstd": (
            lambda weight: zstandard.ZstdCompressor(level=3).compress(weight.numpy()),
            lambda blob: np.frombuffer(zstandard.ZstdDecompressor().decompress(blob), np.float32),
        ),
    }
    try:
        from zipnn import ZipNN
    except ImportError:
        print("zipnn is not installed: left out")
        return coders
    zipnn = ZipNN(method="HUFFMAN", bytearray_dtype="float32", input_format="byte", threads=1)
    coders["ZipNN"] = (
        lambda weight: bytes(zipnn.compress(weight.numpy().tobytes())),
        lambda blob: np.frombuffer(zipnn.decompress(blob), np.float32),
    )
    return coders


if __name__ == "__main__":
    main()
