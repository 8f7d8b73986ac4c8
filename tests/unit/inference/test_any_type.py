"""Sparse layers in models of any type, beside dense ones, whichever way multiplies. RANDOM weights."""

from typing import Any

import pytest
import torch

from llm_sparsity.inference.sparse_layers import is_prunable, sparse_layers, with_layers
from llm_sparsity.models.derivation import derive
from tests.zoo import EVERY, architecture, make

TOKENS = 64  # from which on sequences are tiled on their own


@pytest.mark.parametrize("kind", EVERY)
def test_outputs_are_those_of_the_dense_model(kind: str) -> None:
    """A layer that skips zeros hands on a transposed view, which the next one, sparse or dense, must take."""
    model = make(kind).base_model
    structure = derive(model.config)
    names = [name for name, module in model.named_modules() if is_prunable(name, module, structure)]
    for name in names:
        weight = model.get_submodule(name).weight
        weight.data[torch.rand(weight.shape) < 0.5] = 0
    layers = dict(sparse_layers(model, structure, names))
    for layer in layers.values():
        layer.ways.fastest = lambda x: "skipped"  # type: ignore[method-assign]
    inputs: dict[str, Any] = {"input_ids": torch.randint(6, 20, (2, TOKENS))}
    if architecture(kind) == "encoder-decoder":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.inference_mode():
        expected = model(**inputs)[0]
        for chosen in (names, names[::2], names[1::2]):
            found = with_layers(model, {name: layers[name] for name in chosen})(**inputs)[0]
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
