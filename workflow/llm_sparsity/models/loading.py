"""How a model folder, dense or pruned, becomes a transformers model."""

import re
from collections.abc import Iterable
from typing import Any

from llm_sparsity.models.families import HEADS
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.narrowing import resize_to_checkpoint


def load_model(auto_class: Any, folder: ModelFolder, **kwargs: Any) -> Any:
    """transformers' `from_pretrained` for any model folder, sparse or plain.

    Args:
        auto_class: a class with `from_pretrained`, such as AutoModelForSequenceClassification.
        folder: a model folder.
        kwargs: fields of the model's configuration, such as `num_labels`.

    Returns:
        The model in float32, in evaluation mode. Weights that the folder does not hold (a new head) are drawn from
        torch's generator.
    """
    import torch
    import transformers

    from llm_sparsity.storage.container import load

    config = transformers.AutoConfig.from_pretrained(folder.path, **kwargs)
    tensors = load(folder.path)
    with torch.device("meta"):
        model_class = type(auto_class.from_config(config))

    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        resize_to_checkpoint(self, folder.family, {name: tuple(tensor.shape) for name, tensor in tensors.items()})

    # The same class, whose layers are made as narrow as the tensors that they will hold.
    fitted: Any = type(model_class.__name__, (model_class,), {"__init__": make, "__module__": model_class.__module__})
    model = fitted.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float32)
    model.__class__ = model_class
    return model


def load_classifier(folder: ModelFolder, *, labels: int, seed: int) -> Any:
    """A model with a new classification head, drawn from the seed alone.

    Decoders classify at the last token that is not padding. Dropout follows the model's configuration.

    Args:
        folder: a model folder.
        labels: number of labels.
        seed: of the head's initial weights.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _load("AutoModelForSequenceClassification", folder, num_labels=labels)
    model.config.pad_token_id = folder.tokenizer.pad_token_id
    return model


def load_causal(folder: ModelFolder) -> Any:
    """A model as a causal language model."""
    return _load("AutoModelForCausalLM", folder)


def load_base(folder: ModelFolder) -> Any:
    """A model without a head: the part that all tasks share."""
    return _load("AutoModel", folder)


def load_skeleton(folder: ModelFolder) -> Any:
    """A model without head and weights, in evaluation mode: parameters are on the meta device, buffers are real."""
    import torch
    import transformers
    from accelerate import init_empty_weights

    config = transformers.AutoConfig.from_pretrained(folder.path)
    with init_empty_weights():
        model = transformers.AutoModel.from_config(config, dtype=torch.float32)
    model.tie_weights()
    model.config.use_cache = False
    for name, _ in list(model.named_children()):
        if re.search(HEADS, name):
            setattr(model, name, None)
    return model.eval()


def stored_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Parameter name in the model -> name in the file, which may have a prefix or the names of an old BERT."""
    old = {"gamma": "weight", "beta": "bias"}
    found = {}
    for name in names:
        path, _, kind = name.removeprefix(model.base_model_prefix + ".").rpartition(".")
        found[f"{path}.{old.get(kind, kind)}"] = name
    return found


def _load(auto_class: str, folder: ModelFolder, **kwargs: Any) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return load_model(getattr(transformers, auto_class), folder, **kwargs)
