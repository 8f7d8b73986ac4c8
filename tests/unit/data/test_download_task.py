"""Downloaded tasks: files inside their source, and two downloads into one folder."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from llm_sparsity.data.download import download_task, replacing
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import read_manifest, sha256, write_manifest

ROWS = "text,label\n" + "".join(f"film {n},{n % 2}\n" for n in range(20))


def download(folder: Path, source: Path, file: str) -> None:
    settings: dict[str, Any] = {"kind": "classification", "label": "label", "split": {"validation": 4}}
    download_task(folder, source={"folder": str(source)}, files={"train": file}, **settings)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "secret.csv").write_text(ROWS)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/t.csv").write_text(ROWS)
    return tmp_path / "source"


def test_file_of_a_folder(source: Path, tmp_path: Path) -> None:
    (source / "link.csv").symlink_to("t.csv")
    os.mkfifo(source / "README.md")  # opening it would wait forever
    for file in ("t.csv", "./t.csv", "link.csv"):
        download(tmp_path / "task", source, file)
    assert read_manifest(tmp_path / "task")["rows"] == {"train": 16, "validation": 4}


@pytest.mark.parametrize("file", ["../secret.csv", "{}/secret.csv", "x/../../secret.csv"])
def test_file_outside_its_folder(file: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"files\.train: found '.*', which is outside its folder; give a path inside"):
        download(tmp_path / "task", source, file.format(tmp_path))
    assert not (tmp_path / "task").exists()


def test_link_that_leads_out_of_its_folder(source: Path, tmp_path: Path) -> None:
    (source / "link.csv").symlink_to(tmp_path / "secret.csv")
    (source / "loop.csv").symlink_to("loop.csv")
    (source / "README.md").symlink_to(tmp_path / "secret.csv")  # not read for a licence
    with pytest.raises(UserError, match=r"files\.train: 'link\.csv' is a link to .*, outside its folder; put the file"):
        download(tmp_path / "task", source, "link.csv")
    with pytest.raises(UserError, match=r"files\.train: found 'loop\.csv', which is no path"):
        download(tmp_path / "task", source, "loop.csv")


def test_a_snapshot_of_the_hub_is_a_folder_of_links(tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--a--b/snapshots/0123"
    for folder in (snapshot, tmp_path / "datasets--a--b/blobs"):
        folder.mkdir(parents=True)
    (tmp_path / "datasets--a--b/blobs/hash").write_text(ROWS)
    (snapshot / "t.csv").symlink_to("../../blobs/hash")
    download(tmp_path / "task", snapshot, "t.csv")
    assert read_manifest(tmp_path / "task")["task"] == "classification"


def _replace(folder: Path, name: str, entered: "multiprocessing.synchronize.Event", go: object) -> None:
    with replacing(folder, ("*.jsonl",)) as fresh:
        entered.set()
        assert go is None or go.wait(20)  # type: ignore[attr-defined]
        (fresh / "train.jsonl").write_text(name)
        write_manifest(fresh, kind="task", name=name)


def test_two_downloads_into_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    begun, going, other = context.Event(), context.Event(), context.Event()
    first = context.Process(target=_replace, args=(tmp_path / "task", "first", begun, going))
    first.start()
    assert begun.wait(20)
    second = context.Process(target=_replace, args=(tmp_path / "task", "second", other, None))
    second.start()
    assert not other.wait(1.5)  # it waits
    going.set()
    for process in (first, second):
        process.join(20)
        assert process.exitcode == 0
    manifest = read_manifest(tmp_path / "task")
    assert manifest["name"] == "second"
    assert manifest["files"]["train.jsonl"]["sha256"] == sha256(tmp_path / "task/train.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["task"]


def test_a_killed_download_leaves_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    begun, never = context.Event(), context.Event()
    first = context.Process(target=_replace, args=(tmp_path / "task", "first", begun, never))
    first.start()
    assert begun.wait(20)
    (tmp_path / "task/.fresh/half").touch()
    first.kill()
    first.join()
    _replace(tmp_path / "task", "second", context.Event(), None)
    assert {path.name for path in (tmp_path / "task").iterdir()} == {"manifest.json", "train.jsonl"}
    assert [path.name for path in tmp_path.iterdir()] == ["task"]
