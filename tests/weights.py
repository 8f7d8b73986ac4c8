"""All weights of a model folder at once, for tests and benchmarks of models that fit in memory."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from llm_sparsity.storage.container import Reader, copy_companions, writing
from llm_sparsity.storage.quantized import Quantized


def load(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a model folder."""
    with Reader(folder) as reader:
        return {name: reader.tensor(name) for name in reader.names}


def save(folder: Path, tensors: Mapping[str, Tensor | Quantized], *, sparse: bool = True) -> None:
    """Write all tensors of a model folder."""
    with writing(folder, sparse=sparse) as writer:
        for name in sorted(tensors):
            writer.add(name, tensors[name])


def to_plain(folder: Path, output: Path) -> None:
    """Convert a model folder to plain safetensors, which any program reads; copy configuration and tokenizer."""
    copy_companions(folder, output)
    save(output, load(folder), sparse=False)
