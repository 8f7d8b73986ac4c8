"""The prune stage: read a model, choose the weights to remove, write a sparse checkpoint for each sparsity.

A method may be followed by steps (`methods.Chain`). Each step is a pass over the checkpoint that the one before it has
left, and replaces it. All sparsities share the passes that score the weights. The peak of memory is one tensor and a
strip of its scores, or all of them for a method without `STRIPS`, whatever the number of sparsities; calibrated methods
and steps also hold a transformer block and the activations of the calibration sequences.
"""

import importlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.checkpoint import copied_embeddings
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import check_checkpoint
from llm_sparsity.models.roles import layers_of
from llm_sparsity.pruning.checks import check, check_values
from llm_sparsity.pruning.pruner import Pruner, Row
from llm_sparsity.pruning.scores import ScoredTensors
from llm_sparsity.pruning.structured import StructuredPruner
from llm_sparsity.pruning.unstructured import UnstructuredPruner
from llm_sparsity.storage.container import WEIGHTS, Reader, copy_companions, writing
from llm_sparsity.storage.files import MANIFEST, write_csv, write_json, write_manifest
from llm_sparsity.study.fields import scope_of
from llm_sparsity.study.methods import KINDS, STEPS, Chain
from llm_sparsity.study.settings import Prune
from llm_sparsity.study.sparsity import Sparsity

COLUMNS = [
    "name", "stack", "layer", "part", "shape", "dtype", "size", "removed", "zeros", "sparsity", "threshold", "error",
    "block_error",
]  # fmt: skip
LAYERWISE = get_args(Prune.model_fields["layerwise"].annotation)
SAMPLING = {"samples": 1, "sequence_length": 1, "seed": 0}  # keys of a calibration -> least number
Rows = dict[str, Row]  # name of a tensor -> its row of sparsity.csv


