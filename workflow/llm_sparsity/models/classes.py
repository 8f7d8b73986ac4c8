"""The class of transformers that makes a model of a folder: the one that config.json names, if the folder holds it."""

import re
from collections.abc import Iterable
from typing import Any

import transformers

from llm_sparsity.models.checkpoint import body_parameters, stored_names
from llm_sparsity.models.derivation import empty_model
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.roles import POOLERS

# Several auto classes may make one class: BERT's causal model is also the decoder of others. These come first.
FIRST = (
    "AutoModelForSequenceClassification", "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM",
)  # fmt: skip


def auto_class(config: Any, model_class: str) -> Any:
    """The auto class that makes a model class.

    Args:
        config: of transformers.
        model_class: its name, as in `architectures` of config.json.

    Returns:
        AutoModel for the model without a head, and for a class that transformers does not make of this configuration.
    """
    # Not `dir(transformers)`, which takes half a second. The list is made when the library is imported.
    names: list[str] = transformers.__all__  # type: ignore[attr-defined]
    others = sorted({name for name in names if name.startswith("AutoModelFor")})
    for auto in (getattr(transformers, name) for name in (*FIRST, *others)):
        made = auto._model_mapping.get(type(config), None)  # one class, or several
        if getattr(made, "__name__", "") == model_class:
            return auto
    return transformers.AutoModel


def named_class(folder: ModelFolder) -> Any:
    """The auto class of the class that config.json names."""
    return auto_class(folder.model_config, folder.class_name)


def held_class(folder: ModelFolder, wanted: Iterable[Any], **fields: Any) -> Any:
    """The first of several auto classes whose parameters a folder holds; AutoModel if it holds those of none.

    Args:
        folder: a model folder.
        wanted: auto classes; those that make no model of this type are passed over.
        fields: of the configuration.
    """
    _ = folder.structure  # or the reason why there is none
    config = transformers.AutoConfig.from_pretrained(folder.path, trust_remote_code=False, **fields)
    for auto in wanted:
        if type(config) in auto._model_mapping:
            drawn = drawn_parameters(empty_model(auto, config), folder)
            if all(re.search(POOLERS, name) for name in drawn):
                return auto
    return transformers.AutoModel


def drawn_parameters(model: Any, folder: ModelFolder) -> list[str]:
    """The parameters that a folder does not hold, so that transformers draws them at random: of a head or pooler."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    held = {id(parameters[name]) for name in stored_parameters(model, folder)}
    known = held | body_parameters(model)
    return [name for name, weight in parameters.items() if id(weight) not in known]


def stored_parameters(model: Any, folder: ModelFolder) -> dict[str, str]:
    """Parameter of a model -> tensor of a folder, for those that the folder holds as they are."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with folder.open() as reader:
        return {name: known for name, known in stored_names(model, reader.names).items() if name in parameters}
