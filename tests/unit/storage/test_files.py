import json
from pathlib import Path

import pytest

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import atomic, read_manifest, sha256, write_csv, write_json, write_manifest, write_text


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep/result.json"
    write_json(path, {"b": 1, "a": [2]})
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": [2], "b": 1}
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_the_same_value_gives_the_same_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "y": 2})
    write_json(tmp_path / "b", {"y": 2, "x": 1})
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


def test_a_csv_has_its_header_even_when_empty(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [], ["a", "b"])
    assert (tmp_path / "t.csv").read_text() == "a,b\n"
    write_csv(tmp_path / "t.csv", [{"b": 1, "a": "x"}])
    assert (tmp_path / "t.csv").read_text() == "b,a\n1,x\n"


def test_a_manifest_holds_the_hash_of_every_file(tmp_path: Path) -> None:
    write_text(tmp_path / "data.txt", "one")
    write_manifest(tmp_path, kind="task")
    manifest = read_manifest(tmp_path)
    assert manifest["bytes"] == 3
    assert manifest["files"] == {"data.txt": {"sha256": sha256(tmp_path / "data.txt"), "bytes": 3}}
    write_manifest(tmp_path, kind="task")
    assert read_manifest(tmp_path) == manifest


def test_a_folder_without_manifest_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json"):
        read_manifest(tmp_path)
