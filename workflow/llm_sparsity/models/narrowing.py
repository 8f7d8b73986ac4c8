"""Narrower models: configurations and layers for models that have lost heads and neurons."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from llm_sparsity.models.families import Family


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
        for key in ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim", f"{stack}_ffn_dim"):
            if key in config:
                changed[key] = int((config[key] or 4 * config["n_embd"]) * share)
    elif config.get("num_key_value_heads"):
        changed["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        for key in ("num_attention_heads", "num_key_value_heads"):
            changed[key] = int(config[key] * share)
    return changed


def resize_to_checkpoint(model: Any, family: Family, shapes: Mapping[str, Sequence[int]]) -> None:
    """Narrow a model's layers, in place, to the shapes of the tensors that it will hold.

    Args:
        model: a transformers model, on any device. Resized parameters lose their values.
        family: its family.
        shapes: name in the model -> shape.
    """
    import torch

    for name, old in list(model.named_parameters()):
        shape = shapes.get(name)
        if shape is None or tuple(shape) == tuple(old.shape) or family.axis(name) is None:
            continue
        path, _, field = name.rpartition(".")
        module = model.get_submodule(path)
        setattr(module, field, torch.nn.Parameter(old.new_empty(tuple(shape)), old.requires_grad))
        if field == "weight":
            sizes = ("nx", "nf") if family.is_transposed(name) else ("out_features", "in_features")
            for size, value in zip(sizes, shape, strict=True):
                setattr(module, size, value)
    for module in model.modules():
        if hasattr(module, "split_size"):  # GPT-2 splits the outputs of the fused matrix into three
            module.split_size = module.c_attn.nf // 3
        if hasattr(module, "num_heads") and hasattr(module, "q_proj"):
            module.num_heads = module.q_proj.out_features // module.head_dim
