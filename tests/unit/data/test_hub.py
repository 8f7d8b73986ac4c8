"""Models and tasks from a hub: its local cache, its refusals, its conversions."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
import yaml
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from llm_sparsity.data.download import download_model, download_task
from llm_sparsity.data.hub import CONVERTER, card_licence, missing_offline
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import read_manifest, sha256
from tests.standin_hub import Hub, serving

ROOT = Path(__file__).parents[3]
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def snapshot(hub: Path, name: str, kind: str = "models") -> Path:
    """The folder of a revision, in the layout of huggingface_hub."""
    folder = hub / f"{kind}--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(REVISION)
    (folder / "snapshots" / REVISION).mkdir(parents=True)
    return folder / "snapshots" / REVISION


def source(name: str) -> dict[str, str]:
    return {"hub": name, "revision": REVISION}


def link_blobs(files: Path, target: Path) -> None:
    """Put files into `blobs/` and link to them, in the layout of the cache."""
    blobs = target.parent.parent / "blobs"
    blobs.mkdir()
    for path in files.iterdir():
        if path.name != "manifest.json":
            shutil.copy(path, blobs / sha256(path))
            (target / path.name).symlink_to(blobs / sha256(path))


@pytest.mark.parametrize(
    ("kind", "architecture"), [("roberta", "encoder"), ("gpt2", "decoder"), ("bart", "encoder-decoder")]
)
def test_model_from_the_cache(
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
    """A data set repository in the cache; `tables` maps paths to the rows of a parquet file."""
    folder = snapshot(hub, "nyu-mll/glue", "datasets")
    for path, rows in tables.items():
        (folder / path).parent.mkdir(exist_ok=True)
        pd.DataFrame(rows).to_parquet(folder / path)
    return folder


def splits_of(name: str) -> dict[str, str]:
    return {split: f"{name}/{split}.parquet" for split in ("train", "validation")}


def test_task_from_the_cache(hub: Path, tmp_path: Path) -> None:
    rows = {"sentence": ["good ", "bad "], "label": [1, 0], "idx": [0, 1]}
    folder = dataset(hub, dict.fromkeys(splits_of("sst2").values(), rows))
    (folder / "README.md").write_text("---\nlicense:\n- other\n- mit\n---\nlicense: none of this\n")
    glue, files = source("nyu-mll/glue"), splits_of("sst2")
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


def test_tasks_of_the_report_study(shared: Path, hub: Path, tmp_path: Path) -> None:
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
    study = yaml.safe_load((ROOT / "config.yaml").read_text())
    counts = {"sst2": [[29780, 37569], [428, 444]], "mrpc": [[1194, 2474], [129, 279]]}
    for name, expected in counts.items():
        settings = study["tasks"][name] | {"source": source("nyu-mll/glue")}
        download_task(tmp_path / name, **settings)
        manifest = read_manifest(tmp_path / name)
        assert list(manifest["label_counts"].values()) == expected
        assert manifest["rows"] == {split: sum(n) for split, n in zip(("train", "validation"), expected, strict=True)}
        assert manifest["dropped"] == 0


def test_cache_without_readme_is_complete(hub: Path, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """transformers caches no README, which the list of the repository's files names."""
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
def test_cache_without_a_required_file(
    absent: str, hub: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = snapshot(hub, "some/bert")
    link_blobs(tiny_model("bert"), folder)
    (folder / absent).unlink()
    assert "not whole in the local cache" in (missing_offline(source("some/bert"), "model") or "")
    with pytest.raises(UserError):
        download_model(tmp_path / "model", source=source("some/bert"), architecture="encoder")
    assert not (tmp_path / "model").exists()


def test_cache_without_a_shard(hub: Path, tiny_model: Callable[[str], Path]) -> None:
    folder = snapshot(hub, "some/bert")
    link_blobs(tiny_model("bert"), folder)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "not whole in the local cache" in (missing_offline(source("some/bert"), "model") or "")
    (folder / "model.safetensors.index.json").write_text("{")
    assert "not whole in the local cache" in (missing_offline(source("some/bert"), "model") or "")


def test_damaged_file_in_the_cache(hub: Path, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = snapshot(hub, "some/bert")
    link_blobs(tiny_model("bert"), folder)
    blob = (folder / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(UserError, match=f"{blob.name}: damaged in the hub's cache; delete this file and run again"):
        download_model(tmp_path / "model", source=source("some/bert"), architecture="encoder")


class Refused(Exception):
    """An error with an HTTP status, like those of huggingface_hub."""

    def __init__(self, status: int) -> None:
        self.response = SimpleNamespace(status_code=status)


def caused(kind: type[Exception], status: int) -> Exception:
    """An error of huggingface_hub, raised from one of its HTTP library."""
    error = kind.__new__(kind)
    error.__cause__ = Refused(status)
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (caused(RepositoryNotFoundError, 401), "the hub has no such repository, or it is private; correct the source"),
        (caused(GatedRepoError, 401), "accept its licence there and set HF_TOKEN"),
        (Refused(403), "accept its licence there and set HF_TOKEN"),
        (Refused(404), "the hub has no such revision; correct the source"),
        (Refused(503), r"the hub cannot be reached \(Refused\); run once where the network is"),
        (TimeoutError(), r"the hub cannot be reached \(TimeoutError\)"),
    ],
)
def test_refusal_is_one_line(
    error: Exception, message: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **options: object) -> None:
        raise LocalEntryNotFoundError("not cached") if options.get("local_files_only") else error

    monkeypatch.setattr("llm_sparsity.data.hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", refuse)
    with pytest.raises(UserError, match=message) as caught:
        download_model(tmp_path / "model", source=source("some/model"), architecture="encoder")
    assert missing_offline(source("some/model"), "model") == str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_full_disk_is_not_a_network_error(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("llm_sparsity.data.hub.snapshot_download", full)
    with pytest.raises(OSError, match="No space left"):
        download_model(tmp_path / "model", source=source("some/model"), architecture="encoder")


def test_offline_and_uncached(hub: Path, tmp_path: Path) -> None:
    message = missing_offline(source("some/model"), "model")
    assert message is not None
    assert (
        "some/model at revision 0123456789ab: not whole in the local cache and HF_HUB_OFFLINE is set; run once"
        in message
    )
    with pytest.raises(UserError, match="not whole in the local cache"):
        download_model(tmp_path / "model", source=source("some/model"), architecture="encoder")
    assert not (tmp_path / "model").exists()


def test_other_sources_are_never_missing() -> None:
    assert missing_offline({"folder": "/nowhere"}, "model") is None
    assert missing_offline({"package": "x==1", "sha256": ""}, "task") is None


def test_pickles_are_refused(hub: Path, tmp_path: Path) -> None:
    folder = snapshot(hub, "old/model")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"old/model: has no safetensors; pytorch_model.bin is a pickle, .* run code"):
        download_model(tmp_path / "model", source=source("old/model"), architecture="encoder")


@pytest.fixture
def pickled(tiny_model: Callable[[str], Path], tmp_path: Path) -> dict[str, Path]:
    """Two commits: a model with a pickle only, and its child commit, which adds safetensors."""
    commits = {commit: tmp_path / commit for commit in ("a" * 40, "b" * 40)}
    for folder in commits.values():
        shutil.copytree(tiny_model("bert"), folder, ignore=shutil.ignore_patterns("manifest.json"))
        (folder / "pytorch_model.bin").write_bytes(b"a pickle, never requested")
    (commits["a" * 40] / "model.safetensors").unlink()
    return commits


def test_converted_safetensors(pickled: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the proposal of the hub's own account on top of the pinned commit is downloaded, and no pickle."""
    old, new = pickled
    hub = Hub(pickled, [("stranger", ["c" * 40, old]), (CONVERTER, ["d" * 40, "e" * 40]), (CONVERTER, [new, old])])
    source = {"hub": "owner/name", "revision": old, "converted": True}
    with serving(hub, tmp_path / "cache", monkeypatch):
        download_model(tmp_path / "m", source=source, architecture="encoder")
    manifest = read_manifest(tmp_path / "m")
    assert (manifest["source"], manifest["conversion"]) == (source, new)
    assert sha256(tmp_path / "m/model.safetensors") == sha256(pickled[new] / "model.safetensors")
    assert not any(path.endswith(".bin") or "c" * 40 in path or "d" * 40 in path for path in hub.requests)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "has no safetensors; a file such as pytorch_model.bin is a pickle, .* or add `converted: true`"),
        ({"converted": True}, "SFconvertbot has proposed no safetensors for revision aaaaaaaaaaaa; choose"),
    ],
)
def test_no_conversion(
    source: dict[str, Any], message: str, pickled: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"hub": "owner/name", "revision": "a" * 40} | source
    hub = Hub(pickled, [("stranger", ["b" * 40, "a" * 40])])
    with serving(hub, tmp_path / "cache", monkeypatch), pytest.raises(UserError, match=message):
        download_model(tmp_path / "m", source=source, architecture="encoder")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("file", ["t.csv", "t[1].csv", "[a-z]*?.csv"])
