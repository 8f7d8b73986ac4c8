"""A model folder as plain transformers saves it: one set of files for every program that loads models of the hub."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llm_sparsity.data.model_files import COMPANIONS, matching
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.files import read_json

# Fields of a configuration that say how weights were stored, or where code lies; the export has neither.
LEFTOVERS = {"quantization_config", "compression_config", "sparsity_config", "auto_map"}
OWN = ("config.json", "README.md")  # files that the export writes anew


def check_plain(folder: ModelFolder) -> None:
    """Check that the model which transformers makes of a configuration has the shapes of a folder's tensors.

    Most configurations cannot express fewer attention heads than they were made for, nor layers of several widths.

    Raises:
        UserError: structured pruning made a layer narrower than the configuration can express.
    """
    from llm_sparsity.models.checkpoint import stored_names
    from llm_sparsity.models.loading import load_skeleton

    model = load_skeleton(folder)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with folder.open() as reader:
        for name, stored in stored_names(model, reader.names).items():
            if name in parameters and (shape := reader.shape(stored)) != (own := tuple(parameters[name].shape)):
                raise UserError(
                    f"{folder}: structured pruning has made {stored} {_size(shape)}, but by config.json transformers' "
                    f"{type(model).__name__} has {_size(own)}, so only this program can load the model: "
                    "llm_sparsity.models.loading; for other programs, prune with `mlp` or a method that keeps shapes"
                )


def load_plain(folder: ModelFolder, facts: Mapping[str, Any]) -> Any:
    """The transformers model that a folder is exported as, its weights in the dtypes of the checkpoint.

    Args:
        folder: a model folder.
        facts: its manifest.

    Returns:
        A classifier with its labels if the model was fine-tuned on some, a causal language model if it is a decoder,
        and else one of the class that config.json names; without the head where the folder holds none.

    Raises:
        UserError: the folder's tensors are not those of its configuration.
    """
    import torch
    import transformers

    from llm_sparsity.models.classes import held_class, stored_parameters
    from llm_sparsity.models.loading import load_model, loading_dtype

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    labels = [str(label) for label in (facts.get("task") or {}).get("labels") or []]
    fields: dict[str, Any] = {}
    if labels:
        fields = {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
    dtype = loading_dtype(folder, torch.device("cuda"))  # holds all weights exactly but those of float64
    model = load_model(held_class(folder, _wanted(folder, facts), **fields), folder, dtype=dtype, **fields)
    with folder.open() as reader:
        for name, stored in stored_parameters(model, folder).items():
            weight, kind = model.get_parameter(name), reader.dtype(stored)
            weight.data = reader.tensor(stored) if kind == torch.float64 else weight.data.to(kind)
    for field in LEFTOVERS & vars(model.config).keys():
        delattr(model.config, field)
    return model


def save_plain(model: Any, folder: ModelFolder, output: Path, max_shard_size: str) -> None:
    """Write a model of `load_plain`, and the folder's tokenizer, generation settings and licence.

    Args:
        model: the model.
        folder: that it was loaded from.
        output: folder to write.
        max_shard_size: of a weight file, such as "5GB"; a larger model has several, and an index.
    """
    from llm_sparsity.models.classes import drawn_parameters

    drawn = set(drawn_parameters(model, folder))
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in drawn}
    if not model._weight_conversions:  # None: all of the type. The names of a trained model are those of its class, in
        model._weight_conversions = None  # which experts are fused; other programs read those of the hub
    try:
        model.save_pretrained(output, state_dict=weights, max_shard_size=max_shard_size)
    except SafetensorError as error:  # of the disk, as text
        raise UserError(f"{output.parent}: weights cannot be written: {error}; free some space and run again") from None
    _add_older_names(output / "config.json")
    for path in output.glob("*.safetensors"):
        shutil.copymode(output / "config.json", path)  # safetensors lets nobody else read its files
    for path in matching(folder.path, COMPANIONS):
        if path.name not in OWN:
            (output / path.name).write_bytes(path.read_bytes())
    if model.config.pad_token_id is not None and type(model).__name__.endswith("ForSequenceClassification"):
        folder.tokenizer.padding_side = folder.padding_side
        folder.tokenizer.save_pretrained(output)  # with the padding that the classifier was trained with


def _add_older_names(path: Path) -> None:
    """Add the names by which transformers 4, and programs of its time, read rotary positions.

    They would take their own default for the base without a word. transformers 5 reads and writes `rope_parameters`.
    """
    config = read_json(path)
    rope = config.get("rope_parameters") or {}
    if "rope_theta" not in rope:  # none, or one for each kind of layer, for which these programs have other names
        return
    config |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key not in config}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _wanted(folder: ModelFolder, facts: Mapping[str, Any]) -> Iterator[Any]:
    """The auto classes that are in question, the best first.

    Args:
        folder: a model folder.
        facts: its manifest.
    """
    import transformers

    from llm_sparsity.models.classes import named_class

    if "task" in facts:
        yield transformers.AutoModelForSequenceClassification
    if facts.get("architecture") == "decoder":
        yield transformers.AutoModelForCausalLM
    if folder.class_name:
        yield named_class(folder)
    else:  # a folder that holds the head of pretraining keeps it
        yield from (transformers.AutoModelForMaskedLM, transformers.AutoModelForSeq2SeqLM)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
