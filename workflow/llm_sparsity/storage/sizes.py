"""How many bytes a model's weights take: plain, in the sparse container, and at the bound of an ideal coder."""

from collections.abc import Iterable

import torch
from torch import Tensor

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.codec import lossless_dtype
from llm_sparsity.storage.container import Reader
from llm_sparsity.storage.encoder import Encoder
from llm_sparsity.storage.quantized import Quantized


def weight_sizes(reader: Reader, names: Iterable[str], where: object) -> dict[str, int]:
    """The bytes of a model's weights in three forms. One tensor is in memory at a time, and nothing is written.

    Args:
        reader: of the weights.
        names: of the tensors that count: a pruned model holds tied ones once.
        where: they are from, for the message.

    Returns:
        plain_bytes: plain safetensors, without its header.
        container_bytes: the file of the sparse container, with its header. A pruned model's file is one, so it has this
            size; a dense model's is plain.
        bound_bytes: a lower bound for coders that treat weights as independent. It adds the entropy of the positions of
            zeros, given the density of each tensor, and the entropy of each byte of the remaining values, given that
            byte's distribution in the tensor (Shannon 1948). Of a quantised tensor, codes and scales are coded.

    Raises:
        UserError: a weight is NaN or infinite; the message names the tensor.
    """
    plain, bits, container = 0, 0.0, Encoder(_Nowhere())
    for name in names:
        stored = reader.stored(name)
        if isinstance(stored, Quantized):
            tensor, coded = stored.values(), [stored.scales, stored.codes]
        else:
            tensor, coded = stored, [stored]
        if not tensor.isfinite().all():
            raise UserError(f"{where}: tensor {name} has NaN or infinite weights; use a sound checkpoint")
        plain += tensor.nbytes
        container.add(name, stored)
        bits += sum(_bound_bits(part.reshape(-1)) for part in coded)
    size = len(container.header()) + container.size
    return {"plain_bytes": plain, "container_bytes": size, "bound_bytes": round(bits / 8)}


class _Nowhere:
    """A sink that keeps nothing: an encoder counts what it writes."""

    def write(self, part: bytes | memoryview, /) -> None:
        pass

    def seek(self, position: int, /) -> None:
        pass

    def truncate(self) -> None:
        pass


def _bound_bits(flat: Tensor) -> float:
    flat = flat.to(lossless_dtype(flat))
    values = flat[flat != 0].contiguous().view(torch.uint8).view(-1, flat.element_size())
    bits = flat.numel() * _entropy(torch.tensor([len(values), flat.numel() - len(values)]))
    return bits + sum(len(values) * _entropy(torch.bincount(plane, minlength=256)) for plane in values.t())


def _entropy(counts: Tensor) -> float:
    """Bits per symbol."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())
