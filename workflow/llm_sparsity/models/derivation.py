"""Derive the structure of any model from the model itself.

transformers makes the model from its configuration, without weights. Lists of modules that hold matrices are stacks of
layers; their matrices are those of attention or of feed-forward. Embeddings are what their class says, norms are
vectors, and what only a model for a task has is its head. So a type that this program has never seen needs no word
about it; the few words that no structure tells are in `roles`.

transformers also tells how names in files differ from names in the model (see `names`), which matrices tensor
parallelism splits by outputs (see `axes`), and which tensors are tied.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import Embedding, Linear, Module, ModuleList
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto as auto
from transformers.pytorch_utils import Conv1D

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models import roles as words
from llm_sparsity.models.axes import Matrix, block_axes, readers_of
from llm_sparsity.models.names import ModuleNames
from llm_sparsity.models.roles import LayerMatrix, PrunableAxis, TensorRole
from llm_sparsity.models.structure import Structure

CLASSES = {
    "encoder": "AutoModelForMaskedLM",
    "decoder": "AutoModelForCausalLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
}


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
    table = None
    with suppress(NotImplementedError):  # of a model whose embeddings transformers does not find
        table = body.get_input_embeddings()
    if not hasattr(table, "weight"):
        raise UserError(f"model type {config.model_type!r} has no table of input embeddings; choose another model")
    architecture = _architecture(config)
    return _Derivation(body, architecture).structure(_headed(config, architecture, body))


def empty_model(auto_class: Any, config: Any) -> Any:
    """A model whose parameters and buffers are on the meta device.

    Raises:
        UserError: transformers cannot make it, or has no such model of this type.
    """
    if not hasattr(auto_class, "_model_mapping"):
        raise UserError(f"found {auto_class!r}; give one of transformers' Auto classes, such as AutoModelForCausalLM")
    if type(config) not in auto_class._model_mapping:
        kind = auto_class.__name__.removeprefix("AutoModel") or "model"
        raise UserError(f"transformers has no {kind} of type {config.model_type!r}; choose another model")
    try:
        with torch.device("meta"), no_init_weights():  # drawing numbers that nobody keeps takes half of the time
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
    return "decoder" if kind in causal and kind not in masked and kind not in words.ENCODERS else "encoder"


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
        lists = [name for name, module in self._modules.items() if _is_stack(module)]
        self._stacks = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
        self._layers = {f"{name}.{i}": i for name in self._stacks for i, _ in enumerate(self._modules[name])}
        if not self._layers:
            raise UserError(
                f"model type {model.config.model_type!r}: {type(model).__name__} has no list of layers with matrices, "
                "which scopes are made of; choose another model"
            )

    def structure(self, headed: Any) -> Structure:
        """The structure of the model.

        Args:
            headed: the model with the head of pretraining; the same model if there is none.
        """
        config = self._model.config
        roles = {name: role for name in self._weights if (role := self._role(name))}
        matrices, axes = self._matrices(roles)
        names = {id(weight): name for name, weight in self._weights.items()}
        copies = self._model.named_parameters(remove_duplicate=False)
        output = headed.get_output_embeddings() if headed is not self._model else None
        outputs = [name for name, module in headed.named_modules() if module is output]
        return Structure(
            architecture=self._architecture,
            layers=tuple(self._layers),
            repeats=max(_attribute(config, ["num_hidden_layers"]) // len(self._layers), 1),
            is_chain=len(self._stacks) <= (2 if self._architecture == "encoder-decoder" else 1),
            groups={stack: self._groups(stack) for stack in ("encoder", "decoder")},
            first_position=self._first_position(),
            roles=roles,
            matrices=matrices,
            axes=axes,
            tied={name: names[id(weight)] for name, weight in copies if name != names[id(weight)]},
            words=names[id(self._model.get_input_embeddings().weight)],
            output=f"{outputs[0]}.weight" if outputs else "",
            output_is_tied=output is not None and output.weight is headed.get_input_embeddings().weight,
            body=ModuleNames(self._model),
            headed=ModuleNames(headed),
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
        if re.search(words.POOLERS, name) or (layer and re.search(words.ROUTERS, name.removeprefix(layer))):
            return None
        if weight.dim() == 1:
            return TensorRole(stack, self._layers.get(layer, -1), "norm") if last == "weight" else None
        if isinstance(owner, Embedding) or (isinstance(owner, Linear | Conv1D) and not layer):
            return TensorRole(stack, -1, "embeddings") if last == "weight" else None
        is_packed = (
            weight.dim() == 3 and weight.shape[1] > 1 and last != "weight" and not re.search(words.VECTORS, last)
        )
        if not layer or not (isinstance(owner, Linear | Conv1D) or is_packed):
            return None
        return TensorRole(stack, self._layers[layer], "attention" if self._attention(name, layer) else "mlp")

    def _attention(self, name: str, layer: str) -> str:
        """The name of the module of attention that a tensor lies in, the outermost one; "" if it lies in none."""
        if re.search(words.ATTENTION, layer.split(".")[-2]):  # a list of attentions alone, as in XLM
            return layer
        parts = name.split(".")
        inside = (".".join(parts[:end]) for end in range(layer.count(".") + 2, len(parts)))
        return next((each for each in inside if self._mixes(each)), "")

    def _mixes(self, module: str) -> bool:
        """Whether a module, by its name or its class, mixes tokens."""
        called = (module.rpartition(".")[2], type(self._modules[module]).__name__)
        return any(re.search(words.ATTENTION, word) and not re.search(r"(?i)norm", word) for word in called)

    def _heads(self, stack: str) -> int:
        """The number of heads of a stack's attention."""
        return _attribute(self._model.config, [f"{stack}_attention_heads", "num_attention_heads"])

    def _groups(self, stack: str) -> int:
        """The number of groups of heads that share a key; without grouped queries, of heads."""
        keys = ["num_key_value_heads", f"{stack}_attention_heads", "num_attention_heads"]
        return _attribute(self._model.config, keys)

    def _matrices(self, roles: Mapping[str, TensorRole]) -> tuple[dict[str, LayerMatrix], dict[str, PrunableAxis]]:
        """What is known of the matrices of layers; and the axes of their weights and biases."""
        config = self._model.config
        plan = getattr(config, "base_model_tp_plan", None) or {}
        matrices: dict[str, LayerMatrix] = {}
        axes: dict[str, PrunableAxis] = {}
        for block, (root, names) in self._blocks(roles).items():
            inside = [self._matrix(name) for name in names]
            readers = readers_of(inside, plan, _attribute(config, ["hidden_size"]))
            found = self._block_axes(block, root, names, inside, readers)
            if not isinstance(found, str):
                axes |= {name: axis for name, axis in found.items() if name in self._weights}
            for name, matrix in zip(names, inside, strict=True):
                matrices[name] = LayerMatrix(
                    block=block,
                    ends_block=matrix in readers,
                    is_linear=matrix.shape is not None,
                    is_transposed=matrix.transposed,
                    why_whole=found if isinstance(found, str) else "",
                )
        return matrices, axes

    def _block_axes(
        self, block: str, root: str, names: Sequence[str], matrices: Sequence[Matrix], readers: Sequence[Matrix]
    ) -> dict[str, PrunableAxis] | str:
        """The axes of a block whose tensors lie in the module `root`, or the reason why it has none."""
        stack, _, part, *_ = block.split(".")
        if part == "attention" and (table := self._table_of_heads(stack)):
            return f"{table} has a value for each head"
        own = {*names, *(f"{matrix.name}.bias" for matrix in matrices)}
        inside = {name: weight.dim() for name, weight in self._weights.items() if name.startswith(f"{root}.")}
        others = {name: dims for name, dims in inside.items() if name not in own}
        heads, groups = self._heads(stack), self._groups(stack)
        return block_axes(block, part, matrices, readers=readers, others=others, heads=heads, groups=groups)

    def _blocks(self, roles: Mapping[str, TensorRole]) -> dict[str, tuple[str, list[str]]]:
        """Attention or feed-forward block -> the module that holds it, and its matrices in the model's order."""
        known: dict[tuple[str, str], str] = {}  # module and part -> block
        blocks: dict[str, tuple[str, list[str]]] = {}
        for name, role in roles.items():
            if role.is_matrix:
                layer = self._layer(name)
                root = self._attention(name, layer) or layer
                first = f"{role.stack}.{role.layer}.{role.part}"
                if (root, role.part) not in known:
                    known[root, role.part] = first + ".cross" * sum(block.startswith(first) for block in blocks)
                blocks.setdefault(known[root, role.part], (root, []))[1].append(name)
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
        heads = self._heads(stack)
        tables = {name: module for name, module in self._modules.items() if isinstance(module, Embedding)}
        narrow = (name for name, table in tables.items() if table.embedding_dim == heads)
        return next(narrow, "") if heads != _attribute(self._model.config, ["hidden_size"]) else ""


def _is_stack(module: Module) -> bool:
    """Whether a module is a list of layers: of modules that hold matrices, and are none themselves."""
    return (
        type(module) is ModuleList
        and len(module) > 0
        and all(any(isinstance(inner, Linear | Conv1D) for inner in list(layer.modules())[1:]) for layer in module)
    )


def _attribute(config: Any, keys: Sequence[str]) -> int:
    """The first of several attributes that a configuration sets; 1 if it sets none."""
    return int(next((value for key in keys if (value := getattr(config, key, None))), 1))
