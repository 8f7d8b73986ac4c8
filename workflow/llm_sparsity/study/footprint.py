"""Memory and disk of every job, in MB, for the resources of the rules.

Estimates err on the large side: a job that exceeds its request is killed, one that stays below it costs nothing. They
follow from the number of parameters, before a model has been downloaded. Measured on a CPU: 0.4-0.6 GB for any job on
a tiny model, all of it libraries, which is where LIBRARIES comes from.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llm_sparsity.storage.files import MANIFEST, read_manifest, weight_bytes
from llm_sparsity.study.cells import DENSE, MODELS, Variant
from llm_sparsity.study.config import Config
from llm_sparsity.study.methods import TRAINING, is_calibrated
from llm_sparsity.study.sparsity import Sparsity

BASE = 125e6  # parameters of a model of unknown size
FLOAT = 4  # bytes of a float32
HALF = {"float16": 2, "bfloat16": 2}  # bytes of a value; any other dtype counts as FLOAT
WORK = 6  # weights that a fine-tuning keeps until it is finished, or while it saves
MINIMUM_MB = 1000
STEP_MB = 100  # requests are rounded up to a multiple of it

# Bytes of a process beside its tensors.
LIBRARIES = 1e9  # torch, transformers, a tokenizer, the text at hand
CUDA = 2e9  # host memory of CUDA's libraries and context; assumed, and added to every stage that uses a GPU
# Shapes that the number of parameters does not give.
EMBEDDINGS = 0.7  # largest tensor, as a fraction of a small model's parameters: 0.69 in XLM-RoBERTa's base model
LARGEST_VOCABULARY = 262_144  # tokens, of Gemma 3: bounds the largest tensor of a large model
VOCABULARY = 152_000  # tokens, of Qwen2.5: bounds the logits
HEAD = 64  # width / layers, about constant over models: 768 / 12, 2048 / 32, 4096 / 64
# Bytes per token.
BACKWARD = 100  # activations kept for the backward pass, per unit of width and layer: 25 float32 values
FORWARD = 128  # activations of the layer at work, per unit of width: 32 float32 values
LOGITS = 3 * FLOAT  # per token of the vocabulary: logits, their log-softmax, the gradient of one of them
# Sizes of the stages' own making.
PLOTTERS = 4  # processes of `plot`, each with a copy of the tables
LOGITS_AT_ONCE = 256  # tokens; `evaluate` holds no more logits
PROMPT_TOKENS = 512  # of a zero-shot prompt and answer
BLOCK_TOKENS = 2048  # tokens that a block of a calibrated method computes at once, or one sequence
MAPPED = 0.27e9  # bytes of a file that are mapped at once while a model is loaded
STRIPS = 0.25e9  # bytes of scores and histograms of an uncalibrated method
TABLE = 10e6  # bytes of the weight statistics of a model, in memory and on disk
ROWS = TABLE / 10  # bytes of all other rows of a variant or a run
CORPUS = 3e9  # bytes of a text's source file as rows in memory: it is read before `limit` applies
ROW_BYTES = 1500  # of a text that has not been downloaded
HARNESS = 2e9  # bytes of lm-evaluation-harness and its packages, twice while they are replaced

# Bytes of a sparse checkpoint relative to dense float32: (sparsity, ratio), linear in between.
STORED = [(0.0, 1.0), (0.5, 0.441), (0.9, 0.093), (0.95, 0.049), (0.99, 0.012), (1.0, 0.0)]


def stored(sparsity: Sparsity) -> float:
    """Bytes of a sparse checkpoint relative to dense float32."""
    removed = sparsity.fraction
    for (low, more), (high, less) in itertools.pairwise(STORED):
        if low <= removed <= high:
            return more + (less - more) * (removed - low) / (high - low)
    raise ValueError(f"expected a sparsity in [0, 1], found {sparsity}")


def model_size(config: Config, model: str) -> tuple[float, float]:
    """Parameters and bytes of a model: of its manifest, or until it has been downloaded of its config, or assumed."""
    manifest, entry = MODELS / model / MANIFEST, config.models[model]
    if manifest.exists():
        return _model_size(manifest)
    parameters = entry.parameters or BASE
    return parameters, HALF.get(entry.source.dtype or "", FLOAT) * parameters


@cache
def _model_size(manifest: Path) -> tuple[float, float]:
    found = read_manifest(manifest.parent)
    return found["parameters"], weight_bytes(found)


@dataclass(frozen=True)
class Size:
    """Sizes of a model that follow from its parameters, in bytes unless said otherwise."""

    parameters: float
    file: float

    @property
    def weights(self) -> float:
        """All weights in float32, as every stage computes with them."""
        return FLOAT * self.parameters

    @property
    def largest(self) -> float:
        """The largest tensor in float32: the embeddings."""
        return FLOAT * min(EMBEDDINGS * self.parameters, LARGEST_VOCABULARY * self.width)

    @property
    def width(self) -> float:
        """Hidden units, of a model that has 12 width² parameters in each of width / HEAD layers."""
        return float((self.parameters * HEAD / 12) ** (1 / 3))

    @property
    def layers(self) -> float:
        """Layers, of both stacks together."""
        return max(1.0, self.width / HEAD)


def mem_mb(
    config: Config,
    stage: str,
    model: str = "",
    *,
    task: str = "",
    recipe: str = "kept",
    variant: str = "",
) -> int:
    """Memory of the host that a job needs, MB; of all processes of a fine-tuning together.

    Args:
        config: the study.
        stage: the name of a stage.
        model: a model of the study; empty for a job that has none.
        task: of the stages finetune, evaluate and zero_shot; of a download without a model.
        recipe: of a fine-tuning.
        variant: name of a variant; of the stage measure, by default the one that needs most.
    """
    known = Variant.parse(variant) if variant else None
    chain = known.method if known else ""
    size = Size(*model_size(config, model)) if model else Size(0, 0)
    gpu = CUDA
    match stage:
        case "collect":
            gpu, needed = 0, 2 * _tables(config)
        case "plot":
            gpu, needed = 0, (1 + PLOTTERS) * _tables(config)
        case "download" if not model:
            gpu, needed = 0, _rows_bytes(config, task) if task else 0
        case "download" if str(config.models[model].source.path).endswith(".gguf"):
            gpu, needed = 0, 3 * size.weights  # read whole, copied into a fresh model, and saved
        case "download":
            gpu, needed = 0, size.largest
        case "prune" if is_calibrated(chain):
            needed = _calibrated(config, size, trains=not set(TRAINING).isdisjoint(chain.split("+")))
        case "prune":
            gpu, needed = 0, 2 * size.largest + STRIPS  # a tensor as read, and its pruned copy
        case "weights":
            gpu, needed = 0, 4 * size.largest  # a tensor as read, in float32, sorted, and compared
        case "measure":
            needed = _measure(config, size, known)
        case "evaluate":
            needed = _evaluate(config, size, task)
        case "zero_shot":
            tokens = int(config.evaluate_settings(task)["batch_size"]) * PROMPT_TOKENS
            needed = _loaded(size) + tokens * (FORWARD * size.width + LOGITS * VOCABULARY)
        case "finetune":
            needed = _finetune(config, size, task, recipe)
        case _:
            raise ValueError(f"unknown stage {stage!r}")
    processes = config.models[model].gpus if stage == "finetune" else 1
    return _mb(processes * (LIBRARIES + gpu + needed))


def disk_mb(
    config: Config,
    stage: str,
    model: str = "",
    *,
    task: str = "",
    recipe: str = "kept",
    variant: str = "",
) -> int:
    """Disk that a job writes, temporary copies included, MB. Arguments as of `mem_mb`."""
    known = Variant.parse(variant) if variant else DENSE
    if stage in ("collect", "plot"):
        return _mb(_tables(config))
    if stage == "download" and not model:
        return _mb(2 * _rows_bytes(config, task) if task else HARNESS)
    if stage not in ("download", "prune", "finetune"):
        return MINIMUM_MB  # a table or less
    size = Size(*model_size(config, model))
    if stage == "download":  # an archive, what is taken from it, and the model's own files
        return _mb(3 * size.weights)
    if stage == "prune":  # the tensors, then the file that they are assembled to
        return _mb(2 * variant_bytes(config, model, known))
    # Until a run is finished, both moments are kept. While an epoch is saved, its tensors and moments exist twice.
    return _mb(run_bytes(config, model, known, task, recipe) + WORK * size.weights)


def variant_bytes(config: Config, model: str, variant: Variant) -> float:
    """Bytes of a variant's weights, at most: its embeddings, if they are not pruned, are as large as they ever are."""
    size = Size(*model_size(config, model))
    whole = 0.0 if variant.scope in ("all", "embeddings") else size.largest / size.weights
    return size.file * (whole + (1 - whole) * stored(variant.sparsity))


