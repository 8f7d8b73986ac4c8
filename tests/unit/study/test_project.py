"""Where a study that is named is found."""

from pathlib import Path

import pytest

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study.project import project, study_file


def test_a_study_may_be_named_without_its_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = project() / "studies/embedded.yaml"
    assert study_file(Path("embedded")) == shipped
    for name in ("opt-1.3b", "embedded"):  # one's own comes first
        Path(f"{name}.yaml").touch()
        assert study_file(Path(name)) == Path(f"{name}.yaml") == study_file(Path(f"{name}.yaml"))
    with pytest.raises(UserError, match=r"^opt: not found; `llm-sparsity init MODEL` writes a study$"):
        study_file(Path("opt"))
