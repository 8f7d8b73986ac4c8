"""Downloaded tasks: files inside their source."""

import os
from pathlib import Path
from typing import Any

import pytest

from llm_sparsity.data.download import download_task
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import read_manifest

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
