"""Model families: the only place that knows tensor names, and how a folder becomes a model for a task.

A family is a few patterns over tensor names. They say for each tensor which part of the model it belongs to, in which
layer and in which stack. Nothing heavy is imported before a model is loaded.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_sparsity.errors import UserError
from llm_sparsity.files import read_json

PARTS_OF_SCOPE = {
    "all": {"attention", "mlp", "embeddings", "norm"},
    "linear": {"attention", "mlp"},
    "attention": {"attention"},
    "mlp": {"mlp"},
    "embeddings": {"embeddings"},
    "encoder": {"attention", "mlp"},
    "decoder": {"attention", "mlp"},
    "layers": {"attention", "mlp"},
}

# Tensors behind the base model: poolers, and the heads of pretraining and of tasks. In no scope.
HEADS = r"pooler|lm_head|classifi|score|^cls\.|qa_outputs|^vocab_|_predictions\."


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs: stack "encoder" or "decoder", layer (-1 outside the layers), part of the model."""

    stack: str
    layer: int
    part: str


@dataclass(frozen=True)
class Slot:
    """The dimension of a tensor that runs over the heads or neurons of a block.

    block: the attention or feed-forward block; its tensors grow and shrink together.
    dim: the dimension.
    fused: 3 where query, key and value stand behind each other along it, else 1.
    """

    block: str
    dim: int
    fused: int


@dataclass(frozen=True)
class Family:
    """Tensor names of related models. Patterns are searched in a name without its `.weight`."""

    types: tuple[str, ...]
    architecture: str
    layer: str
    attention: str
    mlp: str
    embeddings: str
    norm: str
    inner: str  # matrices whose outputs are heads or neurons; the others of attention and mlp take them as inputs
    transposed: bool = False  # GPT-2's Conv1D keeps its matrices as (in, out)
    alias: str = "^$"  # copies of a tied tensor, which some files hold beside `shared`
    fused: str = "^$"  # matrices that hold query, key and value behind each other

    @cached_property
    def _parts(self) -> dict[str, re.Pattern[str]]:
        return {part: re.compile(getattr(self, part)) for part in ("norm", "attention", "mlp", "embeddings")}

    def place(self, name: str) -> Place | None:
        """The place of a tensor; None for biases, buffers, poolers and heads, which are never pruned."""
        stem, _, kind = name.rpartition(".")
        if kind != "weight" or re.search(HEADS, stem):
            return None
        layer = re.search(self.layer, stem)
        for part, pattern in self._parts.items():
            if pattern.search(stem):
                stack = self.architecture
                if stack == "encoder-decoder":
                    stack = "decoder" if re.search(r"(^|\.)decoder\.", stem) else "encoder"
                return Place(stack, int(layer.group(1)) if layer else -1, part)
        return None

    def slot(self, name: str) -> Slot | None:
        """Where a weight or bias has heads or neurons; None where it has none (an output projection's bias, say)."""
        stem, _, kind = name.rpartition(".")
        place = self.place(f"{stem}.weight")
        if place is None or place.part not in PARTS_OF_SCOPE["linear"] or kind not in ("weight", "bias"):
            return None
        makes = re.search(self.inner, stem) is not None
        if kind == "bias" and not makes:
            return None
        cross = ".cross" if re.search(r"encoder_attn|crossattention", stem) else ""
        return Slot(
            block=f"{place.stack}.{place.layer}.{place.part}{cross}",
            dim=0 if kind == "bias" or makes != self.transposed else 1,
            fused=3 if re.search(self.fused, stem) else 1,
        )

    def is_transposed(self, name: str) -> bool:
        """Whether a matrix is stored as (in, out); embeddings never are."""
        place = self.place(name)
        return self.transposed and place is not None and place.part in PARTS_OF_SCOPE["linear"]

    def blocks(self, modules: Iterable[str]) -> list[str]:
        """The transformer blocks among the names of a model's modules, in their order: where `layer` ends."""
        return [name for name in modules if (found := re.search(self.layer, f"{name}.")) and found.end() >= len(name)]

    def without_aliases(self, names: list[str]) -> list[str]:
        """The names of a checkpoint's tensors, those that are tied counted once."""
        if not any(name.endswith("shared.weight") for name in names):
            return names
        return [name for name in names if not re.search(self.alias, name.removesuffix(".weight"))]


