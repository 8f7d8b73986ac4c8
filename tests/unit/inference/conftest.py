"""Pruned variants of tiny models with RANDOM weights."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.pruning.prune import prune
from llm_sparsity.study.sparsity import Sparsity

Variant = Callable[..., ModelFolder]


@pytest.fixture
def dense(tiny_model: Callable[[str], Path]) -> Callable[[str], ModelFolder]:
    return lambda kind: ModelFolder(tiny_model(kind))


@pytest.fixture
def variant(dense: Callable[[str], ModelFolder], tmp_path: Path) -> Variant:
    """`variant("0.9", "block", "linear", "gpt2")` -> a pruned model."""

    def make(sparsity: str, method: str = "magnitude", scope: str = "linear", kind: str = "bert") -> ModelFolder:
        folder = tmp_path / f"{kind}-{method}-{sparsity}"
        prune(dense(kind), {Sparsity(sparsity): folder}, method=method, scope=scope)
        return ModelFolder(folder / "model")

    return make
