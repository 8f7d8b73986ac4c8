"""Damage a sparse container in every way, and see that each copy is refused in one line or read back bit by bit.

    PYTHONPATH=workflow:. python tests/fuzz.py                       10,000 mutants and every bit of the header
    PYTHONPATH=workflow:. python tests/fuzz.py --mutants 500 --seed 1

The file holds a tiny model with RANDOM weights. A mutant flips bits, overwrites, cuts, moves or doubles bytes, or edits
the JSON of the header; with `sealed`, all checksums are then made to agree, as one who means harm would do, and a file
that a writer could have written counts as right if it is read back as it says. A traceback, other tensors, a message of
several lines, or a peak of memory above twice the bytes of the tensors (and a constant `WORKSPACE`) fails.
"""

import argparse
import copy
import json
import random
import resource
import struct
import tempfile
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage import container, header
from llm_sparsity.storage.quantized import Quantized
from tests import weights

Tensors = dict[str, torch.Tensor]
Stored = dict[str, torch.Tensor | Quantized]
ODD: list[Any] = [
    None, True, -1, 0, 1, 2, 255, 1 << 20, 1 << 31, 1 << 40, 1 << 62, 1 << 63, 1 << 64, 1.5, 1e308, "", "F16", "F64",
    "U8", "I64", "I4", "I8", "F8_E4M3", "x\ny", "9" * 99, [], [0], [-1], [1 << 40], [1 << 62, 4], [1] * 99, {},
    {"a": 1}, [[[[]]]],
]  # fmt: skip
WORKSPACE = 1 << 20  # bytes of the interpreter, of zstd, of a header's objects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))  # a size that is believed is a MemoryError
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = tiny_tensors(folder)
        weights.save(folder, tensors)
        whole = (folder / container.WEIGHTS).read_bytes()
        for title, mutants in {
            "every bit of the header": flips(whole),
            f"{args.mutants} mutants": random_mutants(whole, args.mutants, args.seed),
        }.items():
            tally, peak = attack(folder, tensors, mutants)
            print(f"{title}: {dict(tally)}, peak {peak:.2f} of the tensors' bytes ({size(values(tensors))})")