FAMILIES = (
    Family(
        types=("bert", "roberta", "xlm-roberta", "electra"),
        architecture="encoder",
        layer=r"encoder\.layer\.(\d+)",
        attention=r"attention\.self\.(query|key|value)$|attention\.output\.dense$",
        mlp=r"(intermediate|layer\.\d+\.output)\.dense$",
        embeddings=r"embeddings\.\w+_embeddings$|embeddings_project$",
        norm=r"LayerNorm$",
        inner=r"self\.(query|key|value)$|intermediate\.dense$",
    ),
    Family(
        types=("distilbert",),
        architecture="encoder",
        layer=r"transformer\.layer\.(\d+)",
        attention=r"attention\.(q|k|v|out)_lin$",
        mlp=r"ffn\.lin[12]$",
        embeddings=r"embeddings\.\w+_embeddings$",
        norm=r"LayerNorm$|layer_norm$",
        inner=r"(q|k|v)_lin$|lin1$",
    ),
    Family(
        types=("gpt2",),
        architecture="decoder",
        layer=r"(?:^|\.)h\.(\d+)\.",
        attention=r"attn\.c_(attn|proj)$",
        mlp=r"mlp\.c_(fc|proj)$",
        embeddings=r"(^|\.)w[tp]e$",
        norm=r"ln_(\d|f)$",
        inner=r"c_(attn|fc)$",
        fused=r"c_attn$",
        transposed=True,
    ),
    Family(
        types=("llama", "mistral", "qwen2", "qwen3"),
        architecture="decoder",
        layer=r"layers\.(\d+)\.",
        attention=r"self_attn\.[qkvo]_proj$",
        mlp=r"mlp\.(gate|up|down)_proj$",
        embeddings=r"embed_tokens$",
        norm=r"norm$",
        inner=r"[qkv]_proj$|(gate|up)_proj$",
    ),
    Family(
        types=("opt",),
        architecture="decoder",
        layer=r"layers\.(\d+)\.",
        attention=r"self_attn\.([qkv]|out)_proj$",
        mlp=r"layers\.\d+\.fc[12]$",
        embeddings=r"embed_(tokens|positions)$|project_(in|out)$",
        norm=r"layer_norm$",
        inner=r"[qkv]_proj$|fc1$",
    ),
    Family(
        types=("gpt_neox",),
        architecture="decoder",
        layer=r"layers\.(\d+)\.",
        attention=r"attention\.(query_key_value|dense)$",
        mlp=r"mlp\.dense_(h_to_4h|4h_to_h)$",
        embeddings=r"embed_in$",
        norm=r"norm$",
        inner=r"query_key_value$|h_to_4h$",
    ),
    Family(
        types=("bart", "mbart"),
        architecture="encoder-decoder",
        layer=r"layers\.(\d+)\.",
        attention=r"(self|encoder)_attn\.([qkv]|out)_proj$",
        mlp=r"layers\.\d+\.fc[12]$",
        embeddings=r"shared$|embed_(tokens|positions)$",
        norm=r"layer_?norm(_embedding)?$",
        inner=r"[qkv]_proj$|fc1$",
        alias=r"(encoder|decoder)\.embed_tokens$",
    ),
)


def family(folder: Path) -> Family:
    """The family of a model folder, from its config.json.

    Raises:
        UserError: no configuration, or a model type that no family covers.
    """
    try:
        model_type = read_json(folder / "config.json")["model_type"]
    except (FileNotFoundError, KeyError, ValueError):
        raise UserError(
            f"{folder}/config.json: not the configuration of a transformers model; expected `model_type`"
        ) from None
    for candidate in FAMILIES:
        if model_type in candidate.types:
            return candidate
    known = ", ".join(name for candidate in FAMILIES for name in candidate.types)
    raise UserError(
        f"{folder}/config.json: model type {model_type!r} is not known; known: {known}. "
        "A family is a few patterns: add it to FAMILIES in workflow/llm_sparsity/models.py"
    )


def in_scope(place: Place | None, scope: str) -> bool:
    """Whether a tensor belongs to a scope.

    See `PARTS_OF_SCOPE`. `encoder` and `decoder` are one stack's matrices, `layers.0.3` those of the layers 0 and 3 of
    every stack.
    """
    word, *layers = scope.split(".")
    if place is None or place.part not in PARTS_OF_SCOPE[word]:
        return False
    if word == "layers":
        return str(place.layer) in layers
    return word not in ("encoder", "decoder") or place.stack == word


def heads(folder: Path, stack: str) -> int:
    """How many attention heads a stack's layers have; with grouped queries, how many groups of them."""
    config = read_json(folder / "config.json")
    keys = ("num_key_value_heads", f"{stack}_attention_heads", "num_attention_heads", "n_head", "n_heads")
    return int(next(config[key] for key in keys if config.get(key)))


