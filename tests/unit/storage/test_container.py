import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_model
from llm_sparsity.storage import codec, container
from llm_sparsity.storage.container import Reader, writing
from tests.weights import load, save, to_plain

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit: NaN payloads and the sign of zeros too."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def gaussian(*shape: int, sparsity: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Random normal weights, the smallest of them removed."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05
    if sparsity:
        weight[weight.abs() <= weight.abs().flatten().kthvalue(round(sparsity * weight.numel())).values] = 0
    return weight


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 40), max_size=3),
    dtype=st.sampled_from(DTYPES),
    density=st.sampled_from([0.0, 0.001, 0.02, 0.1, 0.3, 0.9, 1.0]),
    seed=st.integers(0, 10**6),
    chunk=st.sampled_from([7, 256, 1 << 22]),
)
def test_every_bit_is_restored(
    shape: list[int],
    dtype: torch.dtype,
    density: float,
    seed: int,
    chunk: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator).to(dtype)
    tensor = torch.where(torch.rand(shape, generator=generator) < density, tensor, torch.zeros((), dtype=dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "CHUNK", chunk)
        save(folder, {"weight": tensor})
        assert same(load(folder)["weight"], tensor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_values_are_restored(dtype: torch.dtype, tmp_path: Path) -> None:
    odd = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, 6e-8, 1.0] * 40).to(dtype)
    save(tmp_path, {"odd": odd, "zeros": torch.zeros(1000, dtype=dtype), "ints": torch.arange(5), "one": odd[7]})
    loaded = load(tmp_path)
    assert same(loaded["odd"], odd)
    assert loaded["zeros"].count_nonzero() == 0
    assert loaded["ints"].tolist() == [0, 1, 2, 3, 4]
    assert loaded["one"].shape == ()


def test_gaps_longer_than_a_byte(tmp_path: Path) -> None:
    weight = torch.zeros(100_000)
    weight[[0, 254, 509, 510, 766, 5000, 99_999]] = 1.5
    save(tmp_path, {"weight": weight})
    assert same(load(tmp_path)["weight"], weight)


@pytest.mark.parametrize(("sparsity", "most"), [(0.5, 0.44), (0.9, 0.093), (0.95, 0.049), (0.99, 0.012)])
def test_bytes_of_gaussian_weights(sparsity: float, most: float, tmp_path: Path) -> None:
    weight = gaussian(1000, 1000, sparsity=sparsity)
    save(tmp_path, {"weight": weight})
    assert (tmp_path / "model.safetensors").stat().st_size / weight.nbytes <= most


def test_float32_that_holds_float16_is_stored_narrow(tmp_path: Path) -> None:
    weight = gaussian(500, 500)
    save(tmp_path / "wide", {"weight": weight})
    save(tmp_path / "narrow", {"weight": weight.half().float()})
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("wide", "narrow")]
    assert sizes[1] < 0.6 * sizes[0]
    assert same(load(tmp_path / "narrow")["weight"], weight.half().float())


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    tensors = {"b": gaussian(30, 20, sparsity=0.9), "a": torch.arange(6).reshape(2, 3)}
    save(tmp_path, tensors)
    with Reader(tmp_path) as reader:
        assert reader.names == ["a", "b"]
        assert reader.shape("b") == (30, 20)
        assert reader.dtype("b") == torch.float32
        assert reader.dtype("a") == torch.int64
        assert same(reader.tensor("b"), tensors["b"])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of what is mapped")