def prune(
    model: ModelFolder | Path | str,
    outputs: Mapping[Any, Path | str],
    *,
    method: str,
    scope: str | list[int],
    seed: int = 0,
    min_density: float = 0.0,
    layerwise: str = "uniform",
    calibration: Mapping[str, int] | None = None,
    text: TaskFolder | Path | str | None = None,
) -> None:
    """Prune a model to one or several sparsities.

    Each output folder gets `model/`, a sparse checkpoint, and `sparsity.csv`, a row for each tensor in the scope. Its
    column `removed` is the number of weights that the method chose, `zeros` the number of weights that are zero or
    removed afterwards, which is larger where weights were zero before. Two columns are filled by calibrated methods
    only, and measured on the first calibration sequences: `error` is the relative change of the matrix's output, with
    inputs from the pruned blocks before it, and `block_error` the relative change of the whole block's output.

    Args:
        model: a model, pretrained or fine-tuned, or one that was pruned before; its zeros are the lowest of all.
        outputs: sparsity, or its text or number -> output folder.
        method: the name of a module in `llm_sparsity.pruning.methods`, and the steps after it, see `methods.Chain`.
        scope: as in a config, a word or a list of layers; see `TensorRole.in_scope`.
        seed: of methods that draw random numbers.
        min_density: the fraction of every tensor that is kept, whatever its scores.
        layerwise: for calibrated methods: "uniform" removes the same fraction of every layer, "owl" less of layers
            with more outliers, see `llm_sparsity.pruning.owl`.
        calibration: for calibrated methods and steps: samples, sequence_length and seed, see `calibration.batches`.
        text: for calibrated methods and steps: a task with a train split, of sentences or running text.

    Raises:
        UserError: arguments that have no meaning, outputs that overwrite each other or the model, a checkpoint that is
            not whole, names that are no chain, no sparsity or no scope, a scope or a layer of it that has no tensors,
            no method can rank the weights, a pattern or a block does not divide a matrix, a sparsity would remove all
            heads or neurons of a layer or contradicts `min_density`, the text is too short, or a matrix of the scope
            does not run on it.
    """
    model, part = ModelFolder.of(model), str(_read("scope", scope, scope_of))
    folders = _folders(outputs, model)
    text = TaskFolder(Path(text)) if isinstance(text, Path | str) else text
    _check_numbers(seed, min_density, layerwise, calibration)
    seed, min_density = int(seed), float(min_density)  # NumPy's numbers, too, go into the manifest
    calibration = calibration and {key: int(number) for key, number in calibration.items()}
    check_checkpoint(model)
    facts = model.facts
    chain = _chain(method, list(folders), can_calibrate=calibration is not None and text is not None)
    sampling = {"text": text, "calibration": calibration}
    rows: dict[Sparsity, Rows] = {sparsity: {} for sparsity in folders}
    configs: dict[Sparsity, dict[str, Any] | None] = dict.fromkeys(folders)
    with model.open() as reader:
        parts = {name: _scored_tensors(model, reader, list(folders), name, part, seed) for name in chain.parts}
        check_values(parts[chain.parts[0]])
        for name, tensors in parts.items():
            own = name == chain.method
            check(
                tensors, list(folders), min_density=min_density if own else 0.0,
                layerwise=layerwise if own else "uniform",
            )  # fmt: skip
        if chain.method:
            pruner = _pruner(parts[chain.method], list(folders), min_density, layerwise, sampling)
            rows = _write_weights(parts[chain.method], pruner, folders)
            configs = {sparsity: pruner.config(sparsity) for sparsity in folders}
        try:
            for step, (sparsity, output) in itertools.product(chain.steps, folders.items()):
                with Reader(output / "model") if rows[sparsity] else nullcontext(reader) as before:
                    pruner = _step(step, parts[step], before, sparsity, sampling)
                    after = _write_weights(replace(parts[step], reader=before), pruner, {sparsity: output})[sparsity]
                rows[sparsity] = {name: _merged(rows[sparsity].get(name, row), row) for name, row in after.items()}
        except UserError:  # a step refuses the model: what the parts before it have written is no result
            for output in folders.values():
                (output / "model" / WEIGHTS).unlink(missing_ok=True)
            raise
    settings: dict[str, Any] = {"method": method, "scope": part, "seed": seed, "min_density": min_density}
    if chain.is_calibrated and text:
        settings |= {"layerwise": layerwise, "calibration": {"task": text.name, **(calibration or {})}}
    for sparsity, output in folders.items():
        copy_companions(model.path, output / "model")
        if (config := configs[sparsity]) is not None:
            write_json(output / "model" / "config.json", config)
        listed = [rows[sparsity][name] for name in sorted(rows[sparsity])]
        write_csv(output / "sparsity.csv", listed, COLUMNS)
        counts = _counts(parts[chain.parts[0]], sparsity, listed)
        pruned = {"sparsity": str(sparsity), **settings, **counts}
        write_manifest(output / "model", **(facts | {"pruned": pruned}))


def _folders(outputs: Mapping[Any, Path | str], model: ModelFolder) -> dict[Sparsity, Path]:
    """The folder of each sparsity.

    Raises:
        UserError: there is none, two are one, or one cannot be written or holds the model itself.
    """
    if not isinstance(outputs, Mapping) or not outputs:
        raise UserError(f"outputs: found {outputs!r}; give a folder for each sparsity, such as {{0.5: 'pruned'}}")
    folders = {_read("outputs", each, Sparsity.of): Path(output) for each, output in outputs.items()}
    if len(folders) < len(outputs):
        raise UserError(f"outputs: {', '.join(map(str, outputs))} name one sparsity twice; leave one out")
    if len({output.resolve() for output in folders.values()}) < len(folders):
        raise UserError(f"outputs: {folders[max(folders)]} is given for two sparsities; give each its own folder")
    for output in folders.values():
        if file := next((path for path in (output, *output.parents) if path.exists() and not path.is_dir()), None):
            raise UserError(f"outputs: {file} is a file; name a folder")
        if (output / "model").resolve() == model.path.resolve():
            raise UserError(f"outputs: {output} holds the model itself, in model/; name another folder")
    return folders


