"""Quantised tensors in the container: values by hand, every code, sizes, and files that are refused."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage import codec, container, header
from llm_sparsity.storage.container import Reader
from llm_sparsity.storage.quantized import Quantized
from tests import fuzz
from tests.weights import load, save, to_plain


def drawn(shape: tuple[int, ...], bits: int, group: int, density: float = 1.0, seed: int = 0) -> Quantized:
    """Random codes and scales."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, generator=generator).to(torch.int8)
    codes[torch.rand(shape, generator=generator) >= density] = 0
    rows = codes[..., 0].numel()
    scales = torch.rand(rows, -(-shape[-1] // group), generator=generator).bfloat16()
    return Quantized(codes, scales, bits, group, torch.float32)


def test_values_by_hand() -> None:
    codes = torch.tensor([[1, -2, 3], [0, 7, -8]], dtype=torch.int8)
    scales = torch.tensor([[0.5, 2.0], [1.0, 0.25]], dtype=torch.bfloat16)
    values = Quantized(codes, scales, 4, 2, torch.float32).values()
    assert values.tolist() == [[0.5, -1.0, 6.0], [0.0, 7.0, -2.0]]
    assert Quantized(codes, scales, 4, 2, torch.float16).values().dtype == torch.float16


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple), bits=st.sampled_from([4, 8]),
    group=st.sampled_from([1, 7, 32, 1000]), density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 10**6), chunk=st.sampled_from([7, 256, 1 << 20]),
)  # fmt: skip
def test_codes_and_scales_are_restored(
    shape: tuple[int, ...], bits: int, group: int, density: float, seed: int, chunk: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("checkpoint")
    tensor = drawn(shape, bits, group, density, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "CHUNK", chunk)
        save(folder, {"weight": tensor, "bias": torch.ones(3)})
        with Reader(folder) as reader:
            assert (reader.shape("weight"), reader.dtype("weight")) == (shape, torch.float32)
            assert torch.equal(reader.tensor("weight"), tensor.values())


@pytest.mark.parametrize(
    ("bits", "density", "share"), [(8, 1.0, 1.021), (4, 1.0, 0.537), (8, 0.1, 0.18), (4, 0.1, 0.125)]
)
def test_a_code_takes_its_bits(bits: int, density: float, share: float, tmp_path: Path) -> None:
    tensor = drawn((256, 1024), bits, 64, density)
    save(tmp_path, {"weight": tensor})
    size = (tmp_path / container.WEIGHTS).stat().st_size
    assert 0.97 * share < size / tensor.codes.numel() < 1.03 * share


def test_plain_files_hold_the_values(tmp_path: Path) -> None:
    tensor = drawn((5, 70), 4, 32)
    save(tmp_path / "codes", {"weight": tensor})
    (tmp_path / "codes" / "config.json").write_text("{}")
    to_plain(tmp_path / "codes", tmp_path / "plain")
    save(tmp_path / "direct", {"weight": tensor}, sparse=False)
    for folder in ("plain", "direct"):
        assert torch.equal(load(tmp_path / folder)["weight"], tensor.values())
        assert not container.is_sparse(tmp_path / folder)


def test_only_files_with_quantised_tensors_are_of_version_3(tmp_path: Path) -> None:
    for name, tensor in {"2": torch.ones(900), "3": drawn((3, 300), 8, 64)}.items():
        save(tmp_path / name, {"weight": tensor})
        assert f'"version": "{name}"'.encode() in (tmp_path / name / container.WEIGHTS).read_bytes()[:200]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"group": None}, "without scales"),
        ({"scales": None}, "without scales"),
        ({"scales": 1 << 40}, "cannot hold its shape"),
        ({"scales": 3}, "cannot hold its shape"),
        ({"group": 1 << 31}, "of another size|impossible chunk"),
        ({"group": 3}, "of another size|impossible chunk"),
        ({"group": 0}, "greater than or equal to 1"),
        ({"shape": []}, "without scales"),
        ({"shape": [1 << 40, 300]}, "cannot hold its shape"),
        ({"stored": "I2"}, "stored"),
        ({"stored": "F32"}, "scales, but stored as F32"),
        ({"stored": "I4"}, "impossible chunk|another size"),
    ],
)
def test_impossible_fields_are_one_line(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    save(tmp_path, {"weight": drawn((3, 300), 8, 64), "other": drawn((3, 300), 8, 64)})
    path = tmp_path / container.WEIGHTS
    fields, data = fuzz._parsed(path.read_bytes())
    entries = json.loads(fields.pop("__metadata__")["tensors"])
    entries["weight"]["blob"].update(changes)
    path.write_bytes(header.write_header(fields, entries) + data)
    with pytest.raises(UserError, match=said) as error:
        load(tmp_path)
    assert "\n" not in str(error.value) and "tensor weight" in str(error.value).replace("tensors: ", "tensor ")


def test_bytes_without_their_metadata_are_refused(tmp_path: Path) -> None:
    save(tmp_path, {"weight": drawn((30, 300), 4, 64)})
    path = tmp_path / container.WEIGHTS
    fields, data = fuzz._parsed(path.read_bytes())
    fields["__metadata__"] = {"format": "pt"}
    path.write_bytes(fuzz._written(fields, data))
    with pytest.raises(UserError, match="its bytes are encoded"):
        load(tmp_path)
