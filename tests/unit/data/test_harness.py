"""The folder of lm-evaluation-harness: its installation, and the facts about its tasks."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from llm_sparsity.data import harness
from llm_sparsity.data.download import download_task
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import sha256


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder that is pip's only registry."""
    (tmp_path / "registry").mkdir()
    path = tmp_path / "registry/tiny_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny_thing.py", "VALUE = 1\n")
        file.writestr("tiny_thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        file.writestr("tiny_thing-1.0.dist-info/RECORD", "")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr("tiny_thing-1.0.dist-info/WHEEL", tags)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def lock(folder: Path, digest: str) -> Path:
    path = folder / "lock.txt"
    path.write_text(f"tiny-thing==1.0 --hash=sha256:{digest}\n")
    return path


def test_lock_is_installed_once(wheel: Path, tmp_path: Path) -> None:
    wanted = lock(tmp_path, sha256(wheel))
    harness.install(tmp_path / "made", lock=wanted)
    assert (tmp_path / "made/site-packages/tiny_thing.py").read_text() == "VALUE = 1\n"
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["manifest.json", "site-packages"]
    before = (tmp_path / "made/manifest.json").read_bytes()
    wheel.unlink()  # an installed lock needs no registry
    harness.install(tmp_path / "made", lock=wanted)
    assert (tmp_path / "made/manifest.json").read_bytes() == before


@pytest.mark.slow
def test_another_lock_is_installed_again(wheel: Path, tmp_path: Path) -> None:
    harness.install(tmp_path / "made", lock=lock(tmp_path, sha256(wheel)))
    (tmp_path / "made/site-packages/old.py").touch()
    wanted = lock(tmp_path, sha256(wheel))
    wanted.write_text(f"# changed\n{wanted.read_text()}")
    harness.install(tmp_path / "made", lock=wanted)
    assert not (tmp_path / "made/site-packages/old.py").exists()


def test_file_that_is_not_pinned_is_refused(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="serves another file than the one that was pinned: do not use it"):
        harness.install(tmp_path / "made", lock=lock(tmp_path, "0" * 64))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("offline", [True, False])
def test_unreachable_registry_is_one_line(offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"NO_INDEX": "1"} if offline else {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "1"}
    for name, value in {**variables, "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(UserError, match="cannot be reached, or has not all of it; run once where the network") as error:
        harness.install(tmp_path / "made", lock=lock(tmp_path, "0" * 64))
    assert "\n" not in str(error.value)


def test_folder_without_harness(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no lm-evaluation-harness; make it: ./run"):
        harness.load(tmp_path)


@pytest.fixture(scope="module")
def known(packages: Path) -> None:
    """Read the thirteen thousand task files of the harness once."""
    harness.load(packages)
    from lm_eval import tasks

    manager = tasks.TaskManager()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "TaskManager", lambda: manager)
        yield


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("task", "split", "file"),
    [
        ("boolq", "validation", "lm_eval/tasks/super_glue/boolq/default.yaml"),
        ("rte", "validation", "lm_eval/tasks/glue/rte/default.yaml"),
        ("hellaswag", "validation", "lm_eval/tasks/hellaswag/hellaswag.yaml"),
        ("winogrande", "validation", "lm_eval/tasks/winogrande/default.yaml"),
        ("arc_easy", "test", "lm_eval/tasks/arc/arc_easy.yaml"),
        ("arc_challenge", "test", "lm_eval/tasks/arc/arc_challenge.yaml"),
        ("openbookqa", "test", "lm_eval/tasks/openbookqa/openbookqa.yaml"),
    ],
)
def test_tasks_of_the_papers(task: str, split: str, file: str, packages: Path, root: Path) -> None:
    found = harness.task_facts(packages, task)
    assert (found["task"], found["split"], found["file"]) == (task, split, file)
    assert found["task_version"] in (1.0, 2.0)
    assert f"lm-eval=={found['version']} " in (root / "envs/requirements-zero-shot.txt").read_text()


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("bolq", r"found 'bolq', which lm-evaluation-harness \S+ does not know; did you mean 'boolq'\?"),
        ("glue", r"glue is a group of lm-evaluation-harness \S+; name one of its tasks"),
    ],
)
def test_unknown_task_and_group(task: str, message: str, packages: Path) -> None:
    with pytest.raises(UserError, match=message):
        harness.task_facts(packages, task)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("task", ["gsm8k", "triviaqa", "wikitext"])
def test_task_without_given_answers_is_refused(task: str, packages: Path) -> None:
    with pytest.raises(
        UserError, match=rf"harness: {task} has output_type (generate_until|loglikelihood_rolling), but"
    ):
        harness.task_facts(packages, task)


@pytest.mark.usefixtures("known")
def test_another_split_than_that_of_the_task_is_refused(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"files: openbookqa is scored on its test split, found validation; give"):
        download_task(
            tmp_path / "task", source={"folder": str(tmp_path)}, files={"validation": "rows.jsonl"}, kind="zero-shot",
            harness="openbookqa", packages=packages,
        )  # fmt: skip


def test_setup_of_a_package_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("setuptools")
    (tmp_path / "registry").mkdir()
    setup = f"import json, os\njson.dump(dict(os.environ), open({str(tmp_path / 'seen.json')!r}, 'w'))\n"
    setup += "from setuptools import setup\nsetup(name='tiny-sdist', version='1.0')\n"
    archive = tmp_path / "registry/tiny-sdist-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("tiny-sdist-1.0/setup.py")
        info.size = len(setup)
        tar.addfile(info, io.BytesIO(setup.encode()))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(archive.parent), "HF_TOKEN": "secret"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "lock.txt").write_text(f"tiny-sdist==1.0 --hash=sha256:{sha256(archive)}\n")
    harness.install(tmp_path / "made", lock=tmp_path / "lock.txt")
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert "PATH" in seen
    assert "HF_TOKEN" not in seen
    assert seen["HOME"] != str(Path.home())
