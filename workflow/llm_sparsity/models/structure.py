"""The structure of a model: what each of its tensors is for, derived from the model itself.

transformers makes the model from its configuration, without weights. Lists of modules that hold matrices are stacks of
layers; their matrices are those of attention or of feed-forward. Embeddings are what their class says, norms are
vectors, and what only a model for a task has is its head. So a type that this program has never seen needs no word about
it; the few words that no structure tells are in `roles`.

transformers also tells how names in files differ from names in the model (see `names`), which matrices tensor
parallelism splits by outputs (see `axes`), and which tensors are tied.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import Embedding, Linear, Module, ModuleList
from transformers.models.auto import modeling_auto as auto
from transformers.pytorch_utils import Conv1D

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.axes import Matrix, block_axes, readers_of
from llm_sparsity.models.names import ModuleNames, modern
from llm_sparsity.models.roles import ATTENTION, ENCODERS, POOLERS, ROUTERS, VECTORS, PrunableAxis, TensorRole

CLASSES = {
    "encoder": "AutoModelForMaskedLM",
    "decoder": "AutoModelForCausalLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
}


@dataclass(frozen=True)
class Structure:
    """What the tensors of a model are for. Tensors are asked for by any name: a file's, or a model's with any head.

    architecture: "encoder", "decoder" or "encoder-decoder".
    layers: names of the layers in the model without a head, in order.
    repeats: how often each layer runs: more than once if layers share their weights.
    is_chain: whether the layers of a stack run one after the other, in order, each with the outputs of the one before.
    heads: stack -> attention heads in each of its layers; with grouped queries, groups.
    roles: name in the model without a head -> role.
    blocks: name of a matrix of a layer -> its attention or feed-forward block.
    ends: names of the matrices that give the output of a block.
    axes: name of a weight or bias -> its axis of heads or neurons.
    whole: name of a matrix whose heads or neurons cannot be told apart -> the reason.
    transposed: names of matrices that are stored as (in, out), as GPT-2's Conv1D does.
    linear: names of the weights that a module of their own multiplies by.
    tied: name -> the name of the tensor that it is a copy of.
    words: name of the input embeddings.
    first_position: the number that positions start at: after the padding index, where their table has one.
    output: name of the output layer's weight in the model with a head; "" if there is none.
    output_is_tied: whether the output layer is the input embeddings.
    """

    architecture: str
    layers: tuple[str, ...]
    repeats: int
    is_chain: bool
    heads: Mapping[str, int]
    roles: Mapping[str, TensorRole]
    blocks: Mapping[str, str]
    ends: frozenset[str]
    axes: Mapping[str, PrunableAxis]
    whole: Mapping[str, str]
    transposed: frozenset[str]
    linear: frozenset[str]
    tied: Mapping[str, str]
    words: str
    first_position: int
    output: str
    output_is_tied: bool
    _body: ModuleNames
    _headed: ModuleNames

    def role(self, name: str) -> TensorRole | None:
        """The role of a tensor; None for biases, buffers, poolers, routers and heads, which are never pruned."""
        return self.roles.get(self.body_name(name))

    def axis(self, name: str) -> PrunableAxis | None:
        """The axis of heads or neurons of a weight or bias; None if it has none, as an output projection's bias."""
        return self.axes.get(self.body_name(name))

    def why_whole(self, name: str) -> str:
        """Why heads or neurons of a matrix cannot be told apart; "" if they can."""
        return self.whole.get(self.body_name(name), "")

    def block(self, name: str) -> str:
        """The attention or feed-forward block of a matrix; "" if it has none."""
        return self.blocks.get(self.body_name(name), "")

    def ends_block(self, name: str) -> bool:
        """Whether a matrix gives the output of its block."""
        return self.body_name(name) in self.ends

    def is_transposed(self, name: str) -> bool:
        """Whether a matrix is stored as (in, out); embeddings never are."""
        return self.body_name(name) in self.transposed

    def is_linear(self, name: str) -> bool:
        """Whether a tensor is the weight of a linear layer, whose inputs can be observed."""
        return self.body_name(name) in self.linear

    def is_output_layer(self, name: str) -> bool:
        """Whether a tensor is the weight of the model's output layer."""
        return bool(self.output) and self._headed.name(name) == self.output

    def file_names(self, stored: Iterable[str]) -> dict[str, str]:
        """Name to use -> name in a checkpoint, for each tensor of the checkpoint.

        They are the same but for two kinds of files. Old ones call the weight and bias of a norm gamma and beta. And of
        tied tensors a file may keep any: if the input embeddings are absent, a copy stands for them.
        """
        found = {modern(name): name for name in stored}
        places = {name: self.body_name(name) for name in found}
        if self.words not in places.values():
            copies = [name for name, place in places.items() if self.tied.get(place) == self.words]
            copies += [name for name in found if self.output_is_tied and self.is_output_layer(name)]
            layers = (name.removesuffix(place) for name, place in places.items() if place and name.endswith(place))
            if copies:
                found[next(layers, "") + self.words] = found.pop(copies[0])
        return found

    def without_copies(self, names: Iterable[str]) -> list[str]:
        """The names of a checkpoint's tensors, with tied tensors listed once."""
        places = {name: self.body_name(name) for name in names}
        held = set(places.values())
        return [name for name, place in places.items() if self.tied.get(place) not in held]

    def is_fused(self, name: str) -> bool:
        """Whether transformers fuses a tensor of a checkpoint with others, as the matrices of experts."""
        return self._body.place(name).fused

    def body_name(self, name: str) -> str:
        """The name of a tensor in the model without a head; "" if it is not there."""
        return self._body.name(name) or ""


