import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from llm_sparsity.storage.files import read_manifest, write_manifest
from llm_sparsity.training.final_model import link_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "epoch-1"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name)
    write_manifest(folder, kind="model")
    return folder


def test_files_are_links_and_old_ones_are_gone(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out/model"
    target.mkdir(parents=True)
    (target / "added_tokens.json").write_text("of another run")
    (target / "onnx").mkdir()
    (target / ".nfs01").write_text("which another program reads")
    (source / ".ipynb_checkpoints").mkdir()
    for _ in range(2):
        link_model(source, target)
        assert (target / "onnx").is_dir() and (target / ".nfs01").exists()
        found = [path for path in target.glob("[!.]*") if path.is_file()]
        assert sorted(path.name for path in found) == ["config.json", "manifest.json", "model.safetensors"]
        linked = {path.name for path in found if path.samefile(source / path.name)}
        assert linked == {"config.json", "model.safetensors"}
    assert read_manifest(target) == read_manifest(source)


def test_no_output_is_older_than_the_input_that_it_is_a_link_to(root: Path, source: Path, tmp_path: Path) -> None:
    """Snakemake touches the outputs of a job in the order of its rule; each touch here takes another moment."""
    rule = (root / "workflow/rules/finetune.smk").read_text()
    outputs = re.findall(r'="results/.*/seed-\{seed\}/(.+)",$', rule, re.MULTILINE)
    assert {"metrics.json", "model/manifest.json", "model/model.safetensors"} <= set(outputs)
    before = (source / "manifest.json").stat().st_mtime_ns
    link_model(source, tmp_path / "out/model")
    for moment, name in enumerate(outputs):
        (tmp_path / "out" / name).touch()
        os.utime(tmp_path / "out" / name, (2_000_000_000 + moment,) * 2)
    newest = (source / "model.safetensors").stat().st_mtime
    assert all((tmp_path / "out" / name).stat().st_mtime >= newest for name in outputs)
    assert (source / "manifest.json").stat().st_mtime_ns == before


def test_files_are_copied_to_another_file_system(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    link_model(source, tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_text() == "model.safetensors"
    assert not (tmp_path / "out/model.safetensors").samefile(source / "model.safetensors")


def test_a_folder_that_is_not_whole_has_no_manifest(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    link_model(source, target)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        link_model(source, target)
    assert not (target / "manifest.json").exists()