def narrower(config: dict[str, Any], stack: str, part: str, share: Fraction) -> dict[str, Any]:
    """A model's configuration after every layer of a stack kept this share of its heads or neurons.

    Most classes have no word for fewer heads than they were made for; `fit` makes them narrower all the same.
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


def fit(model: Any, kind: Family, shapes: Mapping[str, Sequence[int]]) -> None:
    """Narrow a model's layers, in place, to the shapes of the tensors that it is to hold.

    Args:
        model: a transformers model, on any device; what is narrowed loses its values.
        kind: its family.
        shapes: name -> shape, with or without the base model's prefix.
    """
    import torch

    prefix = model.base_model_prefix + "."
    for name, old in list(model.named_parameters()):
        names = (name, name.removeprefix(prefix), prefix + name)
        shape = next((shapes[known] for known in names if known in shapes), None)
        if shape is None or tuple(shape) == tuple(old.shape) or kind.slot(name) is None:
            continue
        path, _, field = name.rpartition(".")
        module = model.get_submodule(path)
        setattr(module, field, torch.nn.Parameter(old.new_empty(tuple(shape)), old.requires_grad))
        if field == "weight":
            sizes = ("nx", "nf") if kind.is_transposed(name) else ("out_features", "in_features")
            for size, value in zip(sizes, shape, strict=True):
                setattr(module, size, value)
    for module in model.modules():
        if hasattr(module, "split_size"):  # GPT-2 splits the fused matrix's outputs into three
            module.split_size = module.c_attn.nf // 3
        if hasattr(module, "num_heads") and hasattr(module, "q_proj"):
            module.num_heads = module.q_proj.out_features // module.head_dim


def max_length(folder: Path) -> int | None:
    """The longest sequence that a model has positions for; None when it sets no limit."""
    config = read_json(folder / "config.json")
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    if longest and config["model_type"] in ("roberta", "xlm-roberta"):
        longest -= config.get("pad_token_id", 1) + 1  # positions start behind the padding index
    return int(longest) if longest else None


def check_length(folder: Path, key: str, value: int) -> None:
    """Refuse a sequence length that a model has no positions for.

    Raises:
        UserError: `value` is larger than what the model allows.
    """
    longest = max_length(folder)
    if longest and value > longest:
        raise UserError(f"{key}: found {value}, but {folder.name} allows {longest} tokens at most; lower it")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder, with a padding token: a decoder that has none pads with its last token."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(folder: Path, *, labels: int, seed: int) -> Any:
    """A variant with a fresh classification head that depends on nothing but the seed.

    Decoders classify at the last token that is no padding; dropout is what the model's configuration says.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _load("AutoModelForSequenceClassification", folder, num_labels=labels)
    model.config.pad_token_id = load_tokenizer(folder).pad_token_id
    return model


def load_causal(folder: Path) -> Any:
    """A variant as a causal language model, for perplexity."""
    return _load("AutoModelForCausalLM", folder)


def load_base(folder: Path) -> Any:
    """A variant without any head: what all its tasks share."""
    return _load("AutoModel", folder)


def load_skeleton(folder: Path) -> Any:
    """A model without head and without weights, in evaluation mode: parameters are on the device meta, buffers real."""
    import torch
    import transformers
    from accelerate import init_empty_weights

    config = transformers.AutoConfig.from_pretrained(folder)
    with init_empty_weights():
        model = transformers.AutoModel.from_config(config, dtype=torch.float32)
    model.tie_weights()
    model.config.use_cache = False
    for name, _ in list(model.named_children()):
        if re.search(HEADS, name):
            setattr(model, name, None)
    return model.eval()


def stored_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """What a model calls its parameters -> what a file calls them: with the base model's name, or an old BERT's."""
    old = {"gamma": "weight", "beta": "bias"}
    found = {}
    for name in names:
        path, _, kind = name.removeprefix(model.base_model_prefix + ".").rpartition(".")
        found[f"{path}.{old.get(kind, kind)}"] = name
    return found


def load_model(auto_class: Any, folder: Path, **kwargs: Any) -> Any:
    """transformers' `from_pretrained` for any model folder, sparse or plain, in one call.

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

    from llm_sparsity.checkpoint import load

    config = transformers.AutoConfig.from_pretrained(folder, **kwargs)
    tensors = load(folder)
    with torch.device("meta"):
        model_class = type(auto_class.from_config(config))

    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)
        fit(self, family(folder), {name: tuple(tensor.shape) for name, tensor in tensors.items()})

    # The same class, whose layers are made as narrow as the tensors that they are to hold.
    fitted: Any = type(model_class.__name__, (model_class,), {"__init__": make, "__module__": model_class.__module__})
    model = fitted.from_pretrained(None, config=config, state_dict=tensors, dtype=torch.float32)
    model.__class__ = model_class
    return model


def _load(auto_class: str, folder: Path, **kwargs: Any) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return load_model(getattr(transformers, auto_class), folder, **kwargs)
