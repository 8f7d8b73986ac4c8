import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage import container as checkpoint
from llm_sparsity.storage.files import read_json
from llm_sparsity.training.run_cache import Cache
from tests.tiny import save_mood_task


@pytest.fixture
def made(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Cache]:
    def make(**changes: Any) -> Cache:
        run = {"settings": {"seed": 0, "epochs": 2}, "code": "a"} | changes
        model, task = tiny_model("bert"), save_mood_task(tmp_path / "task")
        return Cache(tmp_path / "work", tmp_path / "out", {"model": model, "task": task}, main=True, **run)

    return make


class Config:
    def save_pretrained(self, folder: Path) -> None: ...


def save(run: Cache, step: int, value: float, epoch: int | None = None) -> None:
    run.progress["step"] = step
    tensors = {"w": torch.full((8,), value)}
    run.save(tensors, {"w m": -tensors["w"]}, epoch=epoch, config=Config(), pruned=None)


def test_a_run_goes_on_from_its_newest_save(made: Callable[..., Cache]) -> None:
    run = made()
    with run.opened():
        assert run.resume() is None
        for step, epoch in ((3, None), (4, 1), (6, None)):
            save(run, step, step, epoch)
    again = made()
    with again.opened():
        weights, state = again.resume() or ({}, {})
    assert again.progress["step"] == 6
    assert weights["w"][0] == 6 and state["w m"][0] == -6
    left = sorted(path.name for path in run.folder.iterdir())
    assert left == ["epoch-1", "progress.json", "run.json", "state-6", "step-6"]


def test_another_setting_or_code_has_a_cache_of_its_own_and_it_is_said(
    made: Callable[..., Cache], capsys: pytest.CaptureFixture[str]
) -> None:
    with made().opened():
        pass
    other = made(settings={"seed": 0, "epochs": 3}, code="b")
    with other.opened():
        assert other.resume() is None
    assert "not used, made with epochs 2 instead of 3, another code" in capsys.readouterr().err


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_checkpoint_before_it_intact(
    code: int, made: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made()

    def full(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    with run.opened():
        run.resume()
        save(run, 4, 4.0)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.Writer, "_write", full)
            with pytest.raises(UserError, match=r"free some.*: the checkpoint of step 4 is intact"):
                save(run, 6, 6.0)
        weights, _ = run.resume() or ({}, {})
        assert run.progress["step"] == 4 and weights["w"][0] == 4
    assert not list(run.folder.rglob("*.tmp"))


def test_what_a_killed_attempt_left_half_written_is_removed(made: Callable[..., Cache], tmp_path: Path) -> None:
    run = made()
    with run.opened():
        run.resume()
        save(run, 4, 4.0)
    left = [run.folder / "step-5/.model.safetensors.1.tmp", tmp_path / "out/.metrics.json.1.tmp"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    with run.opened():
        pass
    assert not any(path.exists() for path in left)
    assert not (run.folder / "step-5").exists()


def test_a_damaged_checkpoint_is_not_used(made: Callable[..., Cache], capsys: pytest.CaptureFixture[str]) -> None:
    run = made()
    with run.opened():
        run.resume()
        save(run, 4, 4.0)
        file = run.folder / "step-4/model.safetensors"
        file.write_bytes(file.read_bytes()[:-4])
        assert run.resume() is None
    assert run.progress["step"] == 0
    assert "the run starts anew" in capsys.readouterr().err


def test_an_owner_that_lost_its_lock_saves_nothing_more(made: Callable[..., Cache]) -> None:
    run = made()
    with run.opened():
        run.resume()
        save(run, 4, 4.0)
        (run.folder / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
        with pytest.raises(UserError, match="taken over by another copy"):
            save(run, 6, 6.0)
    assert read_json(run.folder / "progress.json")["step"] == 4
    assert (run.folder / "lock").exists()  # the other's