def derive(config: Any) -> Structure:
    """The structure of the model that transformers makes from a configuration.

    Raises:
        UserError: transformers makes no such model, it reads more than text, or it has no layers.
    """
    if more := [key for key in config.sub_configs if key.endswith(("vision_config", "audio_config"))]:
        raise UserError(
            f"model type {config.model_type!r} reads more than text ({more[0]}); choose its text model, or save that"
        )
    body = empty_model(transformers.AutoModel, config)
    if body.main_input_name != "input_ids":
        raise UserError(f"model type {config.model_type!r} reads {body.main_input_name}; choose a model of text")
    architecture = _architecture(config)
    return _Derivation(body, architecture).structure(_headed(config, architecture, body))


def empty_model(auto_class: Any, config: Any) -> Any:
    """A model whose parameters and buffers are on the meta device.

    Raises:
        UserError: transformers cannot make it.
    """
    try:
        with torch.device("meta"):
            model = auto_class.from_config(config)
        model.tie_weights()
    except Exception as error:  # each class checks its configuration in its own way
        reason = " ".join(str(error).split())
        raise UserError(f"transformers cannot make the model: {reason[:300]}; correct it") from error
    return model


def _architecture(config: Any) -> str:
    if config.is_encoder_decoder:
        return "encoder-decoder"
    kind = config.model_type
    masked, causal = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "decoder" if kind in causal and kind not in masked and kind not in ENCODERS else "encoder"


def _headed(config: Any, architecture: str, body: Any) -> Any:
    """The model with the head of pretraining; without one if transformers has no such class."""
    for name in dict.fromkeys((CLASSES[architecture], "AutoModelForCausalLM")):
        auto_class = getattr(transformers, name)
        if type(config) in auto_class._model_mapping:
            return empty_model(auto_class, config)
    return body


