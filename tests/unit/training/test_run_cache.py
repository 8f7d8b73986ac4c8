import errno
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage import container as checkpoint
from llm_sparsity.storage.files import read_json
from llm_sparsity.training import run_cache
from llm_sparsity.training.run_cache import RunCache
from llm_sparsity.training.state import _like


@pytest.fixture
def made(dense: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path) -> Callable[..., RunCache]:
    def make(output: str = "out", **changes: Any) -> RunCache:
        run = {"settings": {"seed": 0, "epochs": 2}, "code": "a"} | changes
        return RunCache(tmp_path / "work", tmp_path / output, dense("bert"), {"task": task}, main=True, **run)

    return make


class Config:
    def save_pretrained(self, folder: Path) -> None: ...


def save(run: RunCache, step: int, epoch: int | None = None) -> None:
    weights = {"w": torch.full((8,), float(step))}
    state = {"w m": -weights["w"]}
    if epoch is None:
        run.save({"step": step}, weights, state)
    else:
        run.save_epoch(epoch, {"step": step}, weights, state, config=Config(), pruned=None)


def test_a_run_goes_on_from_its_newest_save(made: Callable[..., RunCache]) -> None:
    run = made()
    with run.opened():
        assert run.load() is None
        for step, epoch in ((3, None), (4, 1), (6, None)):
            save(run, step, epoch)
        run.record({"step": 6, "epoch": 1})
    with made().opened():
        saved = made().load()
    assert saved is not None
    assert saved.progress == {"step": 6, "epoch": 1, "weights": "step-6", "state": "state-6"}
    assert saved.weights["w"][0] == 6 and saved.state["w m"][0] == -6
    left = sorted(path.name for path in run.folder.iterdir())
    assert left == ["epoch-1", "progress.json", "run.json", "state-6", "step-6"]


def test_a_miss_is_explained(
    made: Callable[..., RunCache], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [made(), made(settings={"seed": 0, "epochs": 3}, code="b")]
    monkeypatch.setattr(run_cache, "version", lambda name: f"{name}-9")
    runs.append(made())
    for run in runs:
        with run.opened():
            assert run.load() is None
    assert len({run.folder for run in runs}) == 3
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{runs[0].folder}: not used, made with epochs 2 instead of 3, another code"
    torch_version = version("torch")
    assert f"made with torch '{torch_version}' instead of 'torch-9', transformers" in said[1]
    assert said[2].startswith(f"{runs[1].folder}: not used, made with epochs 3 instead of 2, torch")


def test_only_the_caches_of_the_same_results_are_read(
    made: Callable[..., RunCache], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with made("elsewhere", code="b").opened():
        pass
    other = tmp_path / "work/0123456789abcdef"
    other.mkdir()
    (other / "run.json").write_text("not read")
    removed = made(code="c")
    with removed.opened():
        pass
    shutil.rmtree(removed.folder)
    with made().opened():
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_checkpoint_before_it_intact(
    code: int, made: Callable[..., RunCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made()

    def full(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    with run.opened():
        save(run, 4)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.Encoder, "add", full)
            with pytest.raises(UserError, match=r"free some.*: the checkpoint of step 4 is intact"):
                save(run, 6)
        saved = run.load()
        assert saved and saved.progress["step"] == 4 and saved.weights["w"][0] == 4
    assert not list(run.folder.rglob("*.tmp"))


def test_what_a_killed_attempt_left_half_written_is_removed(made: Callable[..., RunCache], tmp_path: Path) -> None:
    run = made()
    with run.opened():
        save(run, 4)
    left = [run.folder / "step-5/.model.safetensors.1.tmp", tmp_path / "out/.metrics.json.1.tmp"]
    left.append(tmp_path / "out/model/.config.json.1.tmp")
    left.append(next((tmp_path / "work/runs").iterdir()) / ".caches.json.1.tmp")
    for path in left:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("half")
    with run.opened():
        pass
    assert not any(path.exists() for path in left)
    assert not (run.folder / "step-5").exists()


def test_a_save_that_cannot_be_removed_yet_is_removed_at_the_next_start(
    made: Callable[..., RunCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system, which keeps a file that is in use under another name in its folder."""
    run = made()
    with run.opened(), monkeypatch.context() as patch:
        save(run, 4)

        def in_use(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

        patch.setattr(os, "rmdir", in_use)
        save(run, 6)
        assert (run.folder / "step-4").exists()
    with run.opened():
        assert not (run.folder / "step-4").exists()


def test_what_is_restored_maps_no_file(made: Callable[..., RunCache]) -> None:
    run = made()
    with run.opened():
        save(run, 4)
        saved = run.load()
        assert saved
        value = _like(saved.state["w m"], torch.empty(0))
        del saved
        assert str(run.folder) not in Path("/proc/self/maps").read_text()
        assert torch.equal(value, torch.full((8,), -4.0))


def test_a_damaged_checkpoint_is_not_used(made: Callable[..., RunCache], capsys: pytest.CaptureFixture[str]) -> None:
    run = made()
    with run.opened():
        save(run, 4)
        file = run.folder / "step-4/model.safetensors"
        file.write_bytes(file.read_bytes()[:-4])
        assert run.load() is None
    assert "the run starts anew" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"step": 4}'])
def test_a_damaged_progress_is_not_used(
    text: str, made: Callable[..., RunCache], capsys: pytest.CaptureFixture[str]
) -> None:
    run = made()
    with run.opened():
        save(run, 4)
    (run.folder / "progress.json").write_text(text)
    for index in run.folder.parent.glob("runs/*/caches.json"):
        index.write_text(text)
    (run.folder / "run.json").unlink()
    with run.opened():
        assert run.load() is None
        assert run.saved_step() == 0
        save(run, 1)
        assert run.saved_step() == 1
    assert "damaged, the run starts anew" in capsys.readouterr().err or text in ("{}", "[]")


def test_an_owner_that_lost_its_lock_saves_nothing_more(made: Callable[..., RunCache]) -> None:
    run = made()
    with run.opened():
        save(run, 4)
        (run.folder / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
        with pytest.raises(UserError, match="taken over by another copy"):
            save(run, 6)
    assert read_json(run.folder / "progress.json")["step"] == 4
    assert (run.folder / "lock").exists()  # the other's


def test_two_runs_into_one_results_folder_wait_for_each_other(made: Callable[..., RunCache]) -> None:
    """With other settings they have other caches, but write the same files."""
    order: list[str] = []
    entered = threading.Event()

    def first() -> None:
        with made().opened():
            entered.set()
            time.sleep(0.5)
            order.append("first has ended")

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with made(code="b").opened():
        order.append("second begins")
    thread.join()
    assert order == ["first has ended", "second begins"]


def test_opening_reads_as_much_however_many_runs_have_ended(
    made: Callable[..., RunCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        with made(f"out-{number}").opened():
            pass
        (tmp_path / f"work/{number:016x}").mkdir()
        (tmp_path / f"work/{number:016x}/run.json").write_text("{}")
    run, listed, read = made(code="b"), [], []
    scandir, opened = os.scandir, io.open
    monkeypatch.setattr(os, "scandir", lambda path=".": (listed.append(Path(path)), scandir(path))[1])
    monkeypatch.setattr(io, "open", lambda path, *args, **kwargs: (read.append(path), opened(path, *args, **kwargs))[1])
    with run.opened():
        pass
    shared = {tmp_path / "work", tmp_path / "work/runs"}
    assert not shared & set(listed)
    assert len(read) < 20