def _check_numbers(seed: Any, min_density: Any, layerwise: Any, calibration: Any) -> None:
    """Refuse settings that a config cannot have either."""
    if not isinstance(seed, Integral):
        raise UserError(f"seed: found {seed!r}; give a whole number")
    if not isinstance(min_density, Real) or not 0 <= float(min_density) < 1:
        raise UserError(f"min_density: found {min_density!r}; give a fraction in [0, 1)")
    if layerwise not in LAYERWISE:
        raise UserError(f"layerwise: found {layerwise!r}; give {' or '.join(LAYERWISE)}")
    if calibration is None:
        return
    if not isinstance(calibration, Mapping) or calibration.keys() != SAMPLING.keys():
        raise UserError(f"calibration: found {calibration!r}; give {', '.join(SAMPLING)}")
    for key, least in SAMPLING.items():
        if not isinstance(calibration[key], Integral) or calibration[key] < least:
            raise UserError(f"calibration.{key}: found {calibration[key]!r}; give a whole number, {least} or more")


def _read(key: str, value: Any, read: Callable[[Any], Any]) -> Any:
    """What a function makes of an argument; its ValueError as a message about the argument."""
    try:
        return read(value)
    except ValueError as error:
        raise UserError(f"{key}: found {value!r}; {error}") from None


def _chain(text: str, sparsities: Sequence[Sparsity], *, can_calibrate: bool) -> Chain:
    """The chain that a text names.

    Raises:
        UserError: it is none, it needs calibration and there is none, or it removes nothing, but a sparsity is not 0.
    """
    try:
        chain = Chain(text)
    except ValueError as error:
        raise UserError(f"method {error}") from None
    if chain.is_calibrated and not can_calibrate:
        raise UserError(f"method {text}: needs a calibration text; give `calibration` and `text`")
    if not chain.method and (pruned := [sparsity for sparsity in sparsities if not sparsity.is_dense]):
        raise UserError(f"sparsity {pruned[0]}: method {text} removes nothing; give sparsity 0, or a method before it")
    return chain


def _scored_tensors(
    model: ModelFolder, reader: Reader, sparsities: Sequence[Sparsity], part: str, scope: str, seed: int
) -> ScoredTensors:
    """The tensors of the scope, for a method or a step.

    Raises:
        UserError: there are none, or none in a layer that the scope lists.
    """
    roles = model.roles(reader.names, scope)
    found = {role.layer for role in roles.values()}
    if absent := [layer for layer in layers_of(scope) if layer not in found]:
        last = max(role.layer for role in model.structure.roles.values())
        raise UserError(f"scope {scope}: {model} has no layer {absent[0]}, only 0 to {last}; choose among them")
    if not roles:
        raise UserError(f"scope {scope}: {model} has no such tensors; choose another scope")
    kind = "steps" if part in STEPS else "methods"
    module = importlib.import_module(f"llm_sparsity.pruning.{kind}.{part}")
    groups = [sparsity.pattern[1] for sparsity in sparsities if sparsity.pattern]
    row_multiple = math.lcm((module.GRANULARITY or (1, 1))[0], *groups)
    return ScoredTensors(model, reader, roles, module, seed, row_multiple)


def _pruner(
    tensors: ScoredTensors, sparsities: Sequence[Sparsity], min_density: float, layerwise: str, sampling: dict[str, Any]
) -> Pruner:
    """The pruner of a method."""
    if tensors.is_calibrated:
        # Imported by name, so that an edit of this module reruns jobs of calibrated methods only.
        calibrated = importlib.import_module("llm_sparsity.pruning.calibrated")
        pruner: Pruner = calibrated.CalibratedPruner(
            tensors, sparsities, min_density=min_density, layerwise=layerwise, **sampling
        )
        return pruner
    if tensors.granularity:
        return UnstructuredPruner(tensors, sparsities, min_density)
    return StructuredPruner(tensors, sparsities, min_density)


