"""The prune stage: read a model, choose the weights to remove, write a sparse checkpoint for each sparsity.

All sparsities share the passes that score the weights. The peak of memory is one tensor and a strip of its scores,
whatever the number of sparsities; calibrated methods also hold a transformer block and the activations of the
calibration sequences.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.pruning.checks import check
from llm_sparsity.pruning.pruner import Pruner, Row
from llm_sparsity.pruning.scores import ScoredTensors
from llm_sparsity.pruning.structured import StructuredPruner
from llm_sparsity.pruning.unstructured import UnstructuredPruner
from llm_sparsity.storage.container import Reader, Writer, copy_companions
from llm_sparsity.storage.files import write_csv, write_json, write_manifest
from llm_sparsity.study.sparsity import Sparsity

COLUMNS = [
    "name", "stack", "layer", "part", "shape", "dtype", "size", "removed", "zeros", "sparsity", "threshold", "error",
    "block_error",
]  # fmt: skip


def prune(
    model: ModelFolder,
    outputs: Mapping[Sparsity, Path],
    *,
    method: str,
    scope: str,
    seed: int = 0,
    min_density: float = 0.0,
    layerwise: str = "uniform",
    calibration: Mapping[str, int] | None = None,
    text: TaskFolder | None = None,
) -> None:
    """Prune a model to one or several sparsities.

    Each output folder gets `model/`, a sparse checkpoint, and `sparsity.csv`, a row for each tensor in the scope. Its
    column `removed` is the number of weights that the method chose, `zeros` the number of weights that are zero or
    removed afterwards, which is larger where weights were zero before. Two columns are filled by calibrated methods
    only, and measured on the first calibration sequences: `error` is the relative change of the matrix's output, with
    inputs from the pruned blocks before it, and `block_error` the relative change of the whole block's output.

    Args:
        model: a dense model.
        outputs: sparsity -> output folder.
        method: the name of a module in `llm_sparsity.pruning.methods`.
        scope: see `TensorRole.in_scope`.
        seed: of methods that draw random numbers.
        min_density: the fraction of every tensor that is kept, whatever its scores.
        layerwise: for calibrated methods: "uniform" removes the same fraction of every layer, "owl" less of layers
            with more outliers, see `llm_sparsity.pruning.layerwise`.
        calibration: for calibrated methods: samples, sequence_length and seed, see `calibration.sequences`.
        text: for calibrated methods: a language-model task with a train split.

    Raises:
        UserError: the scope has no tensors, no method can rank the weights, a pattern or a block does not divide a
            matrix, a sparsity would remove all heads or neurons of a layer or contradicts `min_density`, or the text
            is too short.
    """
    facts, sparsities = model.facts, list(outputs)
    with model.open() as reader:
        tensors = _scored_tensors(model, reader, sparsities, method, scope, seed)
        check(tensors, sparsities, min_density=min_density, layerwise=layerwise)
        pruner: Pruner
        if tensors.is_calibrated:
            if calibration is None or text is None:
                raise UserError(f"method {method}: needs a calibration text; give `calibration` and `text`")
            # Imported by name, so that an edit of this module reruns jobs of calibrated methods only.
            calibrated = importlib.import_module("llm_sparsity.pruning.calibrated")
            pruner = calibrated.CalibratedPruner(
                tensors, sparsities, min_density, layerwise=layerwise, text=text, calibration=calibration
            )
        elif tensors.granularity:
            pruner = UnstructuredPruner(tensors, sparsities, min_density)
        else:
            pruner = StructuredPruner(tensors, sparsities, min_density)
        rows = _write_weights(tensors, pruner, outputs)
    settings: dict[str, Any] = {"method": method, "scope": scope, "seed": seed, "min_density": min_density}
    if tensors.is_calibrated:
        settings |= {"layerwise": layerwise, "calibration": dict(calibration or {})}
    for sparsity, output in outputs.items():
        copy_companions(model.path, output / "model")
        if (config := pruner.config(sparsity)) is not None:
            write_json(output / "model" / "config.json", config)
        write_csv(output / "sparsity.csv", sorted(rows[sparsity], key=lambda row: row["name"]), COLUMNS)
        counts = _counts(tensors, sparsity, rows[sparsity])
        write_manifest(output / "model", **facts, pruned={"sparsity": str(sparsity), **settings, **counts})


def _scored_tensors(
    model: ModelFolder, reader: Reader, sparsities: Sequence[Sparsity], method: str, scope: str, seed: int
) -> ScoredTensors:
    """The tensors of the scope.

    Raises:
        UserError: there are none.
    """
    roles = model.roles(reader.names, scope)
    if not roles:
        raise UserError(f"scope {scope}: {model} has no such tensors; choose another scope")
    module = importlib.import_module(f"llm_sparsity.pruning.methods.{method}")
    groups = [sparsity.pattern[1] for sparsity in sparsities if sparsity.pattern]
    row_multiple = math.lcm((module.GRANULARITY or (1, 1))[0], *groups)
    return ScoredTensors(model, reader, roles, module, seed, row_multiple)


def _write_weights(
    tensors: ScoredTensors, pruner: Pruner, outputs: Mapping[Sparsity, Path]
) -> dict[Sparsity, list[Row]]:
    """Write the weights of every pruned model; the rows of their sparsity.csv, in any order."""
    names = tensors.model.family.without_aliases(tensors.reader.names)
    tied = _tied_output_layers(tensors, names)
    untied = sorted(set(names) - set(tied))
    rows: dict[Sparsity, list[Row]] = {sparsity: [] for sparsity in outputs}
    with ExitStack() as stack:
        writers = {sparsity: stack.enter_context(Writer(output / "model")) for sparsity, output in outputs.items()}
        title = f"prune {', '.join(map(str, outputs))}"
        bar = stack.enter_context(tqdm(total=len(untied) * len(outputs), desc=title, unit="tensor"))
        for sparsity, name, weight, row in pruner.results(untied):
            if row:
                rows[sparsity].append({"name": name, **asdict(tensors.roles[name]), **row})
            for copy in [name, *(layer for layer, embeddings in tied.items() if embeddings == name)]:
                writers[sparsity].add(copy, weight)
            bar.update()
    return rows


def _tied_output_layers(tensors: ScoredTensors, names: Sequence[str]) -> dict[str, str]:
    """Output layers that the checkpoint stores beside the embeddings they are tied to -> these embeddings.

    They have to stay equal: transformers unties tensors that differ, and the output layer would be dense again.
    """
    reader = tensors.reader
    embeddings = [name for name, role in tensors.roles.items() if role.part == "embeddings"]
    return {
        layer: name
        for layer in names
        for name in embeddings
        if layer.endswith("lm_head.weight")
        and reader.shape(layer) == reader.shape(name)
        and torch.equal(reader.tensor(layer), reader.tensor(name))
    }


def _counts(tensors: ScoredTensors, sparsity: Sparsity, rows: Sequence[Row]) -> dict[str, Any]:
    """The totals of sparsity.csv for the manifest; prints a line if they differ from the sparsity asked for."""
    size, removed, zeros = (sum(row[key] for row in rows) for key in ("size", "removed", "zeros"))
    if not sparsity.is_pattern and abs(removed / size - sparsity.fraction) > 0.0005:
        units = "blocks" if tensors.granularity else "heads and neurons"
        print(f"sparsity {sparsity}: {removed / size:.4f} reached, because only whole {units} are removed")
    return {"size": size, "removed": removed, "measured_sparsity": zeros / size}
