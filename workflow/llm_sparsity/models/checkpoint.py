"""The tensors of a checkpoint, under the names that they have in the model, and whether they are its parameters.

Names and shapes are compared before a value is read, because transformers draws parameters that it does not find.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.names import ModuleNames, Place
from llm_sparsity.models.roles import BUFFERS, HEADS, POOLERS
from llm_sparsity.models.structure import Structure
from llm_sparsity.storage.container import Reader
from llm_sparsity.storage.quantized import Quantized

SHOWN = 3  # names in a message
# Pattern of names -> how a file with such names was saved, and what to do.
CAUSES = {
    r"(^|\.)_orig_mod\.": "saved from a compiled model (torch.compile): save its `_orig_mod`",
    r"(^|\.)(module|_(fsdp|checkpoint)_wrapped_module)\.|^(_forward_module|auto_model|ema_model)\.": (
        "saved from a wrapper (DataParallel, FSDP, an average of weights): save the model inside with `save_pretrained`"
    ),
    r"\.(base_layer|modules_to_save|adapters?)\.|\.(lora|lokr|vera|ia3|hada|b?oft)_|(^|\.)prompt_(embeddings|encoder)"
    r"|^base_model\.model\.": "an adapter that is not merged (peft): save `merge_and_unload()`",
    r"\.(qweight|qzeros|scales?|(weight|input|[kqv])_scale\w*|weight_packed|absmax|SCB|quant_state\S*|W_q|codebooks"
    r"|\w*(zero_point|_blocks|_scales))$": "a quantised checkpoint: choose the unquantised one",
}


class ModelReader(Reader):
    """Reads the tensors of a model folder, see `Structure.file_names` for their names.

    Args:
        folder: of the model.
        structure: of the model.
    """

    def __init__(self, folder: Any, structure: Structure) -> None:
        super().__init__(folder)
        self._stored_names = structure.file_names(self.names)
        self.names = sorted(self._stored_names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return super().shape(self._stored_names[name])

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, without reading it."""
        return super().dtype(self._stored_names[name])

    def stored(self, name: str) -> Tensor | Quantized:
        """Read a tensor as it is stored: a quantised one as its codes and scales."""
        return super().stored(self._stored_names[name])


def stored_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Parameter or buffer of a model -> name in the checkpoint, for those that a checkpoint holds as they are.

    Args:
        model: a transformers model, on any device.
        names: of the checkpoint's tensors, as a `ModelReader` gives them.
    """
    places = ModuleNames(model).places(names)
    return {place.names[0]: name for name, place in places.items() if place.names and not place.fused}


def copied_embeddings(structure: Structure, reader: Reader, embeddings: Iterable[str]) -> dict[str, str]:
    """Output layers that a checkpoint stores beside equal embeddings -> these embeddings.

    Args:
        structure: of the model.
        reader: of the checkpoint.
        embeddings: the tensors that are compared; those that are no embeddings are passed over.
    """
    layers = [name for name in reader.names if structure.is_output_layer(name)]
    return {
        layer: name
        for layer in layers
        for name in embeddings
        if (role := structure.role(name)) and role.part == "embeddings"
        and reader.shape(layer) == reader.shape(name)
        and torch.equal(reader.tensor(layer), reader.tensor(name))
    }  # fmt: skip


def check(model: Any, structure: Structure, reader: Reader, where: object) -> dict[str, str]:
    """Check that a checkpoint holds the parameters of a model, no others, in their shapes.

    Poolers and new heads may be absent, but not the output layer of a language model. Heads of other tasks and old
    buffers may be there. Layers may be narrower, as structured pruning makes them.

    Args:
        model: a transformers model, best on the meta device.
        structure: of the model.
        reader: of the checkpoint.
        where: the checkpoint, for the message.

    Returns:
        The name that transformers loads a tensor by -> its name in the checkpoint. It is the name of a parameter or
        buffer, unless transformers fuses the tensor with others.

    Raises:
        UserError: it does not; the message names tensors and the usual cause.
    """
    places = ModuleNames(model).places(reader.names)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    held = {name: place for name, place in places.items() if place.names}
    weights = [name for name, place in held.items() if place.names[0] in parameters]
    if quantised := [name for name in weights if not _is_plain(reader.dtype(name))]:
        kind = str(reader.dtype(quantised[0])).removeprefix("torch.")
        raise UserError(f"{where}: {quantised[0]} is {kind}, a quantised weight; choose the unquantised checkpoint")
    missing = _missing(model, parameters, {own for place in held.values() for own in place.names})
    unexpected = [name for name in reader.names if name not in held and not _is_harmless(model, name, held)]
    misshapen = _misshapen(parameters, structure, held, reader)
    if missing or unexpected or misshapen:
        kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
        found = "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names)
        raise UserError(f"{where}: tensors do not fit config.json: {found}; {_cause(model, reader.names, missing)}")
    return {name if place.fused else place.names[0]: name for name, place in held.items()}


def _missing(model: Any, parameters: Mapping[str, Tensor], names: Collection[str]) -> list[str]:
    """The required parameters that a checkpoint lacks; of tied ones, one is enough."""
    held = {id(parameters[name]) for name in names if name in parameters}
    output = model.get_output_embeddings()
    scored = {id(weight) for weight in output.parameters()} if output else set()
    wanted = (scored | body_parameters(model)) - held
    return [name for name, weight in model.named_parameters() if id(weight) in wanted]


def body_parameters(model: Any) -> set[int]:
    """The ids of the parameters of a model's body, without a pooler, which pretraining may not have."""
    return {id(weight) for name, weight in model.base_model.named_parameters() if not re.search(POOLERS, name)}


