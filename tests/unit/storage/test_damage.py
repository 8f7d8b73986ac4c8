"""Damaged and hostile containers. `tests/fuzz.py` tries many more mutants."""

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import save_file

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage import codec, container, header
from llm_sparsity.storage.container import Reader
from llm_sparsity.storage.quantized import Quantized
from tests import fuzz
from tests.marks import slow
from tests.weights import load, save

Change = Callable[[dict[str, Any], dict[str, Any]], object]  # of the header's tensors, and of the entries


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weight = torch.where(torch.arange(6000) % 3 == 0, torch.linspace(0.1, 1, 6000), 0.0).reshape(60, 100)
    save(tmp_path, {"weight": weight, "steps": torch.arange(4)})
    return tmp_path


def rewrite(folder: Path, change: Change) -> None:
    """Change the header and make its checksum agree, as one who means harm would do."""
    path = folder / container.WEIGHTS
    fields, data = fuzz._parsed(path.read_bytes())
    entries = json.loads(fields.pop("__metadata__")["tensors"])
    change(fields, entries)
    path.write_bytes(header.write_header(fields, entries) + data)


def test_every_flipped_bit_of_the_header_is_refused(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(100), "b": torch.arange(3)}
    save(tmp_path, tensors)
    whole = (tmp_path / container.WEIGHTS).read_bytes()
    tally, _ = fuzz.attack(tmp_path, tensors, fuzz.flips(whole))
    assert tally == {"refused": 8 * (8 + struct.unpack("<Q", whole[:8])[0])}


@pytest.mark.slow
def test_mutants_are_refused_or_identical(tmp_path: Path) -> None:
    tensors = fuzz.tiny_tensors(tmp_path)
    save(tmp_path, tensors)
    whole = (tmp_path / container.WEIGHTS).read_bytes()
    tally, _ = fuzz.attack(tmp_path, tensors, fuzz.random_mutants(whole, 300, seed=7))
    assert tally.total() == 300
    assert tally["refused"] > 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields, entries: entries.pop("weight"), "tensor weight is damaged .it has no data or no checksum"),
        (lambda fields, entries: entries.update(more={"crc32": 1}), "tensor more is damaged"),
        (lambda fields, entries: entries["weight"].update(crc32="1"), "tensors: weight.crc32"),
        (lambda fields, entries: entries["weight"].update(crc32=1 << 32), "tensors: weight.crc32"),
        (lambda fields, entries: entries["weight"]["blob"].update(dtype="F8"), "tensors: weight.blob.dtype"),
        (lambda fields, entries: entries["weight"]["blob"].update(stored="F64"), "F32 stored as F64"),
        (lambda fields, entries: entries["weight"]["blob"].update(shape=[-1]), "tensors: weight.blob.shape.0"),
        (lambda fields, entries: entries["weight"]["blob"].update(shape=[1] * 99), "tensors: weight.blob.shape"),
        (lambda fields, entries: entries["weight"]["blob"].update(shape=[1 << 40, 9]), "cannot hold its shape"),
        (lambda fields, entries: entries["weight"]["blob"].update(shape=[10**30]), "cannot hold its shape"),
        (lambda fields, entries: entries["weight"]["blob"].update(shape=[60, 99]), "a chunk of another size"),
        (lambda fields, entries: entries["weight"].update(blob=1), "tensors: weight.blob"),
        (lambda fields, entries: entries["weight"].update(more=1), "tensors: weight.more"),
        (lambda fields, entries: entries["steps"].update(blob=entries["weight"]["blob"]), "no row of bytes"),
        (lambda fields, entries: entries["weight"].update(crc32=7), "tensor weight is damaged .its checksum differs"),
        (lambda fields, entries: fields["steps"].update(dtype="U64"), "tensor steps is damaged .its dtype is U64"),
        (lambda fields, entries: fields["weight"].update(data_offsets=[0, 1]), "not a whole safetensors file"),
        (lambda fields, entries: fields.update(weight=fields["steps"]), "not a whole safetensors file"),
    ],
)
def test_a_header_that_lies_is_refused(change: Change, message: str, folder: Path) -> None:
    rewrite(folder, change)
    with pytest.raises(UserError, match=message) as refused:
        load(folder)
    assert "\n" not in str(refused.value)


