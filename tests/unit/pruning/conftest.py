"""A calibration text of random words."""

from pathlib import Path

import numpy as np
import pytest

from llm_sparsity.data.preparation import TaskSettings, prepare
from llm_sparsity.storage.files import write_manifest
from tests.tiny import WORDS


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    words = np.random.default_rng(0).choice(WORDS, size=(150, 9))
    (folder / "lines.txt").write_text("".join(" ".join(line) + "\n" for line in words))
    facts = prepare({"train": folder / "lines.txt"}, folder / "words", TaskSettings(kind="language-model"))
    write_manifest(folder / "words", kind="task", **facts)
    return folder / "words"