def run_bytes(config: Config, model: str, variant: Variant, task: str, recipe: str) -> float:
    """Bytes that a fine-tuning leaves: the weights of every epoch.

    A released mask fills up, so that nothing is saved by its zeros.
    """
    settings = config.finetune_settings(task, recipe)
    size = variant_bytes(config, model, variant) if settings["mask"] == "kept" else model_size(config, model)[1]
    return size * float(settings["epochs"])


def _mb(size: float) -> int:
    return max(MINIMUM_MB, STEP_MB * math.ceil(size / 1e6 / STEP_MB))


def _tables(config: Config) -> float:
    """The tables of a study; weight statistics are those of dense models alone."""
    cells = config.cells()
    models = sum(variant.is_dense for _, variant in cells.variants)
    return models * TABLE + (len(cells.variants) + len(cells.runs)) * ROWS


def _rows_bytes(config: Config, task: str) -> float:
    """Rows of a task in memory, as Python objects."""
    return CORPUS if config.tasks[task].kind == "language-model" else CORPUS / 3


def _calibrated(config: Config, size: Size, *, trains: bool) -> float:
    """The mapped file, embeddings, one block with its Hessians, and the activations of all sequences, twice.

    A step that trains runs two models side by side; gradients, moments and the best weights are four more blocks.
    """
    drawn = config.calibration
    samples, length = (drawn.samples, drawn.sequence_length) if drawn else (0, 0)
    block = 12 * size.width**2 * FLOAT
    hessians = 4 * (4 * size.width) ** 2 * FLOAT  # of the widest matrix: sum, damped, inverse and its factor
    activations = 2 * samples * length * size.width * FLOAT + max(BLOCK_TOKENS, length) * size.width * FORWARD
    running = size.largest + 2 * block + activations
    return size.file + running + hessians + trains * (running + 4 * block)