def test_entries_that_are_gone_are_noticed(folder: Path) -> None:
    path = folder / container.WEIGHTS
    whole = path.read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    other = whole[8:end].replace(b'"tensors"', b'"tensorz"')
    begin = header._BEGIN
    path.write_bytes(whole[:8] + other[:begin] + header._checksum(other) + other[begin + 64 :] + whole[end:])
    with pytest.raises(UserError, match=r"damaged .*tensors"):
        load(folder)


def test_metadata_that_are_gone_are_noticed(folder: Path) -> None:
    """Without metadata the file is plain safetensors, whose tensors are rows of bytes."""
    path = folder / container.WEIGHTS
    fields, data = fuzz._parsed(path.read_bytes())
    del fields["__metadata__"]
    path.write_bytes(fuzz._written(fields, data))
    with Reader(folder) as reader, pytest.raises(UserError, match=r"tensor weight is damaged .* metadata"):
        reader.tensor("weight")


def test_bytes_of_other_files_are_no_blobs(tmp_path: Path) -> None:
    plain = {name: torch.full((5000,), value, dtype=torch.uint8) for name, value in {"zeros": 0, "ones": 1}.items()}
    plain["noise"] = torch.randint(256, (5000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save(tmp_path, plain, sparse=False)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in load(tmp_path).items())


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    save_file({"codes": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / container.WEIGHTS)
    with Reader(tmp_path) as reader, pytest.raises(UserError, match="tensor codes has dtype F8_E4M3; expected one of"):
        reader.dtype("codes")
    with pytest.raises(UserError, match=r"tensor w has torch\.complex64; expected one of"):
        save(tmp_path, {"w": torch.zeros(2, dtype=torch.complex64)})


def blob(kind: int, count: int, parts: list[tuple[bytes, int]]) -> np.ndarray[Any, Any]:
    """A chunk by hand: parts are stored bytes and the uncompressed length that the chunk claims."""
    lengths = [number for data, raw in parts for number in (raw, len(data))]
    whole = struct.pack(f"<BI{len(lengths)}I", kind, count, *lengths) + b"".join(data for data, _ in parts)
    return np.frombuffer(whole, np.uint8)


def frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


BOMB = frame(bytes(1 << 26))


@pytest.mark.parametrize(
    ("bad", "size", "message"),
    [
        (blob(0, 2, [(b"ab", 2), (b"ab", 2)])[:-1], 2, "impossible chunk"),
        (blob(0, 2, [(b"ab", 2), (b"ab", 2)])[:9], 2, "cut off"),
        (blob(0, 2, [(b"ab", 2), (b"ab", 2)]), 3, "another size"),
        (blob(0, 2, [(b"ab", 2), (b"ab", 2)]), 1 << 40, "another size"),
        (blob(7, 2, [(b"ab", 2), (b"ab", 2)]), 2, "cut off|impossible"),
        (blob(0, 2, [(b"ab", 2), (b"abc", 3)]), 2, "impossible"),
        (np.append(blob(0, 2, [(b"ab", 2), (b"ab", 2)]), np.uint8(0)), 2, "1 bytes after the last chunk"),
        (blob(0, 64, [(BOMB[:60], 64), (bytes(64), 64)]), 64, "another length|zstd"),
        (blob(0, 64, [(frame(bytes(63)), 64), (bytes(64), 64)]), 64, "another length"),
        (blob(0, 64, [(frame(bytes(64)) + b"x", 64), (bytes(64), 64)]), 64, "zstd"),
        (blob(0, 64, [(b"no frame", 64), (bytes(64), 64)]), 64, "zstd"),
        (blob(1, 2, [(b"\x80", 1), (b"ab", 2), (b"ab", 2)]), 8, "bitmask of another number"),
        (blob(1, 2, [(b"\xe0", 1), (b"ab", 2), (b"ab", 2)]), 8, "bitmask of another number"),
        (blob(1, 2, [(b"\xc0\0", 2), (b"ab", 2), (b"ab", 2)]), 8, "another size"),
        (blob(2, 1, [(b"\x08", 1), (b"a", 1), (b"a", 1)]), 8, "gaps"),
        (blob(2, 1, [(b"\xff", 1), (b"a", 1), (b"a", 1)]), 8, "gaps"),
        (blob(2, 2, [(b"\0\0", 2), (b"ab", 2), (b"ab", 2)]), 8, "another size"),  # more than an eighth is stored
    ],
)
def test_a_blob_that_lies_is_refused(bad: np.ndarray[Any, Any], size: int, message: str) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        codec.decode(bad, size, torch.float16)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_bytes_bound_the_values(tmp_path: Path) -> None:
    """The most that a file may claim is what zeros take: a chunk of 2^20 values in the header of one chunk."""
    zeros = torch.zeros(3 << 20, dtype=torch.bfloat16)
    coded = b"".join(codec.encode(zeros, torch.bfloat16))
    assert len(coded) == 3 * 29
    assert zeros.numel() <= codec.most_values(len(coded), 16) < 5 << 20
    save(tmp_path, {"zeros": zeros})
    assert torch.equal(load(tmp_path)["zeros"], zeros)
    rewrite(tmp_path, lambda fields, entries: entries["zeros"]["blob"].update(shape=[5 << 20]))
    with pytest.raises(UserError, match=r"tensor zeros is damaged .87 bytes cannot hold its shape"):
        Reader(tmp_path)


@pytest.mark.parametrize("sparsity", [slow(0.0), 0.03, 0.5, slow(0.87), 0.88, slow(0.99)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1 << 20, 3 << 20])
def test_reading_takes_at_most_twice_the_tensor(size: int, sparsity: float, dtype: torch.dtype, tmp_path: Path) -> None:
    weight = torch.randn(size, generator=torch.Generator().manual_seed(0))
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < sparsity] = 0
    save(tmp_path, {"weight": weight.to(dtype)})
    with Reader(tmp_path) as reader:
        reader.tensor("weight")
        tracemalloc.start()
        found = reader.tensor("weight")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert torch.equal(found, weight.to(dtype))
    assert peak <= 2 * found.nbytes + (4 << 20)


def test_a_name_cannot_break_the_line(tmp_path: Path) -> None:
    save(tmp_path, {"a\nerror: all is well": torch.zeros(100)})
    path = tmp_path / container.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"tensor a\\nerror: all is well is damaged") as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("number", [0, 1])
