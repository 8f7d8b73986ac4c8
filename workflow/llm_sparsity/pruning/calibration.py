"""Calibration sequences, and a model that runs on them one transformer block at a time.

`Blocks` uses the model's own forward pass: earlier blocks return their stored outputs, the current block runs, and the
pass ends there. So masks, positions, and the output of an encoder reach the block as the model passes them.

Memory: the embeddings, one block in float32, the observations of its inputs, and the activations of all sequences. Only
the block, its inputs and their observations are on the accelerator.
"""

import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn import Module, Parameter

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.data.tokens import sentences
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.checkpoint import stored_names
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_skeleton
from llm_sparsity.storage.container import Reader

TOKENS = 2048  # tokens in a batch
Batch = dict[str, Tensor]  # inputs of a model: token ids, token types if it uses them; (sequences, tokens), int64


def batches(
    model: ModelFolder, text: TaskFolder, *,
    samples: int, sequence_length: int, seed: int,
    tokens: int | None = None, least: int = 1,
) -> list[Batch]:  # fmt: skip
    """Draw calibration sequences, in batches whose sequences are equally long.

    Of a language-model task, pieces of its text, see `sequences`; of other tasks, sentences or pairs of their split
    train, as a fine-tuning encodes them, the shortest first; sentences without a token are left out.

    Args:
        model: its tokenizer is used.
        text: a task.
        samples: number of sequences.
        sequence_length: tokens of a piece; sentences are truncated to as many.
        seed: of the drawing.
        tokens: of a batch, which has at least one sequence. Default: `TOKENS`.
        least: number of batches; there may be fewer only if there are fewer sequences.

    Raises:
        UserError: the task has too little text, or a sequence is longer than the model allows.
    """
    if text.manifest["task"] == "language-model":
        drawn = sequences(model, text, samples=samples, sequence_length=sequence_length, seed=seed)
        limit = min(tokens or TOKENS, drawn.numel() // least)
        return [{"input_ids": ids} for ids in drawn.split(max(limit // sequence_length, 1))]
    model.check_length("calibration.sequence_length", sequence_length)
    columns = sentences(model, text, "train", sequence_length, key="calibration.sequence_length")
    del columns["labels"]
    lengths = [len(ids) for ids in columns["input_ids"]]
    filled = [row for row, length in enumerate(lengths) if length]  # an empty sentence may have no token
    if len(filled) < samples:
        raise UserError(
            f"calibration: {samples} sentences are asked for, but {text.name} has {len(filled)}; lower samples"
        )
    rows = sorted(random.Random(seed).sample(filled, samples), key=lengths.__getitem__)
    limit = min(tokens or TOKENS, sum(lengths[row] for row in rows) // least)
    found = []
    for length, group in itertools.groupby(rows, key=lengths.__getitem__):
        whole = torch.tensor(list(group))
        for part in whole.split(max(limit // length, 1)):
            found.append({name: torch.tensor([values[row] for row in part]) for name, values in columns.items()})
    return found


def sequences(model: ModelFolder, text: TaskFolder, *, samples: int, sequence_length: int, seed: int) -> Tensor:
    """Draw calibration sequences from the train split of a text: pieces that do not overlap.

    The text is joined and tokenised as for perplexity. For encoders, special tokens are put around each piece.

    Returns:
        Token ids, int64, (samples, sequence_length).

    Raises:
        UserError: the text is too short, or a sequence is longer than the model allows.
    """
    model.check_length("calibration.sequence_length", sequence_length)
    before, after = _special_tokens(model)
    whole = "\n\n".join(text.texts("train"))
    tokens = model.tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]
    length = sequence_length - len(before) - len(after)
    count = len(tokens) // length if length > 0 else 0
    if count < samples:
        raise UserError(
            f"calibration: {samples} sequences of {sequence_length} tokens are asked for, but {text.name} has text for "
            f"{count}; lower samples or sequence_length, or give more text"
        )
    starts = [length * piece for piece in random.Random(seed).sample(range(count), samples)]
    return torch.tensor([[*before, *tokens[start : start + length], *after] for start in starts])


def _special_tokens(model: ModelFolder) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text; none for decoders."""
    if model.structure.architecture == "decoder":
        return [], []
    probe = model.tokenizer("a", return_special_tokens_mask=True)
    inside = [number for number, special in enumerate(probe["special_tokens_mask"]) if not special]
    return probe["input_ids"][: inside[0]], probe["input_ids"][inside[-1] + 1 :]


class Observation(NamedTuple):
    """The inputs of matrices that share them, such as a query, key and value.

    total: the result of the method's `observe`, summed over all batches.
    inputs: the inputs in the first batch, (tokens, in).
    names: the matrices.
    """

    total: Tensor
    inputs: Tensor
    names: list[str]


class Blocks:
    """The transformer blocks of a model, loaded and run one at a time.

    Args:
        model: the model.
        reader: its weights.
        batches: of calibration sequences, see `batches`.

    Attributes:
        batches: as above.
        names: the names of the blocks, in the order in which they run.

    Raises:
        UserError: the checkpoint lacks a tensor.
    """

    def __init__(self, model: ModelFolder, reader: Reader, batches: Sequence[Batch]) -> None:
        self._model, self._reader, self.batches = model, reader, batches
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._net = load_skeleton(model)
        self._stored = stored_names(self._net, reader.names)
        self.names = list(model.structure.layers)
        for name in self.names:
            self._net.get_submodule(name).forward = partial(self._forward, name)
        inside = tuple(f"{name}." for name in self.names)
        outside = [name for name, _ in self._net.named_modules() if not f"{name}.".startswith(inside)]
        self._fill(outside, torch.device("cpu"))
        self.restart()

    def restart(self) -> None:
        """Start again with the outputs of the embeddings."""
        self._outputs: dict[str, list[Any]] = {}
        self._current = ""

    def matrices(self, block: str) -> dict[str, Module]:
        """Name in the checkpoint -> module, for each weight of a block."""
        modules = self._net.get_submodule(block).named_modules(prefix=block)
        return {self._stored[f"{name}.weight"]: module for name, module in modules if f"{name}.weight" in self._stored}

    @contextmanager
    def loaded(self, block: str) -> Iterator[None]:
        """Load the weights of a block, which `observed` and `advance` then run; drop them at the end of the context."""
        module = self._net.get_submodule(block)
        empty = [(owner, dict(owner._parameters)) for owner in module.modules()]
        self._fill([name for name, _ in module.named_modules(prefix=block)], self._device)
        module.to(self._device)  # its buffers
        self._current = block
        yield
        for owner, parameters in empty:
            owner._parameters.update(parameters)

    def observed(
        self, matrices: Mapping[str, Module], observe: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, list[Observation]]:
        """Run the sequences through the current block and observe the inputs of its matrices.

        Args:
            matrices: name -> module.
            observe: (tokens, in) -> a tensor, which is summed over the batches.

        Returns:
            The output of the block for the first batch, and the observations.

        Raises:
            UserError: a matrix does not run on these sequences, or inputs are not finite.
        """
        totals: dict[str, Tensor] = {}
        first: dict[str, Tensor] = {}
        sharing: dict[str, dict[str, None]] = {}
        latest: Any = None
        leader = ""

        def watch(name: str, module: Module, inputs: tuple[Any, ...]) -> None:
            nonlocal latest, leader
            if not inputs[0].numel():  # an expert that no token of the batch has chosen
                return
            if inputs[0] is not latest:
                latest, leader = inputs[0], name
                rows = latest.flatten(0, -2)
                seen = observe(rows)
                totals[name] = totals[name].add_(seen) if name in totals else seen
                first.setdefault(name, rows)
            sharing.setdefault(leader, {})[name] = None

        hooks = [module.register_forward_pre_hook(partial(watch, name)) for name, module in matrices.items()]
        outputs = [hidden(output) for number, output in enumerate(self._run()) if number == 0]
        for hook in hooks:
            hook.remove()
        self._check_observed(matrices, {name for names in sharing.values() for name in names})
        for name, total in totals.items():
            if not total.isfinite().all():
                raise UserError(
                    f"{self._model}: the inputs of {name} are not finite on this text; use a sound checkpoint"
                )
        return outputs[0], [Observation(totals[name], first[name], list(names)) for name, names in sharing.items()]

    def _check_observed(self, matrices: Iterable[str], seen: Collection[str]) -> None:
        """Refuse matrices of the current block that have had no inputs, and so nothing to be pruned by."""
        if unseen := [name for name in matrices if name not in seen]:
            others = f" and {len(unseen) - 1} other matrices of {self._current}" if len(unseen) > 1 else ""
            raise UserError(
                f"{self._model}: the calibration text does not run {unseen[0]}{others}; give more text if this is an "
                "expert, else choose a scope without it, or a method and steps that need no calibration"
            )

    def advance(self) -> Tensor:
        """Run the sequences through the current block, and keep its outputs as inputs of the next one.

        Returns:
            The output for the first batch.
        """
        stack = self._outputs.setdefault(_stack(self._current), [None] * len(self.batches))
        for number, output in enumerate(self._run()):
            stack[number] = output
        return hidden(stack[0])

    def latest(self) -> list[Tensor]:
        """The outputs of the block that was advanced last, of each batch."""
        return [hidden(output) for output in self._outputs[_stack(self._current)]]

    def outputs(self, end: Module) -> list[Tensor]:
        """The outputs of a module inside the current block, of each batch."""
        return [send_to_device(self.output(number, end), "cpu") for number in range(len(self.batches))]

    def output(self, number: int, end: Module | None = None) -> Any:
        """Run a batch through the current block, or up to a module inside it; the output, on the device."""
        self._number = number
        hook = end.register_forward_hook(_stop) if end else None
        try:
            self._net(**self.batches[number])
        except _BlockDone as done:
            return done.output
        finally:
            if hook:
                hook.remove()

    def _run(self) -> Iterator[Any]:
        """The outputs of the current block, batch after batch."""
        for number in range(len(self.batches)):
            yield send_to_device(self.output(number), "cpu")

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The forward pass of a block inside that of the model."""
        if name != self._current:  # an earlier block
            return self._outputs[_stack(name)][self._number]
        block = self._net.get_submodule(name)
        args, kwargs = send_to_device((args, kwargs), self._device)
        raise _BlockDone(type(block).forward(block, *args, **kwargs))

    def _fill(self, modules: Sequence[str], device: torch.device) -> None:
        """Load the parameters of modules in float32; tied parameters are stored once, under one of their names."""
        owners = [(name, self._net.get_submodule(name)) for name in modules]
        values: dict[Tensor, Parameter] = {}
        for path, owner in owners:
            for key, empty in owner._parameters.items():
                name = self._stored.get(f"{path}.{key}".lstrip("."))
                if empty is not None and name:
                    value = self._reader.tensor(name).to(device, torch.float32)
                    values[empty] = Parameter(value, requires_grad=False)
        for path, owner in owners:
            for key, empty in owner._parameters.items():
                if empty is not None and empty not in values:
                    raise UserError(f"{self._model}: has no tensor for {path}.{key}; download the model again")
                if empty is not None:
                    owner._parameters[key] = values[empty]


class _BlockDone(Exception):
    """Ends the forward pass of the model, after the current block or inside it."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _stop(module: Module, inputs: Any, output: Any) -> None:
    """A forward hook that ends the pass with the output of its module."""
    raise _BlockDone(output)


def _stack(block: str) -> str:
    """The name of the module that holds a block: the layers of the encoder or of the decoder."""
    return block.rpartition(".")[0]


def hidden(output: Any) -> Tensor:
    """The hidden states in the output of a block."""
    hidden: Tensor = output[0] if isinstance(output, tuple | list) else output
    return hidden