def _loaded(size: Size) -> float:
    """The weights in float32, while the last tensor is read from a file of which a part is mapped."""
    return size.weights + size.largest + MAPPED


def _measure(config: Config, size: Size, variant: Variant | None) -> float:
    """The mapped file, the dense model, the variant, and two sparse copies of it: a value and a column per weight."""
    kept = 1 - variant.sparsity.fraction if variant else 1.0
    copies = 3.0 if variant and variant.is_dense else 3.0 + 2 * min(2.0, 2 * kept + EMBEDDINGS)
    tokens = max(config.measure.batch_sizes) * config.measure.sequence_length
    return copies * size.weights + tokens * FORWARD * size.width


def _evaluate(config: Config, size: Size, task: str) -> float:
    """The weights, a batch's activations, and a few tokens' logits."""
    settings = config.evaluate_settings(task)
    tokens = int(settings["batch_size"]) * int(settings["sequence_length"])
    return _loaded(size) + tokens * FORWARD * size.width + LOGITS_AT_ONCE * LOGITS * VOCABULARY


def _finetune(config: Config, size: Size, task: str, recipe: str) -> float:
    """Weights, gradients, two moments, masks, and the activations of a micro-batch.

    With `lora`, few gradients and moments, but the merged weights while they are saved. A schedule adds scores, a
    teacher its weights and activations.
    """
    settings = config.finetune_settings(task, recipe)
    teacher, lora = settings["distill"] is not None, settings["lora"] is not None
    copies = (3 if lora else 4) + teacher + (settings["schedule"] is not None)
    tokens = int(settings["micro_batch_size"]) * int(settings["max_length"])
    kept = BACKWARD * size.width * size.layers
    if settings["gradient_checkpointing"]:  # the inputs of all layers, and all of one
        kept = FLOAT * size.width * size.layers + BACKWARD * size.width
    logits = LOGITS * VOCABULARY if config.tasks[task].kind == "language-model" else 0.0
    compared = FLOAT * size.width * size.layers if teacher else 0.0  # outputs of the teacher's layers
    return copies * size.weights + size.parameters + tokens * (kept + compared + (1 + teacher) * logits)
