"""Narrower models: configurations and layers for models that have lost heads and neurons."""

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.derivation import empty_model
from llm_sparsity.models.structure import Structure

NEURONS = ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim", "d_ff", "d_inner")  # keys of config.json
# Attributes of attention modules that hold the number of outputs of all heads together.
WIDTHS = {"split_size", "all_head_size", "inner_dim"}


def narrowed_config(config: dict[str, Any], stack: str, part: str, share: Fraction) -> dict[str, Any]:
    """The configuration after every layer of a stack kept a share of its heads or neurons.

    Most configuration classes cannot express fewer heads than they were made for. `resize_to_checkpoint` narrows such
    models after they are built.

    Args:
        config: the model's configuration; it is not changed.
        stack: "encoder" or "decoder".
        part: "attention" or "mlp".
        share: the share kept.
    """
    changed = dict(config)
    if part == "mlp":
        for key in (*NEURONS, f"{stack}_ffn_dim"):
            if key in config:
                changed[key] = int((config[key] or 4 * (config.get("n_embd") or config["hidden_size"])) * share)
    elif config.get("num_key_value_heads"):
        changed["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        for key in ("num_attention_heads", "num_key_value_heads"):
            changed[key] = int(config[key] * share)
    return changed


def differ_by(before: Any, after: Any, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether the models without a head that two configurations make differ by the shapes of some parameters alone.

    Args:
        before, after: configurations of transformers.
        shapes: name in the model -> shape by `after`.
    """
    import transformers

    try:
        old, new = (dict(empty_model(transformers.AutoModel, each).named_parameters()) for each in (before, after))
    except UserError:
        return False
    return old.keys() == new.keys() and all(
        tuple(weight.shape) == tuple(shapes.get(name, old[name].shape)) for name, weight in new.items()
    )


def resize_to_checkpoint(model: Any, structure: Structure, shapes: Mapping[str, Sequence[int]]) -> None:
    """Narrow a model's layers, in place, to the shapes of the tensors that it will hold.

    Args:
        model: a transformers model, on any device. Resized parameters lose their values.
        structure: of the model.
        shapes: name in the model -> shape.
    """
    shares: dict[str, Fraction] = {}
    modules: dict[str, list[str]] = {}  # attention block -> its narrowed modules
    for name, old in list(model.named_parameters()):
        shape, axis = shapes.get(name), structure.axis(name)
        if shape is None or tuple(shape) == tuple(old.shape) or axis is None:
            continue
        path, _, field = name.rpartition(".")
        module = model.get_submodule(path)
        setattr(module, field, torch.nn.Parameter(old.new_empty(tuple(shape)), old.requires_grad))
        if field == "weight":
            sizes = ("nx", "nf") if structure.is_transposed(name) else ("out_features", "in_features")
            for size, value in zip(sizes, shape, strict=True):
                setattr(module, size, value)
        if ".attention" in axis.block:
            shares[axis.block] = Fraction(shape[axis.dim], old.shape[axis.dim])
            modules.setdefault(axis.block, []).append(path)
    for block, paths in modules.items():
        root = os.path.commonpath([path.replace(".", "/") for path in paths]).replace("/", ".")
        for module in model.get_submodule(root).modules():
            _narrow_counts(module, shares[block])


def _narrow_counts(module: Any, share: Fraction) -> None:
    """Scale the numbers of heads, and of their outputs, in the attributes of a module."""
    for name, value in list(vars(module).items()):
        counts = name in WIDTHS or ("head" in name and not name.endswith(("dim", "size")))
        if counts and type(value) is int and (value * share).denominator == 1:
            setattr(module, name, int(value * share))


def check_runs(model: Any, structure: Structure, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that transformers' classes run a model that is narrower than they were made for.

    The weights are zeros that take no memory: what is checked is that all shapes agree, those that code computes from
    the configuration too, such as the slopes of ALiBi.

    Args:
        model: without a head; its parameters are on the meta device, its buffers are real.
        structure: of the model.
        shapes: name in the model -> shape, of those that are narrower.

    Raises:
        UserError: they do not.
    """
    resize_to_checkpoint(model, structure, shapes)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # others need weights that take memory
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                zeros = torch.zeros((), dtype=torch.float32).expand(weight.shape)
                module._parameters[name] = torch.nn.Parameter(zeros, requires_grad=False)
    try:
        with torch.inference_mode():
            model(input_ids=torch.arange(4)[None])
    except Exception as error:  # any that a model's code raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"method structured: transformers' {type(model).__name__} does not run with fewer heads or neurons "
            f"({reason}); choose another scope, or another method"
        ) from error