def test_at_most_one_file_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of other files, and of tensors that were deleted, are freed, however much has been read."""
    monkeypatch.setattr(container, "MAX_MAPPED", 1 << 16)
    tensors = {f"{shard}.{number}": gaussian(64, 64, seed=number) for shard in "abc" for number in range(8)}
    index = {name: f"{name[0]}.safetensors" for name in tensors}
    (tmp_path / container.INDEX).write_text(json.dumps({"weight_map": index}))
    for shard in "abc":
        save_file(
            {name: tensor for name, tensor in tensors.items() if name[0] == shard}, tmp_path / f"{shard}.safetensors"
        )

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(f"{tmp_path}/")

    with Reader(tmp_path) as reader:
        held = reader.tensor("a.0")
        for name, tensor in [*tensors.items(), *reversed(tensors.items())]:
            assert same(reader.tensor(name), tensor)
            assert mapped() <= 2  # of the held tensor, and of the newest
        assert same(held, tensors["a.0"])
    del held
    assert mapped() == 0


def test_the_container_is_a_valid_safetensors_file(tmp_path: Path) -> None:
    save(tmp_path, {"weight": gaussian(100, 100, sparsity=0.9)})
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["weight"]
        assert file.metadata()["format"] == "llm-sparsity"


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": gaussian(50, 50, sparsity=0.5), "a": gaussian(9)}
    save(tmp_path / "1", tensors)
    save(tmp_path / "2", dict(reversed(tensors.items())))
    assert (tmp_path / "1/model.safetensors").read_bytes() == (tmp_path / "2/model.safetensors").read_bytes()


def test_a_flipped_bit_names_the_tensor(tmp_path: Path) -> None:
    save(
        tmp_path,
        {"good": gaussian(64, 64, sparsity=0.5), "hurt": gaussian(64, 64, sparsity=0.9), "plain": torch.ones(9)},
    )
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = struct.unpack("<Q", data[:8])[0]
    for name, entry in json.loads(data[8 : 8 + header]).items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        for at in (start, (start + end) // 2, end - 1):
            damaged = bytearray(data)
            damaged[8 + header + at] ^= 0x10
            path.write_bytes(damaged)
            with Reader(tmp_path) as reader, pytest.raises(UserError, match=f"tensor {name} is damaged"):
                reader.tensor(name)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    save(tmp_path, {"weight": gaussian(64, 64, sparsity=0.5)})
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("version", "message"), [("9", "version 9, but this program reads 3"), ("1", "made by an older version .*again")]
)
def test_another_version_is_refused(version: str, message: str, tmp_path: Path) -> None:
    metadata = {"format": "llm-sparsity", "version": version, "tensors": "{}"}
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors", metadata)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    save(tmp_path, {"weight": torch.ones(3)})
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(KeyboardInterrupt), writing(tmp_path) as writer:
        writer.add("weight", gaussian(100, 100))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_weights_of_another_name_are_told(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match=r"no model\.safetensors, but model-00001-of-00002\.safetensors; rename it"):
        load(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="is a pickle, which can run code"):
        load(tmp_path)


def test_a_missing_shard_is_named(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_model("bert"))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert load(tmp_path).keys() == load(tiny_model("bert")).keys()
    shard = sorted(tmp_path.glob("*-00002-of-*"))[0]
    shard.unlink()
    with pytest.raises(UserError, match=f"shard {shard.name} of .* is missing"):
        load(tmp_path)


def test_companions_of_an_earlier_model_are_removed(tmp_path: Path) -> None:
    files = {
        "new": ("config.json", "vocab.txt"),
        "out": ("tokenizer.json", "config.json", "model.safetensors", "manifest.json", ".nfs01", "notes/a.txt"),
    }
    for folder, names in files.items():
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_text(folder)
    for name in ("pytorch_model.bin", "optimizer.pt", "model.gguf"):
        (tmp_path / "new" / name).write_text("weights of the dense model")
    container.copy_companions(tmp_path / "new", tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")): path.read_text() for path in tmp_path.glob("out/**/*.*")}
    kept = ("model.safetensors", "manifest.json", ".nfs01", "notes/a.txt")
    assert found == dict.fromkeys(files["new"], "new") | dict.fromkeys(kept, "out")


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama", "bart"])
def test_a_sparse_folder_loads_as_transformers_loads_the_plain_one(
    kind: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_model(kind)
    container.copy_companions(folder, tmp_path / "sparse")
    save(tmp_path / "sparse", load(folder))
    to_plain(tmp_path / "sparse", tmp_path / "plain")
    auto = transformers.AutoModelForSequenceClassification
    torch.manual_seed(0)
    expected = auto.from_pretrained(folder, num_labels=3).state_dict()
    for name in ("sparse", "plain"):
        torch.manual_seed(0)
        found = load_model(auto, ModelFolder(tmp_path / name), num_labels=3).state_dict()
        assert found.keys() == expected.keys()
        assert all(same(found[key], expected[key]) for key in expected)
    torch.manual_seed(0)
    plain = auto.from_pretrained(tmp_path / "plain", num_labels=3).state_dict()
    assert all(same(plain[key], expected[key]) for key in expected)
