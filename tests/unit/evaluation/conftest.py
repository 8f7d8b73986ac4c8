"""Pruned models for the tests of this package, made without the package `pruning`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.container import copy_companions
from tests.weights import load, save


@pytest.fixture
def half_removed(tmp_path: Path) -> Callable[[ModelFolder], ModelFolder]:
    """`half_removed(model)` -> a copy as a sparse container, in which the smaller half of every matrix is zero."""

    def make(model: ModelFolder) -> ModelFolder:
        output = tmp_path / "pruned"
        copy_companions(model.path, output)
        tensors = load(model.path)
        for name in model.roles(tensors, "linear"):
            magnitudes = tensors[name].abs()
            tensors[name][magnitudes <= magnitudes.median()] = 0
        save(output, tensors)
        return ModelFolder(output)

    return make
