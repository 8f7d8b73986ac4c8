"""How many bytes a model's weights take: plain, and at the bound of an ideal coder."""

import torch
from torch import Tensor

from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.codec import lossless_dtype


def plain_and_bound_bytes(model: ModelFolder) -> tuple[int, int]:
    """Bytes of the weights as plain safetensors, and a lower bound for coders that treat weights as independent.

    The bound adds the entropy of the positions of zeros, given the density of each tensor, and the entropy of each byte
    of the remaining values, given that byte's distribution in the tensor (Shannon 1948).
    """
    plain, bits = 0, 0.0
    with model.open() as reader:
        for name in reader.names:
            flat = reader.tensor(name).reshape(-1)
            plain += flat.nbytes
            flat = flat.to(lossless_dtype(flat))
            values = flat[flat != 0].contiguous().view(torch.uint8).view(-1, flat.element_size())
            bits += flat.numel() * _entropy(torch.tensor([len(values), flat.numel() - len(values)]))
            bits += sum(len(values) * _entropy(torch.bincount(plane, minlength=256)) for plane in values.t())
    return plain, round(bits / 8)


def _entropy(counts: Tensor) -> float:
    """Bits per symbol."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())
