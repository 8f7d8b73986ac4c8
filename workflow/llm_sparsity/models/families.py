"""Model families: the only place that knows tensor names.

A family is a few patterns over tensor names. They give each tensor its role: the part of the model it belongs to, its
layer, and its stack.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from llm_sparsity.jobs.errors import UserError

# The parts of a model that each scope covers.
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

# Poolers, and the heads of pretraining and of tasks. They belong to no scope.
HEADS = r"pooler|lm_head|classifi|score|^cls\.|qa_outputs|^vocab_|_predictions\."
# Heads of classification, which belong to a task.
CLASSIFIERS = r"^((pre_)?classif|score\b)"
# Output layers that a configuration may tie to the input embeddings.
OUTPUT_LAYERS = r"^(lm_head(\.decoder)?|embed_out|cls\.predictions\.decoder|vocab_projector|generator_lm_head)\.weight$"
# Buffers that old checkpoints hold; models compute them.
BUFFERS = (
    r"(^|\.)(position_ids|token_type_ids|masked_bias|inv_freq|(cos|sin)_cached|version|(cross)?(attn|attention)\.bias)$"
    r"|^final_logits_bias$"
)


@dataclass(frozen=True)
class TensorRole:
    """The role of a prunable tensor.

    stack: "encoder" or "decoder".
    layer: the layer's number, from 0; -1 outside the layers.
    part: "attention", "mlp", "embeddings" or "norm".
    """

    stack: str
    layer: int
    part: str

    def in_scope(self, scope: str) -> bool:
        """Whether the tensor belongs to a scope.

        `encoder` and `decoder` are the matrices of one stack, `layers.0.3` those of layers 0 and 3 of every stack. The
        other scopes are in `PARTS_OF_SCOPE`.
        """
        word, *layers = scope.split(".")
        if self.part not in PARTS_OF_SCOPE[word]:
            return False
        if word == "layers":
            return str(self.layer) in layers
        return word not in ("encoder", "decoder") or self.stack == word


@dataclass(frozen=True)
class PrunableAxis:
    """The dimension of a tensor along which heads or neurons are removed.

    block: name of the attention or feed-forward block. All tensors of a block shrink together.
    dim: the dimension.
    fused: 3 if query, key and value are concatenated along it, else 1.
    """

    block: str
    dim: int
    fused: int


@dataclass(frozen=True)
class Family:
    """Tensor names of related models. Each pattern is searched in a name without its `.weight`.

    types: values of `model_type` in config.json.
    architecture: "encoder", "decoder" or "encoder-decoder".
    layer: matches a layer's name after the base model's prefix; its group is the layer's number.
    words: the input embeddings, without the base model's prefix.
    attention, mlp, embeddings, norm: match the tensors of each part.
    inner: matches the matrices whose outputs are heads or neurons. The other matrices take them as inputs.
    transposed: whether matrices are stored as (in, out), as GPT-2's Conv1D does.
    alias: matches copies of a tied tensor that some files hold beside `shared`.
    fused: matches matrices that concatenate query, key and value.
    """

    types: tuple[str, ...]
    architecture: str
    layer: str
    words: str
    attention: str
    mlp: str
    embeddings: str
    norm: str
    inner: str
    transposed: bool = False
    alias: str = "^$"
    fused: str = "^$"

    @cached_property
    def _parts(self) -> dict[str, re.Pattern[str]]:
        return {part: re.compile(getattr(self, part)) for part in ("norm", "attention", "mlp", "embeddings")}

    def role(self, name: str) -> TensorRole | None:
        """The role of a tensor; None for biases, buffers, poolers and heads, which are never pruned."""
        stem, _, kind = name.rpartition(".")
        if kind != "weight" or re.search(HEADS, stem):
            return None
        layer = re.search(self.layer, stem)
        for part, pattern in self._parts.items():
            if pattern.search(stem):
                stack = self.architecture
                if stack == "encoder-decoder":
                    stack = "decoder" if re.search(r"(^|\.)decoder\.", stem) else "encoder"
                return TensorRole(stack, int(layer.group(1)) if layer else -1, part)
        return None

    def axis(self, name: str) -> PrunableAxis | None:
        """The axis of heads or neurons of a weight or bias; None if it has none, as an output projection's bias."""
        stem, _, kind = name.rpartition(".")
        role = self.role(f"{stem}.weight")
        if role is None or role.part not in PARTS_OF_SCOPE["linear"] or kind not in ("weight", "bias"):
            return None
        inner = re.search(self.inner, stem) is not None
        if kind == "bias" and not inner:
            return None
        cross = ".cross" if re.search(r"encoder_attn|crossattention", stem) else ""
        return PrunableAxis(
            block=f"{role.stack}.{role.layer}.{role.part}{cross}",
            dim=0 if kind == "bias" or inner != self.transposed else 1,
            fused=3 if re.search(self.fused, stem) else 1,
        )

    def is_transposed(self, name: str) -> bool:
        """Whether a matrix is stored as (in, out); embeddings never are."""
        role = self.role(name)
        return self.transposed and role is not None and role.part in PARTS_OF_SCOPE["linear"]

    def blocks(self, modules: Iterable[str]) -> list[str]:
        """The names of the transformer blocks among the names of a model's modules, in order."""
        return [name for name in modules if (found := re.search(self.layer, f"{name}.")) and found.end() >= len(name)]

    def module_names(self, names: Iterable[str]) -> dict[str, str]:
        """Name in the model -> name in a checkpoint, for each tensor of the checkpoint.

        They are the same but for two kinds of files. Old ones call the weight and bias of a norm gamma and beta. And of
        tied tensors a file may keep any: if the input embeddings are absent, a copy stands for them.
        """
        found = {re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", _norm_parameter, name): name for name in names}
        layers = (re.search(self.layer, name) for name in found)
        prefix = next((layer.string[: layer.start()] for layer in layers if layer), "")
        words = f"{prefix}{self.words}.weight"
        copies = [name for name in found if re.search(self.alias, name.removesuffix(".weight"))]
        copies += [name for name in found if re.search(OUTPUT_LAYERS, name)]
        if words not in found and copies:
            found[words] = found.pop(copies[0])
        return found

    def without_aliases(self, names: list[str]) -> list[str]:
        """The names of a checkpoint's tensors, with tied tensors listed once."""
        if not any(name.endswith("shared.weight") for name in names):
            return names
        return [name for name in names if not re.search(self.alias, name.removesuffix(".weight"))]


def _norm_parameter(old: re.Match[str]) -> str:
    return {"gamma": "weight", "beta": "bias"}[old.group()]


BERT = Family(
    types=("bert", "roberta", "xlm-roberta", "electra"),
    architecture="encoder",
    layer=r"encoder\.layer\.(\d+)",
    words="embeddings.word_embeddings",
    attention=r"attention\.self\.(query|key|value)$|attention\.output\.dense$",
    mlp=r"(intermediate|layer\.\d+\.output)\.dense$",
    embeddings=r"embeddings\.\w+_embeddings$|embeddings_project$",
    norm=r"LayerNorm$",
    inner=r"self\.(query|key|value)$|intermediate\.dense$",
)

DISTILBERT = Family(
    types=("distilbert",),
    architecture="encoder",
    layer=r"transformer\.layer\.(\d+)",
    words="embeddings.word_embeddings",
    attention=r"attention\.(q|k|v|out)_lin$",
    mlp=r"ffn\.lin[12]$",
    embeddings=r"embeddings\.\w+_embeddings$",
    norm=r"LayerNorm$|layer_norm$",
    inner=r"(q|k|v)_lin$|lin1$",
)

GPT2 = Family(
    types=("gpt2",),
    architecture="decoder",
    layer=r"\bh\.(\d+)\.",
    words="wte",
    attention=r"attn\.c_(attn|proj)$",
    mlp=r"mlp\.c_(fc|proj)$",
    embeddings=r"(^|\.)w[tp]e$",
    norm=r"ln_(\d|f)$",
    inner=r"c_(attn|fc)$",
    fused=r"c_attn$",
    transposed=True,
)

LLAMA = Family(
    types=("llama", "mistral", "qwen2", "qwen3"),
    architecture="decoder",
    layer=r"layers\.(\d+)\.",
    words="embed_tokens",
    attention=r"self_attn\.[qkvo]_proj$",
    mlp=r"mlp\.(gate|up|down)_proj$",
    embeddings=r"embed_tokens$",
    norm=r"norm$",
    inner=r"[qkv]_proj$|(gate|up)_proj$",
)

OPT = Family(
    types=("opt",),
    architecture="decoder",
    layer=r"decoder\.layers\.(\d+)\.",
    words="decoder.embed_tokens",
    attention=r"self_attn\.([qkv]|out)_proj$",
    mlp=r"layers\.\d+\.fc[12]$",
    embeddings=r"embed_(tokens|positions)$|project_(in|out)$",
    norm=r"layer_norm$",
    inner=r"[qkv]_proj$|fc1$",
)

GPT_NEOX = Family(
    types=("gpt_neox",),
    architecture="decoder",
    layer=r"layers\.(\d+)\.",
    words="embed_in",
    attention=r"attention\.(query_key_value|dense)$",
    mlp=r"mlp\.dense_(h_to_4h|4h_to_h)$",
    embeddings=r"embed_in$",
    norm=r"norm$",
    inner=r"query_key_value$|h_to_4h$",
)

BART = Family(
    types=("bart", "mbart"),
    architecture="encoder-decoder",
    layer=r"(?:encoder|decoder)\.layers\.(\d+)\.",
    words="shared",
    attention=r"(self|encoder)_attn\.([qkv]|out)_proj$",
    mlp=r"layers\.\d+\.fc[12]$",
    embeddings=r"shared$|embed_(tokens|positions)$",
    norm=r"layer_?norm(_embedding)?$",
    inner=r"[qkv]_proj$|fc1$",
    alias=r"(encoder|decoder)\.embed_tokens$",
)


FAMILIES = {
    "BERT": BERT,
    "DISTILBERT": DISTILBERT,
    "GPT2": GPT2,
    "LLAMA": LLAMA,
    "OPT": OPT,
    "GPT_NEOX": GPT_NEOX,
    "BART": BART,
}


def family_name(model_type: str) -> str | None:
    """The name of the family in `FAMILIES` that covers a model type; None if there is none."""
    return next((name for name, family in FAMILIES.items() if model_type in family.types), None)


def family_of(model_type: str) -> Family:
    """The family of a model type.

    Raises:
        UserError: no family covers it.
    """
    name = family_name(model_type)
    if name is None:
        known = ", ".join(kind for family in FAMILIES.values() for kind in family.types)
        raise UserError(
            f"model type {model_type!r} is not known; known: {known}. "
            "A family is a few patterns: add it to FAMILIES in workflow/llm_sparsity/models/families.py"
        )
    return FAMILIES[name]
