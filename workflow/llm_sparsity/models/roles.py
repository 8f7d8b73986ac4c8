"""What a tensor is for, as values: its role, its axis of heads or neurons, and the scopes that hold it.

`derivation` takes them from a model. The words that no structure tells are here.
"""

from dataclasses import dataclass

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

# Names of modules that mix tokens; the other matrices of a layer are feed-forward.
ATTENTION = r"(?i)attn|attention|mixer|mamba"
# Names of modules that choose experts, a few weights each; they belong to no scope.
ROUTERS = r"(^|\.)(router|gate|shared_expert_gate)(\.|$)"
# Names of linear layers whose weight and bias a model's code reads, in place of calling them, as Mamba's does.
READ = r"(^|\.)dt_proj$"
# Names of parameters of layers that are no matrices, though they have several dimensions.
VECTORS = r"bias|embed"
# Poolers, which belong to no scope, and which pretraining need not have trained.
POOLERS = r"(^|\.)pooler"
# Poolers, and heads of pretraining and of tasks, in files whose names do not tell body and head apart.
HEADS = r"pooler|lm_head|^embed_out\.|classifi|score|^cls\.|qa_outputs|^vocab_|_predictions\."
# Heads of classification, which belong to a task.
CLASSIFIERS = r"^((pre_)?classif|score\b|logits_proj|sequence_summary)"
# Buffers that old checkpoints hold; models compute them.
BUFFERS = (
    r"(^|\.)(position_ids|token_type_ids|masked_bias|inv_freq|(cos|sin)_cached|version|(cross)?(attn|attention)\.bias)$"
    r"|^final_logits_bias$"
)
# Types that transformers also makes causal, or only causal, but that are pretrained to fill in words.
ENCODERS = {"xlnet", "xlm"}


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

    @property
    def is_matrix(self) -> bool:
        """Whether the tensor is a matrix of a layer."""
        return self.part in PARTS_OF_SCOPE["linear"]

    def in_scope(self, scope: str) -> bool:
        """Whether the tensor belongs to a scope.

        `encoder` and `decoder` are the matrices of one stack, `layers.0.3` those of layers 0 and 3 of every stack. The
        other scopes are in `PARTS_OF_SCOPE`.
        """
        word = scope.partition(".")[0]
        if self.part not in PARTS_OF_SCOPE[word]:
            return False
        if word == "layers":
            return self.layer in layers_of(scope)
        return word not in ("encoder", "decoder") or self.stack == word


def layers_of(scope: str) -> list[int]:
    """The layers that a scope lists, as `layers.0.3` does; none of other scopes."""
    return [int(number) for number in scope.split(".")[1:]]


@dataclass(frozen=True)
class LayerMatrix:
    """A matrix of a layer.

    block: its attention or feed-forward block, such as "encoder.0.attention".
    ends_block: whether it gives the output of the block.
    is_linear: whether a module of its own multiplies by it, so that its inputs can be observed; experts are packed.
    is_transposed: whether it is stored as (in, out), as GPT-2's Conv1D does.
    why_whole: why its heads or neurons cannot be told apart; "" if they can.
    """

    block: str
    ends_block: bool
    is_linear: bool
    is_transposed: bool
    why_whole: str


@dataclass(frozen=True)
class PrunableAxis:
    """The dimension of a tensor along which heads or neurons are removed.

    block: name of the attention or feed-forward block. All tensors of a block shrink together.
    dim: the dimension.
    parts: relative sizes of the matrices that are concatenated along it: (1, 1, 1) for query, key and value, (4, 1, 1)
        if four queries share a key, (1, 1) for a gate and what it multiplies, else (1,).
    """

    block: str
    dim: int
    parts: tuple[int, ...]

    def sizes(self, length: int) -> list[int]:
        """The sizes of the concatenated matrices along a dimension of some length."""
        return [part * length // sum(self.parts) for part in self.parts]
