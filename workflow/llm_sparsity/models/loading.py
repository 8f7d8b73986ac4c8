"""How a model folder, dense or pruned, becomes a transformers model."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.narrowing import resize_to_checkpoint
from llm_sparsity.models.roles import CLASSIFIERS, POOLERS

if TYPE_CHECKING:
    import torch

    from llm_sparsity.models.checkpoint import ModelReader


OUTPUTS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}  # whatever config.json says
# Types of encoder-decoders that make the decoder's inputs from the encoder's by themselves, each in its own way.
SHIFTING = {"bart", "mbart"}
GENERATION = "generation_config.json"


class StoredTensor:
    """A tensor of a checkpoint that is read when it is sliced, as transformers does with each once: `tensor[...]`.

    So a model is loaded tensor by tensor. transformers reads in several threads, a reader in one at a time.

    Args:
        reader: of the checkpoint.
        name: of the tensor.
        turn: held while the reader reads.
        undefined: the dtype of a tensor of the same shape, whose values are undefined, which is given in its place. It
            takes no memory until it is used.
    """

    def __init__(
        self, reader: "ModelReader", name: str, turn: threading.Lock, *, undefined: "torch.dtype | None" = None
    ) -> None:
        self._reader, self._name, self._turn, self._undefined = reader, name, turn, undefined

    def __getitem__(self, index: Any) -> "torch.Tensor":
        if self._undefined:
            import torch

            return torch.empty(self._reader.shape(self._name), dtype=self._undefined)
        with self._turn:
            return self._reader.tensor(self._name)[index]


def load_model(
    auto_class: Any,
    folder: ModelFolder | Path | str,
    *,
    dtype: "torch.dtype | None" = None,
    fresh_head: bool = False,
    values: bool | Callable[[str], bool] = True,
    **kwargs: Any,
) -> Any:
    """transformers' `from_pretrained` for any model folder, sparse or plain.

    The peak of memory is the model's weights, in `dtype`, and a few tensors as they are stored.

    Args:
        auto_class: a class with `from_pretrained`, such as AutoModelForSequenceClassification.
        folder: a model folder.
        dtype: of the model's weights. Default: float32.
        fresh_head: draw the classification head anew, also if the folder holds one.
        values: whether to read weights, or a parameter's by its name. Those that are not read are undefined, and take
            no memory: the process gets them from another, or later.
        kwargs: fields of the model's configuration, such as `num_labels`.

    Returns:
        The model, in evaluation mode. Weights that the folder does not hold (a new head) are drawn from torch's
        generator.

    Raises:
        UserError: the folder's tensors are not those of the model, see `checkpoint.check`; or its
            generation_config.json is damaged.
    """
    import torch

    from llm_sparsity.models.checkpoint import check

    folder, dtype = ModelFolder.of(folder), dtype or torch.float32
    empty = _empty(auto_class, folder, **kwargs)
    with folder.open() as reader:
        if fresh_head:
            reader.names = [name for name in reader.names if not re.search(CLASSIFIERS, name)]
        stored, turn = check(empty, folder.structure, reader, folder), threading.Lock()
        is_read = values if callable(values) else lambda _: values
        tensors = {
            name: StoredTensor(reader, known, turn, undefined=None if is_read(name) else dtype)
            for name, known in stored.items()
        }
        model_class, shapes = type(empty), {name: reader.shape(known) for name, known in stored.items()}

        def make(self: Any, *args: Any, **kwargs: Any) -> None:
            model_class.__init__(self, *args, **kwargs)
            resize_to_checkpoint(self, folder.structure, shapes)

        # The same class, whose layers are made as narrow as the tensors that they will hold.
        members = {"__init__": make, "__module__": model_class.__module__}
        fitted: Any = type(model_class.__name__, (model_class,), members)
        model = fitted.from_pretrained(None, config=empty.config, state_dict=tensors, dtype=dtype)
    model.__class__ = model_class
    if model.can_generate() and (folder.path / GENERATION).exists():
        model.generation_config = _generation_config(folder)
    return model


def _generation_config(folder: ModelFolder) -> Any:
    """How the model generates text unless the caller says otherwise: end tokens, penalties, sampling."""
    import transformers

    try:
        return transformers.GenerationConfig.from_pretrained(folder.path)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}/{GENERATION}: {' '.join(str(error).split())}; correct or remove it") from None


def check_checkpoint(folder: ModelFolder) -> int:
    """Check that a folder holds all pretrained parameters of a model, without reading them.

    That is the body; of a decoder, which is scored, also the output layer, unless the folder holds a classifier.

    Returns:
        The number of tokens that have embeddings.

    Raises:
        UserError: see `checkpoint.check`; or transformers cannot make the model from its configuration.
    """
    import transformers

    from llm_sparsity.models.checkpoint import check

    with folder.open() as reader:
        scored = folder.structure.architecture == "decoder" and not any(re.search(CLASSIFIERS, n) for n in reader.names)
        for auto_class in (transformers.AutoModel, *([transformers.AutoModelForCausalLM] if scored else [])):
            empty = _empty(auto_class, folder)
            check(empty, folder.structure, reader, folder)
    return int(empty.get_input_embeddings().weight.shape[0])


def check_classifier(folder: ModelFolder, labels: int) -> None:
    """Check that a folder holds a model with a whole classification head, without reading it.

    Args:
        folder: a model folder.
        labels: number of labels of the head.

    Raises:
        UserError: the model type has no such head, a parameter of the head is missing, or one has another shape.
    """
    import transformers

    from llm_sparsity.models.checkpoint import check
    from llm_sparsity.models.classes import drawn_parameters

    empty = _empty(transformers.AutoModelForSequenceClassification, folder, num_labels=labels)
    try:
        with folder.open() as reader:
            check(empty, folder.structure, reader, folder)
    except UserError as error:
        raise UserError(f"head: no classification head of {labels} labels: {error}") from error
    if drawn := drawn_parameters(empty, folder):
        raise UserError(
            f"head: {folder} holds no {drawn[0]}, a part of the classification head; remove `head` from the model's "
            f"entry, or save the model of {type(empty).__name__} with `save_pretrained`"
        )


def _empty(auto_class: Any, folder: ModelFolder, **kwargs: Any) -> Any:
    """A model whose parameters and buffers are on the meta device; `kwargs` are fields of its configuration."""
    import transformers

    from llm_sparsity.models.derivation import empty_model

    _ = folder.structure  # or the reason why there is none
    config = transformers.AutoConfig.from_pretrained(folder.path, trust_remote_code=False, **OUTPUTS, **kwargs)
    try:
        return empty_model(auto_class, config)
    except UserError as error:  # such as a type without this kind of head
        raise UserError(f"{folder}/config.json: {error}") from error


def load_classifier(
    folder: ModelFolder, *, labels: int, seed: int, task: dict[str, Any] | None = None, values: bool = True
) -> Any:
    """A model with a classification head: the folder's own, or a new one, drawn from the seed alone.

    A head in a folder of this program is one of a known task (`download_model` leaves others out), so training goes on
    with it. It gives way to a new one if it has another number of labels, or was trained on another task. Decoders
    classify at the last token that is not padding. Dropout follows the model's configuration.

    Args:
        folder: a model folder.
        labels: number of labels.
        seed: of a new head's initial weights.
        task: what the manifest's entry `task` has to be for a head to be kept. Default: whatever it is.
        values: see `load_model`.
    """
    import torch

    known = folder.facts.get("task") or {}
    # transformers omits labels that it takes for the default: any two, but of BART also any three.
    held = known.get("labels") or folder.config.get("id2label") or range(2)
    fresh = len(held) != labels or (task is not None and bool(known) and known != task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _load("AutoModelForSequenceClassification", folder, fresh_head=fresh, values=values, num_labels=labels)
    model.config.pad_token_id = folder.tokenizer.pad_token_id
    return model


def load_causal(folder: ModelFolder, dtype: "torch.dtype | None" = None, *, values: bool = True) -> Any:
    """A model as a causal language model; its weights in `dtype`, by default float32. For `values` see `load_model`."""
    return _load("AutoModelForCausalLM", folder, dtype=dtype, values=values)


def load_base(folder: ModelFolder, dtype: "torch.dtype | None" = None) -> Any:
    """A model without a head, the part that all tasks share; its weights in `dtype`, by default float32."""
    return _with_decoder_inputs(_load("AutoModel", folder, dtype=dtype))


def loading_dtype(folder: ModelFolder, device: "torch.device") -> "torch.dtype":
    """The dtype in which a device holds a model's weights exactly: float32 on a CPU; on a GPU that of the checkpoint.

    A checkpoint whose tensors have several dtypes is loaded in float32. So the host of a GPU needs no more memory for
    the weights than they have bytes on disk.
    """
    import torch

    with folder.open() as reader:
        dtypes = {reader.dtype(name) for name in reader.names}
    found = {dtype for dtype in dtypes if dtype.is_floating_point}
    half = len(found) == 1 and found <= {torch.float16, torch.bfloat16}
    return found.pop() if half and device.type != "cpu" else torch.float32


def load_skeleton(folder: ModelFolder, config: Any = None) -> Any:
    """A model without head and weights, in evaluation mode: parameters are on the meta device, buffers are real.

    Args:
        folder: a model folder.
        config: of transformers. Default: the folder's.
    """
    import torch
    import transformers
    from accelerate import init_empty_weights

    config = config or transformers.AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
    with init_empty_weights():
        model = transformers.AutoModel.from_config(config, dtype=torch.float32)
    model.tie_weights()
    model.config.use_cache = False
    for name, _ in list(model.named_children()):
        if re.search(POOLERS, name):
            setattr(model, name, None)
    return _with_decoder_inputs(model).eval()


def _with_decoder_inputs(model: Any) -> Any:
    """Let an encoder-decoder without a head run on `input_ids` alone: the decoder gets them, shifted by one."""

    def shifted(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "input_ids" in kwargs and not any(name.startswith("decoder_") for name in kwargs):
            ids = kwargs["input_ids"].roll(1, dims=1)
            ids[:, 0] = getattr(model.config, "decoder_start_token_id", None) or 0
            kwargs = {**kwargs, "decoder_input_ids": ids}
        return args, kwargs

    if model.config.is_encoder_decoder and model.config.model_type not in SHIFTING:
        model.register_forward_pre_hook(shifted, with_kwargs=True)
    return model


def _load(auto_class: str, folder: ModelFolder, **kwargs: Any) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return load_model(getattr(transformers, auto_class), folder, **kwargs)
