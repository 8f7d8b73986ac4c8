"""The structure of a model: what each of its tensors is for. `derivation` derives it from the model itself."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llm_sparsity.models.names import ModuleNames, modern
from llm_sparsity.models.roles import LayerMatrix, PrunableAxis, TensorRole


@dataclass(frozen=True)
class Structure:
    """What the tensors of a model are for. A tensor may be named as in a file, or as in a model with any head.

    architecture: "encoder", "decoder" or "encoder-decoder".
    layers: names of the layers in the model without a head, in order.
    repeats: how often each layer runs: more than once if layers share their weights.
    is_chain: whether the layers of a stack run one after the other, in order, each with the outputs of the one before.
    groups: stack -> attention heads in each of its layers; with grouped queries, groups of them.
    first_position: the number that positions start at: after the padding index, where their table has one.
    roles: name in the model without a head -> role.
    matrices: name of a matrix of a layer -> what else is known of it.
    axes: name of a weight or bias -> its axis of heads or neurons.
    tied: name -> the name of the tensor that it is a copy of.
    words: name of the input embeddings.
    output: name of the output layer's weight in the model with a head; "" if there is none.
    output_is_tied: whether the output layer is the input embeddings.
    body: names in the model without a head.
    headed: names in the model with the head of pretraining.
    """

    architecture: str
    layers: tuple[str, ...]
    repeats: int
    is_chain: bool
    groups: Mapping[str, int]
    first_position: int
    roles: Mapping[str, TensorRole]
    matrices: Mapping[str, LayerMatrix]
    axes: Mapping[str, PrunableAxis]
    tied: Mapping[str, str]
    words: str
    output: str
    output_is_tied: bool
    body: ModuleNames = field(repr=False)
    headed: ModuleNames = field(repr=False)

    def role(self, name: str) -> TensorRole | None:
        """The role of a tensor; None for biases, buffers, poolers, routers and heads, which are never pruned."""
        return self.roles.get(self.body_name(name))

    def matrix(self, name: str) -> LayerMatrix | None:
        """What is known of a matrix of a layer; None for other tensors."""
        return self.matrices.get(self.body_name(name))

    def axis(self, name: str) -> PrunableAxis | None:
        """The axis of heads or neurons of a weight or bias; None if it has none, as an output projection's bias."""
        return self.axes.get(self.body_name(name))

    def is_transposed(self, name: str) -> bool:
        """Whether a matrix is stored as (in, out), as GPT-2's Conv1D does; embeddings never are."""
        matrix = self.matrix(name)
        return matrix is not None and matrix.is_transposed

    def is_output_layer(self, name: str) -> bool:
        """Whether a tensor is the weight of the model's output layer."""
        return bool(self.output) and self.headed.name(name) == self.output

    def is_fused(self, name: str) -> bool:
        """Whether transformers fuses a tensor of a checkpoint with others, as the matrices of experts."""
        return self.body.place(name).fused

    def body_name(self, name: str) -> str:
        """The name of a tensor in the model without a head; "" if it is not there."""
        return self.body.name(name) or ""

    def file_names(self, stored: Iterable[str]) -> dict[str, str]:
        """Name to use -> name in a checkpoint, for each tensor of the checkpoint.

        Both names are equal except in two kinds of files. Old ones call the weight and bias of a norm gamma and beta.
        And of tied tensors a file may keep any: if the input embeddings are absent, a copy stands for them.
        """
        found = {modern(name): name for name in stored}
        places = {name: self.body_name(name) for name in found}
        if self.words not in places.values():
            copies = [name for name, place in places.items() if self.tied.get(place) == self.words]
            copies += [name for name in found if self.output_is_tied and self.is_output_layer(name)]
            prefixes = (name.removesuffix(place) for name, place in places.items() if place and name.endswith(place))
            if copies:
                found[next(prefixes, "") + self.words] = found.pop(copies[0])
        return found

    def without_copies(self, names: Iterable[str]) -> list[str]:
        """The names of a checkpoint's tensors, with tied tensors listed once."""
        places = {name: self.body_name(name) for name in names}
        held = set(places.values())
        return [name for name, place in places.items() if self.tied.get(place) not in held]