class _Derivation:
    """Derives the structure of a model without a head, whose parameters have no values."""

    def __init__(self, model: Any, architecture: str) -> None:
        self._model, self._architecture = model, architecture
        self._modules: dict[str, Any] = dict(model.named_modules())
        self._weights: dict[str, Tensor] = dict(model.named_parameters())
        self._stacks = {name: list(module) for name, module in self._modules.items() if _is_stack(module)}
        inner = {name for name in self._stacks if any(name.startswith(f"{other}.") for other in self._stacks)}
        self._outer = [name for name in self._stacks if name not in inner]
        self._layers = {f"{name}.{number}": number for name in self._outer for number in range(len(self._stacks[name]))}
        if not self._layers:
            raise UserError(
                f"model type {model.config.model_type!r}: {type(model).__name__} has no list of layers with matrices, "
                "which scopes are made of; choose another model"
            )

    def structure(self, headed: Any) -> Structure:
        roles = {name: role for name in self._weights if (role := self._role(name))}
        blocks = self._blocks(roles)
        ends, axes, whole = self._axes(blocks)
        names = {id(weight): name for name, weight in self._weights.items()}
        copies = self._model.named_parameters(remove_duplicate=False)
        words = names[id(self._model.get_input_embeddings().weight)]
        output = headed.get_output_embeddings() if headed is not self._model else None
        outputs = [name for name, module in headed.named_modules() if module is output]
        linear = {name for name in roles if isinstance(self._owner(name), Linear | Conv1D) and roles[name].is_matrix}
        return Structure(
            architecture=self._architecture,
            layers=tuple(self._layers),
            repeats=max(_attribute(self._model.config, ("num_hidden_layers",)) // len(self._layers), 1),
            is_chain=len(self._outer) <= (2 if self._architecture == "encoder-decoder" else 1),
            heads={stack: self._heads(stack) for stack in ("encoder", "decoder")},
            roles=roles,
            blocks={name: block for block, (_, names) in blocks.items() for name in names},
            ends=frozenset(ends),
            axes=axes,
            whole=whole,
            transposed=frozenset(name for name in linear if isinstance(self._owner(name), Conv1D)),
            linear=frozenset(linear),
            tied={name: names[id(weight)] for name, weight in copies if name != names[id(weight)]},
            words=words,
            first_position=self._first_position(),
            output=f"{outputs[0]}.weight" if outputs else "",
            output_is_tied=output is not None and output.weight is headed.get_input_embeddings().weight,
            _body=ModuleNames(self._model),
            _headed=ModuleNames(headed),
        )

    def _owner(self, name: str) -> Any:
        """The module that holds a parameter."""
        return self._modules[name.rpartition(".")[0]]

    def _layer(self, name: str) -> str:
        """The name of the layer that a tensor lies in; "" outside the layers."""
        parts = name.split(".")
        starts = (".".join(parts[:end]) for end in range(1, len(parts)))
        return next((start for start in starts if start in self._layers), "")

    def _role(self, name: str) -> TensorRole | None:
        weight, owner, layer = self._weights[name], self._owner(name), self._layer(name)
        stack = self._architecture
        if stack == "encoder-decoder":
            stack = "decoder" if "decoder" in name.split(".") else "encoder"
        last = name.rpartition(".")[2]
        if re.search(POOLERS, name) or (layer and re.search(ROUTERS, name.removeprefix(layer))):
            return None
        if weight.dim() == 1:
            return TensorRole(stack, self._layers.get(layer, -1), "norm") if last == "weight" else None
        if isinstance(owner, Embedding) or (isinstance(owner, Linear | Conv1D) and not layer):
            return TensorRole(stack, -1, "embeddings") if last == "weight" else None
        is_packed = weight.dim() == 3 and weight.shape[1] > 1 and last != "weight" and not re.search(VECTORS, last)
        if not layer or not (isinstance(owner, Linear | Conv1D) or is_packed):
            return None
        return TensorRole(stack, self._layers[layer], "attention" if self._attention(name, layer) else "mlp")

    def _attention(self, name: str, layer: str) -> str:
        """The name of the module of attention that a tensor lies in, the outermost one; "" if it lies in none."""
        if re.search(ATTENTION, layer.split(".")[-2]):  # a list of attentions alone, as in XLM
            return layer
        parts = name.split(".")
        inside = (".".join(parts[:end]) for end in range(layer.count(".") + 2, len(parts)))
        return next((each for each in inside if self._mixes(each)), "")

    def _mixes(self, module: str) -> bool:
        """Whether a module, by its name or its class, mixes tokens."""
        words = (module.rpartition(".")[2], type(self._modules[module]).__name__)
        return any(re.search(ATTENTION, word) and not re.search(r"(?i)norm", word) for word in words)

    def _heads(self, stack: str) -> int:
        return _attribute(
            self._model.config, ("num_key_value_heads", f"{stack}_attention_heads", "num_attention_heads")
        )

    def _axes(
        self, blocks: Mapping[str, tuple[str, list[str]]]
    ) -> tuple[list[str], dict[str, PrunableAxis], dict[str, str]]:
        """Matrices that end blocks; axes of weights and biases; and why some matrices have none."""
        config = self._model.config
        plan = getattr(config, "base_model_tp_plan", None) or {}
        ends: list[str] = []
        axes: dict[str, PrunableAxis] = {}
        whole: dict[str, str] = {}
        for block, (root, names) in blocks.items():
            stack, _, part, *_ = block.split(".")
            matrices = [self._matrix(name) for name in names]
            readers = readers_of(matrices, plan, _attribute(config, ("hidden_size",)))
            ends += [name for name, matrix in zip(names, matrices, strict=True) if matrix in readers]
            own = {f"{matrix.name}.{kind}" for matrix in matrices for kind in ("weight", "bias")} | set(names)
            inside = {name: weight.dim() for name, weight in self._weights.items() if name.startswith(f"{root}.")}
            others = {name: dims for name, dims in inside.items() if name not in own}
            found = block_axes(block, part, matrices, readers=readers, others=others, heads=self._heads(stack))
            if part == "attention" and (table := self._table_of_heads(stack)):
                found = f"{table} has a value for each head"
            if isinstance(found, str):
                whole |= dict.fromkeys(names, found)
            else:
                axes |= {name: axis for name, axis in found.items() if name in self._weights}
        return ends, axes, whole

    def _blocks(self, roles: Mapping[str, TensorRole]) -> dict[str, tuple[str, list[str]]]:
        """Attention or feed-forward block -> the module that holds it, and its matrices in the model's order."""
        names: dict[str, str] = {}  # module and part -> block
        blocks: dict[str, tuple[str, list[str]]] = {}
        for name, role in roles.items():
            if role.is_matrix:
                layer = self._layer(name)
                root = self._attention(name, layer) or layer
                first = f"{role.stack}.{role.layer}.{role.part}"
                if root + role.part not in names:
                    names[root + role.part] = first + ".cross" * sum(block.startswith(first) for block in blocks)
                blocks.setdefault(names[root + role.part], (root, []))[1].append(name)
        return blocks

    def _matrix(self, name: str) -> Matrix:
        owner, shape = self._owner(name), tuple(self._weights[name].shape)
        if isinstance(owner, Conv1D):
            return Matrix(name.removesuffix(".weight"), (shape[1], shape[0]), transposed=True)
        if isinstance(owner, Linear):
            return Matrix(name.removesuffix(".weight"), (shape[0], shape[1]))
        return Matrix(name, None)

    def _first_position(self) -> int:
        tables = [each for name, each in self._modules.items() if isinstance(each, Embedding) and "position" in name]
        return max((table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0)

    def _table_of_heads(self, stack: str) -> str:
        """The name of a table of relative positions with a column for each head, which all layers share; or ""."""
        config = self._model.config
        heads = _attribute(config, (f"{stack}_attention_heads", "num_attention_heads"))
        tables = {name: module for name, module in self._modules.items() if isinstance(module, Embedding)}
        narrow = (name for name, table in tables.items() if table.embedding_dim == heads)
        return next(narrow, "") if heads != _attribute(config, ("hidden_size",)) else ""


def _is_stack(module: Module) -> bool:
    """Whether a module is a list of layers: of modules that hold matrices, and are none themselves."""
    return (
        type(module) is ModuleList
        and len(module) > 0
        and all(any(isinstance(inner, Linear | Conv1D) for inner in list(layer.modules())[1:]) for layer in module)
    )


def _attribute(config: Any, keys: Iterator[str] | tuple[str, ...]) -> int:
    """The first of several attributes that a configuration sets; 1 if it sets none."""
    return int(next((value for key in keys if (value := getattr(config, key, None))), 1))