def _misshapen(
    parameters: Mapping[str, Tensor], structure: Structure, held: Mapping[str, Place], reader: Reader
) -> list[str]:
    """Tensors of another shape; those of a block may be narrower by the same share."""
    shares: dict[str, Fraction] = {}
    wrong, fused = [], Counter[tuple[str, ...]]()
    for name, place in held.items():
        shape = reader.shape(name)
        if place.fused:
            fused[place.names] += math.prod(shape)
        elif place.names[0] in parameters:
            own, axis = tuple(parameters[place.names[0]].shape), structure.axis(place.names[0])
            fits = shape == own
            if axis and len(shape) == len(own):
                share = Fraction(shape[axis.dim], own[axis.dim])
                narrowed = (*own[: axis.dim], shape[axis.dim], *own[axis.dim + 1 :])
                fits = shape == narrowed and 0 < share <= 1 and share == shares.setdefault(axis.block, share)
            if not fits:
                wrong.append(f"{name}: {_size(shape)} in place of {_size(own)}")
    for names, size in fused.items():
        expected = sum(parameters[name].numel() for name in names)
        if size != expected:
            wrong.append(f"{names[0]}: {size} weights in place of {expected}")
    return wrong


def _is_harmless(model: Any, name: str, held: Collection[str]) -> bool:
    """Whether a tensor that the model has no parameter for is an old buffer, a pooler or the head of another task."""
    ignored = model._keys_to_ignore_on_load_unexpected or ()
    if any(re.search(pattern, name) for pattern in (BUFFERS, *ignored)):
        return True
    if any(re.search(pattern, name) for pattern in CAUSES):  # a second copy, an adapter, or scales
        return False
    prefix = f"{model.base_model_prefix}."
    inner = name.removeprefix(prefix)
    part = inner.partition(".")[0]
    if any(part in dict(module.named_children()) for module in (model, model.base_model)):
        return False
    outside = name == inner and any(other.startswith(prefix) for other in held)
    return outside or re.search(HEADS, inner) is not None


def _is_plain(dtype: torch.dtype) -> bool:
    """Whether weights of a dtype are values, not the codes of a quantised model."""
    return dtype.is_floating_point and dtype.itemsize > 1


def _size(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _cause(model: Any, names: Iterable[str], missing: list[str]) -> str:
    """What may have gone wrong, and what to do."""
    for pattern, cause in CAUSES.items():
        if any(re.search(pattern, name) for name in names):
            return cause
    if missing and any(name.endswith(f".{missing[0]}") for name in names):
        return "saved from a wrapper: save the model inside with `save_pretrained`"
    computed = model._keys_to_ignore_on_load_missing or ()
    if missing and all(any(re.search(p, f"{model.base_model_prefix}.{name}") for p in computed) for name in missing):
        return "transformers computes these and stores none, which is not supported: choose another model"
    output = model.get_output_embeddings()
    layer = {id(weight) for weight in output.parameters()} if output else set()
    if missing and all(id(model.get_parameter(name)) in layer for name in missing):
        return "a body that was saved without its output layer: save the model of AutoModelForCausalLM"
    return "weights and configuration of two models, or not saved by transformers: save both with `save_pretrained`"