def _step(step: str, tensors: ScoredTensors, before: Reader, sparsity: Sparsity, sampling: dict[str, Any]) -> Pruner:
    """The pruner of a step, which changes the weights that `before` reads. Modules are imported as in `_pruner`."""
    kind = next(kind for kind, steps in KINDS.items() if step in steps)
    pruner: Pruner = importlib.import_module(f"llm_sparsity.pruning.{kind}").step(tensors, before, sparsity, **sampling)
    return pruner


def _write_weights(tensors: ScoredTensors, pruner: Pruner, outputs: Mapping[Sparsity, Path]) -> dict[Sparsity, Rows]:
    """Write the weights of every pruned model; the rows of their sparsity.csv.

    Raises:
        RuntimeError: the pruner has not given every tensor of the checkpoint; nothing is written.
    """
    names = tensors.model.structure.without_copies(tensors.reader.names)
    # They have to stay equal: transformers unties tensors that differ, and the output layer would be dense again.
    tied = copied_embeddings(tensors.model.structure, tensors.reader, tensors.roles)
    untied = sorted(set(names) - set(tied))
    rows: dict[Sparsity, Rows] = {sparsity: {} for sparsity in outputs}
    written: dict[Sparsity, list[str]] = {sparsity: [] for sparsity in outputs}
    for output in outputs.values():  # an older manifest does not describe these weights, should the run be interrupted
        (output / "model" / MANIFEST).unlink(missing_ok=True)
    with ExitStack() as stack:
        writers = {sparsity: stack.enter_context(writing(output / "model")) for sparsity, output in outputs.items()}
        title = f"prune {', '.join(map(str, outputs))}"
        bar = stack.enter_context(tqdm(total=len(untied) * len(outputs), desc=title, unit="tensor"))
        for sparsity, name, weight, row in pruner.results(untied):
            if row:
                rows[sparsity][name] = {"name": name, **asdict(tensors.roles[name]), **row}
            for copy in [name, *(layer for layer, embeddings in tied.items() if embeddings == name)]:
                writers[sparsity].add(copy, weight)
            written[sparsity].append(name)
            bar.update()
        for sparsity, found in written.items():
            if wrong := sorted(set(untied).symmetric_difference(found)):
                raise RuntimeError(
                    f"sparsity {sparsity}: tensor {wrong[0]} and {len(wrong) - 1} others are missing or unknown; "
                    "this is a bug in llm_sparsity.pruning, please report it"
                )
    return rows


def _merged(before: Row, after: Row) -> Row:
    """The row of a tensor after a step, which removes nothing itself; `before` may be of a tensor that was larger."""
    kept = {key: before[key] for key in ("size", "removed", "threshold") if key in before}
    zeros = before["size"] - after["size"] + after["zeros"]
    return after | kept | {"zeros": zeros, "sparsity": zeros / before["size"]}


def _counts(tensors: ScoredTensors, sparsity: Sparsity, rows: Sequence[Row]) -> dict[str, Any]:
    """The totals of sparsity.csv for the manifest; prints a line if they differ from the sparsity asked for."""
    size, removed, zeros = (sum(row[key] for row in rows) for key in ("size", "removed", "zeros"))
    if not sparsity.is_pattern and abs(removed / size - sparsity.fraction) > 0.0005:
        units = "blocks" if tensors.granularity else "heads and neurons"
        why = "" if tensors.granularity == (1, 1) else f", because only whole {units} are removed"
        print(f"sparsity {sparsity}: {removed / size:.4f} reached{why}")
    return {"size": size, "removed": removed, "measured_sparsity": zeros / size}
