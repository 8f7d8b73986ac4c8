import errno
import json
import multiprocessing
import os
import socket
import stat
import subprocess
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from llm_sparsity.jobs.errors import UserError, storage_message
from llm_sparsity.storage import files
from llm_sparsity.storage.files import (
    MANIFEST,
    atomic,
    atomic_folder,
    read_json,
    read_manifest,
    remove_partial,
    replacing,
    sha256,
    temporary_path,
    write_csv,
    write_json,
    write_manifest,
    write_text,
)


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


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000])
def test_a_damaged_manifest_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: damaged, no JSON object"):
        read_manifest(tmp_path)


def test_deep_json_is_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json|nested"):
        read_json(tmp_path / "deep.json")


def left_by(folder: Path, pid: int, host: str, age: float = 0) -> Path:
    """A temporary file that a process has left."""
    path = folder / f".model.safetensors.{pid}@{host}.tmp"
    path.write_text("half")
    os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    return path


def test_temporary_files_of_ended_writers_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = socket.gethostname()
    day = files.ABANDONED
    gone = [left_by(tmp_path, ended.pid, here), left_by(tmp_path, 7, "other.host", age=day + 60)]
    gone.append(left_by(tmp_path, 10**30, here))
    kept = [left_by(tmp_path, os.getpid(), here, age=2 * day), left_by(tmp_path, ended.pid, "other.host")]
    kept.append(tmp_path / ".hidden")
    kept[-1].write_text("of the user")
    (tmp_path / ".folder.tmp").mkdir()
    remove_partial(tmp_path)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)
    remove_partial(tmp_path, alone=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".folder.tmp", ".hidden"]
    remove_partial(tmp_path / "absent")


def test_a_temporary_name_tells_process_and_host(tmp_path: Path) -> None:
    with atomic(tmp_path / "a.b") as temporary:
        assert temporary == temporary_path(tmp_path / "a.b")
        assert temporary.name == f".a.b.{os.getpid()}@{socket.gethostname()}.tmp"
        temporary.write_text("")
        remove_partial(tmp_path)
        assert temporary.exists()


@pytest.mark.parametrize("write", [write_manifest, lambda folder: write_json(folder / "metrics.json", {})])
def test_a_write_removes_what_killed_writers_left(write: Callable[[Path], None], tmp_path: Path) -> None:
    left = left_by(tmp_path, 10**30, socket.gethostname())
    write(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(number: int, tmp_path: Path) -> None:
    """A write names no file in its error; the message still names the file system."""
    with pytest.raises(OSError) as full, atomic(tmp_path / "result.json"):
        raise OSError(number, "full")
    message = storage_message(full.value)
    mount = next(folder for folder in tmp_path.resolve().parents if folder.is_mount())
    assert message
    assert message.startswith(f"{tmp_path / 'result.json'}: ")
    assert f"(file system {mount}: " in message
    assert "bytes" in message
    assert "\n" not in message


def test_a_full_disk_of_no_name() -> None:
    assert storage_message(OSError(errno.ENOSPC, "full")) == (
        "disk: no space is left on the disk; free some space and run the same command again"
    )


def _replace(folder: Path, name: str, entered: "multiprocessing.synchronize.Event", go: object) -> None:
    with replacing(folder, ("*.jsonl",)) as fresh:
        entered.set()
        assert go is None or go.wait(300)  # type: ignore[attr-defined]
        (fresh / "train.jsonl").write_text(name)
        write_manifest(fresh, kind="task", name=name)


def test_two_processes_replace_the_files_of_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    begun, going, other = context.Event(), context.Event(), context.Event()
    first = context.Process(target=_replace, args=(tmp_path / "task", "first", begun, going))
    first.start()
    assert begun.wait(300)
    second = context.Process(target=_replace, args=(tmp_path / "task", "second", other, None))
    second.start()
    assert not other.wait(1.5)  # it waits
    going.set()
    for process in (first, second):
        process.join(300)
        assert process.exitcode == 0
    manifest = read_manifest(tmp_path / "task")
    assert manifest["name"] == "second"
    assert manifest["files"]["train.jsonl"]["sha256"] == sha256(tmp_path / "task/train.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["task"]


def test_a_killed_replacement_leaves_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    begun, never = context.Event(), context.Event()
    first = context.Process(target=_replace, args=(tmp_path / "task", "first", begun, never))
    first.start()
    assert begun.wait(300)
    (tmp_path / "task/.fresh/half").touch()
    first.kill()
    first.join()
    _replace(tmp_path / "task", "second", context.Event(), None)
    assert {path.name for path in (tmp_path / "task").iterdir()} == {"manifest.json", "train.jsonl"}
    assert [path.name for path in tmp_path.iterdir()] == ["task"]


def _contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_old_files_give_way_and_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    for name in ("train.jsonl", "test.jsonl", "notes.txt", "packages/old.py", "kept.jsonl/a", MANIFEST):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    with replacing(folder, ("*.jsonl",)) as fresh:
        assert _contents(fresh) == {}
        (fresh / "packages").mkdir()
        for name in (MANIFEST, "train.jsonl", "packages/new.py"):
            (fresh / name).write_text("new")
    new = dict.fromkeys((MANIFEST, "train.jsonl", "packages/new.py"), "new")
    assert _contents(folder) == new | {"notes.txt": "old", "kept.jsonl/a": "old"}


@pytest.mark.parametrize("fails", [True, False])
def test_a_replacement_that_fails_or_makes_nothing_changes_nothing(fails: bool, tmp_path: Path) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    write_manifest(folder, name="old")
    with suppress(RuntimeError), replacing(folder, ("*",)) as fresh:
        if fails:
            (fresh / "half").touch()
            raise RuntimeError
    assert read_manifest(folder)["name"] == "old"
    assert [path.name for path in tmp_path.rglob("*")] == ["task", MANIFEST]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "a/out") as fresh:
        (fresh / "half").touch()
        raise RuntimeError
    assert list((tmp_path / "a").iterdir()) == []
    with atomic_folder(tmp_path / "a/out") as fresh:
        (fresh / "deep").mkdir()
        (fresh / "deep/file").write_text("whole")
        assert not (tmp_path / "a/out").exists()
    assert _contents(tmp_path / "a") == {"out/deep/file": "whole"}


@pytest.mark.parametrize(
    ("number", "folder", "fails"), [(errno.EINVAL, True, False), (errno.EINVAL, False, True), (errno.EIO, True, True)]
)
def test_a_file_system_may_refuse_to_sync_a_folder(
    number: int, folder: bool, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folder:
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError) if fails else nullcontext():
        write_text(tmp_path / "a", "whole")
    assert fails or (tmp_path / "a").read_text() == "whole"
