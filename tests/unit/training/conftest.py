from collections.abc import Callable
from pathlib import Path

import pytest

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.pruning.prune import prune
from llm_sparsity.study.sparsity import Sparsity
from tests.tiny import save_mood_task, save_text_task


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> TaskFolder:
    return TaskFolder(save_mood_task(tmp_path_factory.mktemp("mood")))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> TaskFolder:
    return TaskFolder(save_text_task(tmp_path_factory.mktemp("text")))


@pytest.fixture
def dense(tiny_model: Callable[[str], Path]) -> Callable[[str], ModelFolder]:
    """`dense("bert")` -> a tiny model with RANDOM weights."""
    return lambda kind: ModelFolder(tiny_model(kind))


@pytest.fixture
def variant(dense: Callable[[str], ModelFolder], tmp_path: Path) -> Callable[[str], ModelFolder]:
    """`variant("bert")` -> that model without 90 % of its matrices' weights."""

    def make(kind: str) -> ModelFolder:
        prune(dense(kind), {Sparsity("0.9"): tmp_path / kind}, method="magnitude", scope="linear")
        return ModelFolder(tmp_path / kind / "model")

    return make
