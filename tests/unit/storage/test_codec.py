import struct

import pytest
import torch

from llm_sparsity.storage.codec import decode, encode, lossless_dtype


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0.0, -0.0, 0.5, 65504.0], torch.float16),
        ([2.0**-100, 0.5], torch.bfloat16),  # too small for float16
        ([0.1, 0.5], torch.float32),
        ([float("inf"), 1.0], torch.float16),
    ],
)
def test_the_dtype_that_loses_no_bit(values: list[float], dtype: torch.dtype) -> None:
    assert lossless_dtype(torch.tensor(values)) == dtype
    assert lossless_dtype(torch.tensor(values, dtype=torch.float64)) == torch.float64
    assert lossless_dtype(torch.tensor(values, dtype=torch.bfloat16)) == torch.bfloat16


@pytest.mark.parametrize(
    ("stored", "kind", "positions"),
    [
        (range(64), 0, None),
        (range(0, 64, 2), 1, bytes([0b10101010] * 8)),
        ([3, 60], 2, bytes([3, 56])),
    ],
)
def test_the_layout_of_a_chunk(stored: list[int], kind: int, positions: bytes | None) -> None:
    flat = torch.zeros(64)
    flat[list(stored)] = 1.5  # 0x3FC00000
    blob = b"".join(encode(flat, torch.float32))
    assert struct.unpack_from("<BI", blob) == (kind, len(stored))
    parts = 4 + (positions is not None)
    lengths = struct.unpack_from(f"<{2 * parts}I", blob, 5)
    assert len(blob) == 5 + 8 * parts + sum(lengths[1::2])
    if positions is not None:
        assert lengths[0] == len(positions)
        if lengths[0] == lengths[1]:
            assert blob[5 + 8 * parts :].startswith(positions)
    assert lengths[-2] == len(stored)
    assert torch.equal(decode(torch.frombuffer(bytearray(blob), dtype=torch.uint8).numpy(), 64, torch.float32), flat)
