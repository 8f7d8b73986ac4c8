import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llm_sparsity.jobs.command import run
from llm_sparsity.jobs.errors import UserError, storage_message
from llm_sparsity.storage.files import atomic, read_manifest, sha256, write_csv, write_json, write_manifest, write_text


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
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


def test_a_users_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("task.csv: no column 'label'; found: text")

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == "error: task.csv: no column 'label'; found: text"


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "no space is left"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")]
)
def test_a_disk_that_refuses_is_one_line(
    number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"kept": True})

    def refuse(*_: object) -> None:
        raise OSError(number, "refused", str(path))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(SystemExit, match=said):
        run(lambda: write_json(path, {"kept": False}))
    assert json.loads(path.read_text()) == {"kept": True}


def test_other_errors_keep_their_traceback() -> None:
    assert storage_message(OSError(errno.ECONNRESET, "reset")) is None
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)  # type: ignore[arg-type, return-value]


def test_a_reader_that_has_enough_ends_a_script_quietly(root: Path) -> None:
    """`scripts/plan.py | head -1`"""
    code = "from llm_sparsity.jobs.command import run; run(lambda: [print('line ' * 50) for _ in range(2000)])"
    done = subprocess.run(
        ["sh", "-c", f'{sys.executable} -c "{code}" | head -1'], env={"PYTHONPATH": str(root / "workflow")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
