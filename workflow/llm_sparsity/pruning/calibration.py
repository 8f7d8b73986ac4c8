"""Calibrated pruning, block by block: what goes depends on what a matrix is given to work on.

Sequences of a calibration text flow through the model one transformer block at a time (as in Frantar & Alistarh 2023,
arXiv:2301.00774). The block's weights are read; the sequences run through it while its matrices' inputs are observed;
the matrices are pruned; the sequences run through it again, so that the next block sees what the pruned model will show
it; the weights are dropped.

The model's own forward pass does all this: in it the blocks before hand over what they gave, the current one runs, and
there it ends. Masks, positions, and an encoder's output for its decoder stay the model's business.

Memory: the embeddings, one block in float32, what is observed of it, and one copy of the sequences' activations. Only
the block, its inputs and what is observed of them are on the accelerator.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn import Module, Parameter

from llm_sparsity.data import tasks
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.loading import check_length, family, load_skeleton, load_tokenizer, stored_names
from llm_sparsity.pruning import layerwise as _owl
from llm_sparsity.pruning.scores import Pool, Row, describe
from llm_sparsity.pruning.selection import pattern_of, removed_of
from llm_sparsity.storage.container import Reader

TOKENS = 2048  # that run at once, in one sequence at least


class Calibrated:
    """Weights become zeros by a method that has seen their inputs; it may change those that stay."""

    def __init__(
        self, model: Path, pool: Pool, levels: Sequence[str], floor: float, *, budgets: str, text: Path, **draw: int
    ) -> None:
        self._pool, self._levels, self._floor, self._budgets = pool, levels, floor, budgets
        self._family = family(model)
        self._blocks = Blocks(model, pool.reader, sequences(model, text, **draw))
        self._matrices = {
            block: {name: module for name, module in self._blocks.matrices(block).items() if name in pool.places}
            for block in self._blocks.names
        }
        while not self._matrices[self._blocks.names[-1]]:  # what lies behind the scope need not run
            self._blocks.names.pop()

    def config(self, level: str) -> Any:
        """The model's configuration at a level; None: as it was."""
        return None

    def results(self, names: Sequence[str]) -> Iterator[tuple[str, str, Tensor, Row | None]]:
        """(level, tensor's name, pruned tensor, what happened to it; None for a tensor outside the scope)."""
        sparsities = self._outlier_weighed() if self._budgets == "owl" else {}
        for level in self._levels:
            for name in names:
                if name not in self._pool.places:
                    yield level, name, self._pool.reader.tensor(name), None
            self._blocks.restart()
            for block in self._blocks.names:
                with self._blocks.loaded(block):
                    results = self._pruned(block, sparsities.get((level, block), level))
                while results:  # each is let go before the next block is read
                    yield level, *results.pop(0)

    def _pruned(self, block: str, sparsity: str) -> list[tuple[str, Tensor, Row]]:
        """Prune the matrices of a loaded block, and run the sequences through what is left."""
        if not self._matrices[block]:
            self._blocks.advance()
            return []
        before, groups = self._blocks.observed(self._matrices[block], self._pool.rule.observe)
        results: list[tuple[str, Tensor, Row]] = []
        while groups:  # each is let go once its matrices are pruned
            results += self._pruned_together(block, *groups.pop(0), sparsity)
        change = {"block_error": _error(self._blocks.advance(), before)}
        return [(name, weight, row | change) for name, weight, row in results]

    def _pruned_together(
        self, block: str, observed: Tensor, inputs: Tensor, names: Sequence[str], sparsity: str
    ) -> Iterator[tuple[str, Tensor, Row]]:
        """Prune the matrices that have their inputs in common."""
        prepared = self._pool.rule.prepare(observed)
        for name in names:
            module = self._matrices[block][name]
            dense = self._oriented(name, module)
            weight = self._prune(name, module, prepared, sparsity)
            error = _error(inputs @ self._oriented(name, module).t(), inputs @ dense.t())
            yield name, weight, self._row(weight, sparsity) | {"error": error}

    def _prune(self, name: str, module: Any, prepared: Any, sparsity: str) -> Tensor:
        """Prune a matrix: what is stored of it, which is what the block then computes with."""
        pruned = self._pool.rule.prune(self._oriented(name, module), prepared, sparsity)
        if self._family.is_transposed(name):
            pruned = pruned.t()
        stored: Tensor = pruned.contiguous().to(self._pool.reader.dtype(name)) + 0.0  # -0.0 becomes 0.0
        module.weight = Parameter(stored.float(), requires_grad=False)
        return stored.cpu()

    def _oriented(self, name: str, module: Any) -> Tensor:
        """A matrix as (out, in)."""
        weight: Tensor = module.weight.data
        return weight.t() if self._family.is_transposed(name) else weight

    def _row(self, weight: Tensor, sparsity: str) -> Row:
        size, pattern = weight.numel(), pattern_of(sparsity)
        removed = size // pattern[1] * (pattern[1] - pattern[0]) if pattern else removed_of(size, sparsity)
        return describe(weight, size, removed, int((weight == 0).sum()))

    def _outlier_weighed(self) -> dict[tuple[str, str], str]:
        """(level, block) -> its sparsity, from one pass through the dense model."""
        shares, sizes = {}, {}
        self._blocks.restart()
        for block in self._blocks.names:
            with self._blocks.loaded(block):
                if modules := self._matrices[block]:
                    _, groups = self._blocks.observed(modules, _owl.observe)
                    squares = {name: observed for observed, _, names in groups for name in names}
                    matrices = [(self._oriented(name, modules[name]), squares[name]) for name in modules]
                    shares[block] = _owl.outliers(matrices)
                    sizes[block] = sum(weight.numel() for weight, _ in matrices)
                self._blocks.advance()
        found = {}
        for level in self._levels:
            for block, sparsity in _owl.budgets(shares, sizes, level).items():
                if not 0 <= float(sparsity) <= 1 - self._floor:
                    raise UserError(
                        f"sparsity {level}: budgets owl would remove {sparsity} of {block} (floor: {self._floor}); "
                        "choose a sparsity nearer to 0.5, or budgets uniform"
                    )
                found[level, block] = sparsity
        return found


