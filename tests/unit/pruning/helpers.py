"""What several tests of pruning use: pruning by paths and spellings, and the tables that it writes."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.pruning import prune as stage
from llm_sparsity.pruning.calibration import sequences
from tests.weights import load

DRAW = {"samples": 6, "sequence_length": 32, "seed": 0}


def prune(model: Path, outputs: Mapping[str, Path], *, text: Path | None = None, **settings: Any) -> None:
    """Prune the model in a folder, which may hold a few tensors alone; `outputs` has sparsities as they are spelled."""
    with patch.object(stage, "check_checkpoint"):
        stage.prune(model, outputs, text=text and TaskFolder(text), **settings)


def calibrated(
    model: Path, text: Path, output: Path, level: str, method: str, scope: str = "linear", **more: Any
) -> dict[str, Tensor]:
    """Prune with a calibrated method; the tensors of the result."""
    prune(model, {level: output}, method=method, scope=scope, calibration=DRAW, text=text, **more)
    return load(output / "model")


def drawn(model: Path, text: Path, **draw: int) -> Tensor:
    """Calibration sequences; by default those that `calibrated` uses."""
    return sequences(ModelFolder(model), TaskFolder(text), **(DRAW | draw))


def rows_of(output: Path) -> list[dict[str, str]]:
    """The rows of an output folder's sparsity.csv."""
    with (output / "sparsity.csv").open() as file:
        return list(csv.DictReader(file))
