"""A loaded model is transformers': it computes, generates, goes into pipelines and is saved. RANDOM weights."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llm_sparsity
from llm_sparsity.inference.generate import generate
from llm_sparsity.inference.load import load
from llm_sparsity.inference.sparse_layers import SparseLinear
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_model
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.files import write_manifest
from llm_sparsity.study.sparsity import Sparsity
from tests import weights
from tests.marks import slow
from tests.unit.inference.conftest import Variant

ROOT = Path(__file__).parents[3]


def sparse_layers_of(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, SparseLinear)]


@pytest.mark.parametrize("kind", [slow("bert"), "gpt2", slow("llama"), "bart"])
@pytest.mark.parametrize("sparsity", ["0.3", "0.9"])
def test_forward_gives_what_dense_does(kind: str, sparsity: str, variant: Variant) -> None:
    folder = variant(sparsity, kind=kind)
    sparse, dense = load(folder.path), load(folder, "dense")
    assert type(sparse) is type(dense) and sparse_layers_of(sparse) and not sparse_layers_of(dense)
    ids = torch.randint(6, 20, (3, 9))
    with torch.inference_mode():
        torch.testing.assert_close(sparse(input_ids=ids)[0], dense(input_ids=ids)[0], rtol=1e-4, atol=1e-5)


def test_layers_whose_weights_a_model_reads_stay_dense(tmp_path: Path) -> None:
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=4, vocab_size=26)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "dense")
    sparsity, ids = Sparsity("0.5"), torch.randint(6, 20, (3, 9))
    prune(ModelFolder(tmp_path / "dense"), {sparsity: tmp_path / "0.5"}, method="uniform", scope="linear")
    sparse, dense = (load(tmp_path / "0.5/model", execution) for execution in ("sparse", "dense"))
    assert {name.rpartition(".")[2] for name in sparse_layers_of(sparse)} == {"in_proj", "x_proj", "out_proj"}
    with torch.inference_mode():
        torch.testing.assert_close(sparse(input_ids=ids)[0], dense(input_ids=ids)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_generating_gives_the_same_text(kind: str, variant: Variant) -> None:
    folder = variant("0.5", kind=kind)
    ids = torch.randint(6, 20, (2, 5))
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    sparse, dense = (load(folder, execution).generate(ids, **options) for execution in ("sparse", "dense"))
    assert sparse.shape == (2, 17) and torch.equal(sparse, dense)


@pytest.mark.parametrize("execution", ["dense", "sparse"])
def test_it_generates_as_its_folder_says(execution: str, variant: Variant, tmp_path: Path) -> None:
    folder = variant("0.5", kind="gpt2")
    shutil.copytree(folder.path, tmp_path / "model")
    said = {"repetition_penalty": 5.0, "max_new_tokens": 12, "eos_token_id": [5, 7], "pad_token_id": 0}
    (tmp_path / "model/generation_config.json").write_text(json.dumps(said))
    ids = torch.tensor([[8, 9, 10]])
    options: dict[str, Any] = {"repetition_penalty": 5.0, "max_new_tokens": 12, "eos_token_id": [5, 7]}
    expected = load(folder, execution).generate(ids, do_sample=False, pad_token_id=0, **options)
    found = load(tmp_path / "model", execution).generate(ids)
    assert torch.equal(found, expected)
    assert found.shape[1] <= 15
    model = load_model(transformers.AutoModelForCausalLM, tmp_path / "model")
    assert model.generation_config.eos_token_id == [5, 7]
    (tmp_path / "model/generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json: .*; correct or remove it"):
        load(tmp_path / "model", execution)


def test_a_pipeline_takes_it(variant: Variant) -> None:
    folder = variant("0.5", kind="llama")
    made = transformers.pipeline("text-generation", model=load(folder), tokenizer=folder.tokenizer)
    assert made("w1 w2", max_new_tokens=3)[0]["generated_text"].startswith("w1 w2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_the_checkpoints(dtype: torch.dtype, variant: Variant) -> None:
    """float16 is converted to float32: a CPU has no fast product of it."""
    folder = variant("0.5", kind="llama")
    weights.save(folder.path, {name: tensor.to(dtype) for name, tensor in weights.load(folder.path).items()})
    model = load(ModelFolder(folder.path))
    expected = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    assert model.dtype == expected == model.model.layers[0].mlp.up_proj.matrix.dtype
    assert load(folder.path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_sparse_model_is_saved_as_a_dense_one(variant: Variant, tmp_path: Path) -> None:
    folder = variant("0.5", kind="gpt2")
    load(folder).save_pretrained(tmp_path / "saved")
    saved, dense = weights.load(tmp_path / "saved"), load(folder, "dense").state_dict()
    assert saved and all(torch.equal(saved[name], dense[name]) for name in saved)


def test_a_model_without_zeros_is_dense(dense: Callable[[str], ModelFolder]) -> None:
    assert not sparse_layers_of(load(dense("llama")))


def test_bad_arguments_are_one_line(variant: Variant, tmp_path: Path) -> None:
    folder = variant("0.5")
    with pytest.raises(UserError, match="execution: found 'fast'; expected one of dense, sparse"):
        load(folder, "fast")
    with pytest.raises(UserError, match=r"dtype: found torch\.float16; a CPU runs torch\.float32 or torch\.bfloat16"):
        load(folder, dtype=torch.float16)
    with pytest.raises(UserError, match="no model folder, which has config"):
        load(tmp_path)
    weights = folder.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(UserError, match="make or download it again"):
        load(folder.path)


def test_it_is_public() -> None:
    assert llm_sparsity.load is load


def test_generate_says_how_fast(variant: Variant) -> None:
    folder = variant("0.5", kind="llama")
    (folder.path / "config.json").write_text(json.dumps(folder.config | {"eos_token_id": None}))  # it ends nowhere
    (folder.path / "generation_config.json").unlink()
    folder, texts = ModelFolder(folder.path), list[str]()
    for execution in ("dense", "sparse"):
        out = io.StringIO()
        found = generate(folder, execution, "w1 w2 w3", 8, out)
        texts.append(out.getvalue().partition(":")[2])
        assert found.prefill > 0 and found.decode > 0 and found.seconds > 0
        assert (found.layers > 0) == (execution == "sparse")
    assert texts[0] == texts[1] and texts[0].startswith(" w1 w2 w3")


def test_the_speed_of_a_prompt_includes_the_encoder(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = variant("0.5", kind="bart")
    (folder.path / "config.json").write_text(
        json.dumps(folder.config | {"architectures": ["BartForConditionalGeneration"]})
    )
    encoder = transformers.models.bart.modeling_bart.BartEncoder
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda *args, **kwargs: time.sleep(0.2) or forward(*args, **kwargs))
    found = generate(ModelFolder(folder.path), "dense", "w1 w2 w3", 4, io.StringIO())
    assert 0 < found.prefill < 5 / 0.2  # three words between <s> and </s>


@pytest.mark.parametrize(
    ("kind", "prompt", "tokens", "message"),
    [
        ("bert", "w1", 4, "bert is an encoder, which generates no text; choose a decoder"),
        ("llama", "w1", 5000, r"prompt and --tokens together: found 500\d, but model allows"),
    ],
)
def test_what_cannot_be_generated(kind: str, prompt: str, tokens: int, message: str, variant: Variant) -> None:
    with pytest.raises(UserError, match=message):
        generate(variant("0.5", kind=kind), "sparse", prompt, tokens)


@pytest.mark.slow
def test_the_command_prints_both_executions(variant: Variant) -> None:
    command = [sys.executable, "-m", "llm_sparsity", "generate", variant("0.5", kind="llama").path, "--prompt", "w1 w2"]
    done = subprocess.run(
        [*command, "--tokens", "4", "--threads", "1"],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "workflow")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--- dense: w1 w2" in done.stdout and "--- sparse: w1 w2" in done.stdout
    assert "generating, token/s" in done.stdout and "CPU threads: 1" in done.stdout


PEAK = """
import resource, sys
from llm_sparsity.inference.load import load
def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load(sys.argv[1])  # imports what loading needs
before = peak()
load(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.slow
def test_loading_never_holds_the_dense_matrices(variant: Variant, tmp_path: Path) -> None:
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 8}
    config = transformers.LlamaConfig(vocab_size=100, **shape)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    write_manifest(tmp_path / "dense", kind="model", architecture="decoder", model_type="llama")
    sparsity = Sparsity("0.9")
    prune(ModelFolder(tmp_path / "dense"), {sparsity: tmp_path / "0.9"}, method="random", scope="linear")
    command = [sys.executable, "-c", PEAK, variant("0.9", kind="llama").path, tmp_path / "0.9/model"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < (tmp_path / "dense/model.safetensors").stat().st_size / 2