def test_the_vectors_of_the_specification(number: int, root: Path, tmp_path: Path) -> None:
    """The page's files in hex are read as the page says, and written so by today's writer."""
    page = (root / "docs/container.md").read_text(encoding="utf-8")
    whole = bytes.fromhex(page.split("```hex\n")[1 + number].split("```")[0])
    (tmp_path / container.WEIGHTS).write_bytes(whole)
    found = load(tmp_path)
    for name, tensor in json.loads(page.split("```json\n")[1 + number].split("```")[0]).items():
        assert found[name].dtype == header.DTYPES[tensor["dtype"]]
        expected = torch.zeros(tensor["shape"], dtype=found[name].dtype)
        for at, value in tensor["nonzero"].items():
            expected.view(-1)[int(at)] = value
        assert torch.equal(found.pop(name), expected)
    assert not found
    again: dict[str, Any] = load(tmp_path)
    if number == 1:
        codes = torch.zeros(3, 50, dtype=torch.int8)
        codes.view(-1)[[0, 33, 149]] = torch.tensor([7, -3, -7], dtype=torch.int8)
        scales = torch.tensor([[0.5, 2.0], [0, 0], [0, 0.25]], dtype=torch.bfloat16)
        again = {"weight": Quantized(codes, scales, 4, 32, torch.float32)}
    save(tmp_path / "again", again)
    assert (tmp_path / "again" / container.WEIGHTS).read_bytes() == whole