class Blocks:
    """The transformer blocks of a model, loaded and run one at a time on calibration sequences (number, tokens)."""

    def __init__(self, model: Path, reader: Reader, drawn: Tensor) -> None:
        self._model, self._reader = model, reader
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._net = load_skeleton(model)
        self._stored = stored_names(self._net, reader.names)
        self._batches = drawn.split(max(TOKENS // drawn.shape[1], 1))
        self.names = family(model).blocks(name for name, _ in self._net.named_modules())
        for name in self.names:
            self._net.get_submodule(name).forward = partial(self._visited, name)
        inside = tuple(f"{name}." for name in self.names)
        outside = [name for name, _ in self._net.named_modules() if not f"{name}.".startswith(inside)]
        self._fill(outside, torch.device("cpu"))
        self.restart()

    def restart(self) -> None:
        """Begin with the embeddings again."""
        self._outputs: dict[str, list[Any]] = {}
        self._current = ""

    def matrices(self, block: str) -> dict[str, Module]:
        """The tensors of a block's weights, as its file names them -> the modules that they belong to."""
        modules = self._net.get_submodule(block).named_modules(prefix=block)
        return {self._stored[f"{name}.weight"]: module for name, module in modules if f"{name}.weight" in self._stored}

    @contextmanager
    def loaded(self, block: str) -> Iterator[None]:
        """For as long as this lasts the block has its weights, and is the one that `observed` and `advance` run."""
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
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor, list[str]]]]:
        """Run the sequences through the current block and watch the inputs of its matrices.

        Returns:
            The block's output for the first sequences; and what was observed, added up, with the inputs of the first
            sequences (tokens, in) and the names of the matrices that have them in common (a query, key and value).
        """
        sums: dict[str, Tensor] = {}
        first: dict[str, Tensor] = {}
        sharing: dict[str, dict[str, None]] = {}
        latest: Any = None
        leader = ""

        def watch(name: str, module: Module, inputs: tuple[Any, ...]) -> None:
            nonlocal latest, leader
            if inputs[0] is not latest:
                latest, leader = inputs[0], name
                rows = latest.flatten(0, -2)
                observed = observe(rows)
                sums[name] = sums[name].add_(observed) if name in sums else observed
                first.setdefault(name, rows)
            sharing.setdefault(leader, {})[name] = None

        hooks = [module.register_forward_pre_hook(partial(watch, name)) for name, module in matrices.items()]
        outputs = [_hidden(output) for number, output in enumerate(self._run()) if number == 0]
        for hook in hooks:
            hook.remove()
        for name, total in sums.items():
            if not total.isfinite().all():
                raise UserError(
                    f"{self._model}: the inputs of {name} are not finite on this text; use a sound checkpoint"
                )
        return outputs[0], [(sums[name], first[name], list(names)) for name, names in sharing.items()]

    def advance(self) -> Tensor:
        """Run the sequences through the current block, for the next one; the output for the first of them."""
        stack = self._outputs.setdefault(_stack(self._current), [None] * len(self._batches))
        for number, output in enumerate(self._run()):
            stack[number] = output
        return _hidden(stack[0])

    def _run(self) -> Iterator[Any]:
        """The outputs of the current block, for one batch of sequences after the other."""
        for number, batch in enumerate(self._batches):
            self._number = number
            try:
                self._net(input_ids=batch)
            except _Reached as reached:
                output = reached.output
            yield output

    def _visited(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What a block does in the model's forward pass."""
        if name != self._current:  # one before it
            return self._outputs[_stack(name)][self._number]
        block = self._net.get_submodule(name)
        args, kwargs = send_to_device((args, kwargs), self._device)
        raise _Reached(send_to_device(type(block).forward(block, *args, **kwargs), "cpu"))

    def _fill(self, modules: Sequence[str], device: torch.device) -> None:
        """Give modules their parameters, in float32; those that are tied have one tensor, under one of their names."""
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


class _Reached(Exception):
    """The current block has run; the rest of the model's forward pass is not wanted."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _stack(block: str) -> str:
    """What a block is one of: the encoder's layers, or the decoder's."""
    return block.rpartition(".")[0]


def _error(pruned: Tensor, dense: Tensor) -> float:
    """The relative change of an output: the norm of the difference over that of the dense one."""
    return float((pruned - dense).norm() / dense.norm())


def _hidden(output: Any) -> Tensor:
    """The hidden states in what a block gives."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def sequences(model: Path, text: Path, *, samples: int, sequence_length: int, seed: int) -> Tensor:
    """Draw calibration sequences from the text that a task has for training: pieces of it that do not overlap.

    The text is joined and tokenised as in `evaluate`. For encoders each piece is framed by their special tokens.

    Returns:
        (samples, sequence_length), int64.

    Raises:
        UserError: the text is too short, or a sequence is longer than the model allows.
    """
    check_length(model, "calibration.sequence_length", sequence_length)
    tokenizer = load_tokenizer(model)
    before, after = [], []
    if family(model).architecture != "decoder":
        probe = tokenizer("a", return_special_tokens_mask=True)
        inside = [number for number, special in enumerate(probe["special_tokens_mask"]) if not special]
        before, after = probe["input_ids"][: inside[0]], probe["input_ids"][inside[-1] + 1 :]
    whole = "\n\n".join(tasks.load_text(text, "train"))
    tokens = tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]
    length = sequence_length - len(before) - len(after)
    count = len(tokens) // length if length > 0 else 0
    if count < samples:
        raise UserError(
            f"calibration: {samples} sequences of {sequence_length} tokens are asked for, but {text.name} has text for "
            f"{count}; lower samples or sequence_length, or give more text"
        )
    starts = [length * piece for piece in random.Random(seed).sample(range(count), samples)]
    return torch.tensor([[*before, *tokens[start : start + length], *after] for start in starts])
