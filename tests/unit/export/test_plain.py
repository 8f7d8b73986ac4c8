"""Tiny models with RANDOM weights, pruned by heads and neurons, and transformers' own classes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from llm_sparsity.export.plain import check_plain
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_base
from llm_sparsity.pruning.prune import prune
from llm_sparsity.study.sparsity import Sparsity
from tests.marks import slow
from tests.weights import to_plain

KINDS = ("bert", "roberta", "distilbert", "gpt2", "llama", "bart")


@pytest.mark.parametrize("scope", [slow("attention"), slow("mlp"), "linear", "layers.0"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_passes_is_what_transformers_reads(
    kind: str, scope: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    prune(ModelFolder(tiny_model(kind)), {Sparsity("0.5"): tmp_path}, method="structured", scope=scope)
    folder = ModelFolder(tmp_path / "model")
    to_plain(folder.path, tmp_path / "plain")
    try:
        check_plain(folder)
    except UserError as error:
        assert "structured pruning has made" in str(error)
        with pytest.raises(RuntimeError):
            transformers.AutoModel.from_pretrained(tmp_path / "plain")
        return
    assert (kind, scope) in {("llama", "attention"), ("llama", "linear"), *((kind, "mlp") for kind in KINDS)}
    inputs = folder.tokenizer("the film is good", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        theirs = transformers.AutoModel.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()(inputs)[0]
        assert torch.equal(theirs, load_base(folder).eval()(inputs)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_other_model_passes(kind: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    check_plain(ModelFolder(tiny_model(kind)))
    prune(ModelFolder(tiny_model(kind)), {Sparsity("0.5"): tmp_path}, method="magnitude", scope="linear")
    check_plain(ModelFolder(tmp_path / "model"))