def quantized(weight: torch.Tensor, bits: int) -> Quantized:
    """A matrix as codes with scales of powers of two, rounded to nearest, in groups that do not divide its rows."""
    scales = torch.full((len(weight), -(-weight.shape[1] // 24)), 2.0 ** (3 - bits), dtype=torch.bfloat16)
    codes = (weight * 2 ** (bits - 3)).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8)
    return Quantized(codes, scales, bits, 24, weight.dtype)


def tiny_tensors(folder: Path) -> Stored:
    """RANDOM weights of a tiny model, half of them zero, and tensors of every kind of coding."""
    from tests.tiny import save_tiny_model

    tensors = weights.load(save_tiny_model("bert", folder / "bert"))
    for number, name in enumerate(sorted(tensors)):
        torch.manual_seed(number)
        tensors[name] = torch.where(torch.rand_like(tensors[name]) < (0.5, 0.05, 1.0)[number % 3], tensors[name], 0.0)
    some = torch.randn(300, 40, generator=torch.Generator().manual_seed(0))
    more: Stored = {
        "half": some.half().float(),
        "bfloat": some.bfloat16(),
        "double": some.double(),
        "gaps": some * (some > 2),
    }
    more |= {f"{bits} bits": quantized(some * (some > level), bits) for bits, level in [(8, 0), (4, -9)]}
    more["4 bits, gaps"] = quantized(some[:, :39] * (some[:, :39] > 2), 4)
    return {**tensors, **more, "zeros": torch.zeros(5000), "integers": torch.arange(7), "none": torch.zeros(0, 3)}


def values(tensors: Stored) -> Tensors:
    """Tensors as they are read."""
    return {name: each.values() if isinstance(each, Quantized) else each for name, each in tensors.items()}


def attack(folder: Path, stored: Stored, mutants: Iterator[tuple[str, bytes]]) -> tuple[Counter[str], float]:
    """Read every mutant; AssertionError if one is read as something else, or fails otherwise than in one line.

    Returns:
        Outcomes, and the largest peak of Python's and numpy's memory as a multiple of the tensors' bytes.
    """
    tally: Counter[str] = Counter()
    tensors = values(stored)
    most, path = 0.0, folder / container.WEIGHTS
    tracemalloc.start()
    for kind, mutant in mutants:
        path.write_bytes(mutant)
        tracemalloc.reset_peak()
        before, valid = tracemalloc.get_traced_memory()[0], tensors
        try:
            found = weights.load(folder)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error), (kind, error)
            tally["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"{kind}: {type(error).__name__}, not one line") from error
        else:
            if same(found, tensors):
                tally["identical"] += 1
            else:
                assert kind.startswith("sealed") and is_as_declared(mutant, found), f"{kind}: other tensors"
                tally["another valid file"] += 1
                valid = found
        peak = tracemalloc.get_traced_memory()[1] - before
        assert peak <= 2 * size(valid) + WORKSPACE, f"{kind}: {peak} bytes"
        most = max(most, peak / max(1, size(valid)))
    tracemalloc.stop()
    return tally, most


def size(tensors: Tensors) -> int:
    """Bytes of dense tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())


def same(found: Tensors, tensors: Tensors) -> bool:
    """Whether names, shapes, dtypes and all bits are equal."""
    return found.keys() == tensors.keys() and all(
        found[name].dtype == tensor.dtype
        and found[name].shape == tensor.shape
        and (
            not tensor.numel()
            or torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        )
        for name, tensor in tensors.items()
    )


def is_as_declared(mutant: bytes, found: Tensors) -> bool:
    """Whether tensors have the shapes and dtypes of a header whose checksums agree."""
    fields = json.loads(mutant[8 : 8 + struct.unpack("<Q", mutant[:8])[0]])
    entries = json.loads(fields.pop("__metadata__")["tensors"])
    declared = {name: entries[name].get("blob") or fields[name] for name in fields}
    return found.keys() == declared.keys() and all(
        list(found[name].shape) == declared[name]["shape"]
        and found[name].dtype == header.DTYPES[declared[name]["dtype"]]
        for name in declared
    )


def flips(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """A copy for every bit of the length and the header."""
    for bit in range(8 * (8 + struct.unpack("<Q", whole[:8])[0])):
        mutant = bytearray(whole)
        mutant[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(mutant)


def random_mutants(whole: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` damaged copies, a third each: bytes, the header's JSON, the same with checksums that agree."""
    generator = random.Random(seed)
    for number in range(count):
        make = (_bytes, _edited, _sealed)[number % 3]
        kind, mutant = make(whole, generator)
        yield f"{kind} (mutant {number} of seed {seed})", mutant


def _bytes(whole: bytes, generator: random.Random) -> tuple[str, bytes]:
    mutant = bytearray(whole)
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    end = generator.choice([8, header_end, header_end, len(whole)])
    at, length = generator.randrange(end), generator.choice([1, 2, 8, 64, 1024])
    kind = generator.choice(["flip", "overwrite", "zero", "cut", "remove", "insert", "double", "swap"])
    if kind == "flip":
        for _ in range(generator.choice([1, 2, 3, 8, 100])):
            mutant[generator.randrange(end)] ^= 1 << generator.randrange(8)
    elif kind == "overwrite":
        mutant[at : at + length] = generator.randbytes(len(mutant[at : at + length]))
    elif kind == "zero":
        mutant[at : at + length] = bytes(len(mutant[at : at + length]))
    elif kind == "cut":
        del mutant[at:]
    elif kind == "remove":
        del mutant[at : at + length]
    elif kind == "insert":
        mutant[at:at] = generator.randbytes(length)
    elif kind == "double":
        mutant[at:at] = mutant[at : at + length]
    else:
        to = generator.randrange(len(whole))
        mutant[at : at + length], mutant[to : to + length] = whole[to : to + length], whole[at : at + length]
    return f"bytes: {kind}", bytes(mutant)


def _edited(whole: bytes, generator: random.Random) -> tuple[str, bytes]:
    """The JSON of the header with one to three odd values; its checksum stays."""
    fields, data = _parsed(whole)
    for _ in range(generator.randrange(1, 4)):
        _edit(fields if generator.random() < 0.5 else fields.setdefault("__metadata__", {}), generator)
    if generator.random() < 0.1:
        fields.pop("__metadata__", None)
    return "edited", _written(fields, data)


def _sealed(whole: bytes, generator: random.Random) -> tuple[str, bytes]:
    """Odd values in the entries or in a blob, and checksums that agree."""
    fields, data = _parsed(whole)
    body, entries = bytearray(data), json.loads(fields["__metadata__"]["tensors"])
    for _ in range(generator.randrange(1, 3)):
        if generator.random() < 0.5:
            _edit(entries, generator)
        else:  # mostly in the first bytes of a blob: kind, count, lengths
            start, end = fields[generator.choice([name for name in fields if name != "__metadata__"])]["data_offsets"]
            for _ in range(generator.choice([1, 4])):
                if end > start:
                    near = min(end, start + generator.choice([5, 40, 1 << 20]))
                    body[generator.randrange(start, near)] = generator.choice([0, 1, 2, 255, generator.randrange(256)])
    for name, field in fields.items():
        if name != "__metadata__" and isinstance(entries.get(name), dict) and generator.random() < 0.95:
            entries[name]["crc32"] = zlib.crc32(body[slice(*field["data_offsets"])])
    del fields["__metadata__"]
    return "sealed", header.write_header(fields, entries) + bytes(body)


def _parsed(whole: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    return json.loads(whole[8:end]), whole[end:]


def _written(fields: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


def _edit(value: Any, generator: random.Random) -> None:
    """Replace, remove or rename one value at a random depth of nested dicts and lists."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
        if not keys:
            return
        key = generator.choice(keys)
        if isinstance(value[key], dict | list) and generator.random() < 0.8:
            value = value[key]
            continue
        action = generator.randrange(4)
        if action == 0:
            del value[key]
        elif action == 1 and isinstance(value, dict):
            value[generator.choice(["", "dtype", "x\ny", "format", *map(str, keys)])] = value.pop(key)
        elif action == 2 and isinstance(value[key], int) and not isinstance(value[key], bool):
            value[key] = value[key] + generator.choice([-1, 1, 7, 1 << 20, 1 << 40])
        else:
            value[key] = copy.deepcopy(generator.choice(ODD))
        return


if __name__ == "__main__":
    main()