def test_damaged_task_in_the_cache(file: str, hub: Path, tmp_path: Path) -> None:
    """The cache names large files by their sha256, small files by git's hash of them: every pinned file is compared."""
    content = b"text,label\n" + b"a,0\nb,1\n" * 9
    folder = snapshot(hub, "some/table", "datasets")
    (blobs := folder.parent.parent / "blobs").mkdir()
    for name in (
        hashlib.sha256(content).hexdigest(),
        hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest(),
    ):
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(blobs / name)
        options: dict[str, Any] = {"source": source("some/table"), "files": {"train": file}, "label": "label"}
        options |= {"kind": "classification", "split": {"validation": 4}}
        (blobs / name).write_bytes(content)
        download_task(tmp_path / "task", **options)
        (blobs / name).write_bytes(content.replace(b"a,0", b"a,1"))
        with pytest.raises(UserError, match=f"{name}: damaged in the hub's cache; delete this file and run again"):
            download_task(tmp_path / "task", **options)


@pytest.mark.parametrize("where", ["/etc/passwd", "../../../../secret.safetensors"])
def test_index_in_the_cache_that_names_files_outside(
    where: str, hub: Path, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = snapshot(hub, "some/bert")
    link_blobs(tiny_model("bert"), folder)
    (tmp_path / "secret.safetensors").touch()
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": where}}))
    assert "outside its folder" in (missing_offline(source("some/bert"), "model") or "")
    with pytest.raises(UserError, match="outside its folder"):
        download_model(tmp_path / "model", source=source("some/bert"), architecture="encoder")


@pytest.mark.parametrize(
    ("licence", "found"),
    [("mit", "mit"), ("[a, b]", "a, b"), ("{a: b}", None), ("[[a], b]", "b"), ('"a\\nb"', "a b"), ("3", None)],
)
def test_licence_of_a_card_is_one_line(licence: str, found: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    assert card_licence(tmp_path) == found
