import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_sparsity.study import fingerprint
from llm_sparsity.study.fingerprint import code_hash

SCRIPT = '"""Says what it does."""\nfrom llm_sparsity.first import f\n\nf()\n'


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of three modules: the script imports `first`, which imports `second`; `third` is chosen at run time."""
    folder = tmp_path / "llm_sparsity"
    folder.mkdir()
    (folder / "first.py").write_text("def f():\n    from llm_sparsity.second import g\n    return g()\n")
    (folder / "second.py").write_text("def g():\n    return 1\n")
    (folder / "third.py").write_text("h = 1\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(fingerprint, "PACKAGE", folder)
    yield folder
    shutil.rmtree(folder)


def hashed(package: Path, *modules: str) -> str:
    fingerprint._tree.cache_clear()
    fingerprint._source.cache_clear()
    return code_hash(package.parent / "script.py", modules=modules)


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = hashed(package)
    rewrite(package / "second.py", "def g():\n", 'def g():\n    """Doc."""\n\n    # why\n')
    rewrite(package.parent / "script.py", "Says", "Tells")
    (package / "second.py").write_text('"""Module."""\n' + (package / "second.py").read_text())
    assert hashed(package) == before


@pytest.mark.parametrize("module", ["first.py", "second.py", "../script.py"])
def test_a_statement_in_anything_reached_counts(package: Path, module: str) -> None:
    before = hashed(package)
    (package / module).write_text((package / module).read_text() + "\nx = 1\n")
    assert hashed(package) != before


def test_what_is_not_reached_does_not_count(package: Path) -> None:
    before = hashed(package)
    (package / "third.py").write_text("h = 2\n")
    assert hashed(package) == before


def test_a_module_chosen_at_run_time_counts_where_it_is_named(package: Path) -> None:
    before = hashed(package, "llm_sparsity.third")
    (package / "third.py").write_text("h = 2\n")
    assert hashed(package, "llm_sparsity.third") != before


def test_a_file_beside_the_code_counts(package: Path) -> None:
    template = package / "template"
    template.write_text("a")
    script = package.parent / "script.py"
    before = code_hash(script, files=(template,))
    template.write_text("b")
    assert code_hash(script, files=(template,)) != before


def test_only_the_named_method_is_part_of_prune(root: Path) -> None:
    script = root / "scripts/prune.py"
    assert code_hash(script, modules=("llm_sparsity.pruning.methods.magnitude",)) != code_hash(
        script, modules=("llm_sparsity.pruning.methods.random",)
    )
