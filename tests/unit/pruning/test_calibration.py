"""Calibration sequences, and models run block by block."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.pruning import calibration
from llm_sparsity.storage.files import read_json, write_json, write_manifest
from tests.marks import slow
from tests.tiny import save_mood_task
from tests.unit.pruning.helpers import calibrated, drawn, prune
from tests.weights import load, save


@pytest.mark.parametrize(("kind", "frame"), [("llama", None), ("gpt2", None), ("bert", (2, 3)), ("bart", (4, 5))])
def test_sequences_are_pieces_of_the_text(
    kind: str, frame: tuple[int, int] | None, tiny_model: Callable[[str], Path], text: Path
) -> None:
    model = tiny_model(kind)
    tokens = drawn(model, text)
    assert tokens.shape == (6, 32) and tokens.dtype == torch.int64
    inner = tokens[:, 1:-1] if frame else tokens
    if frame:
        assert bool((tokens[:, 0] == frame[0]).all()) and bool((tokens[:, -1] == frame[1]).all())
    whole = "\n\n".join(TaskFolder(text).texts("train"))
    whole = ModelFolder(model).tokenizer(whole, add_special_tokens=False)["input_ids"]
    pieces = torch.tensor(whole[: len(whole) // inner.shape[1] * inner.shape[1]]).view(-1, inner.shape[1])
    found = [next(n for n, piece in enumerate(pieces) if torch.equal(piece, row)) for row in inner]
    assert len(set(found)) == 6
    assert torch.equal(tokens, drawn(model, text))
    assert not torch.equal(tokens, drawn(model, text, seed=1))


def test_unusable_texts_are_refused(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    model, empty = tiny_model("llama"), tmp_path / "empty"
    empty.mkdir()
    write_manifest(empty, kind="task", task="language-model")
    with pytest.raises(UserError, match=r"calibration: 43 sequences of 32 tokens .* words has text for 42; lower"):
        drawn(model, text, samples=43)
    with pytest.raises(UserError, match=r"calibration.sequence_length: found 65, but llama.* allows 64 tokens"):
        drawn(model, text, samples=1, sequence_length=65)
    with pytest.raises(UserError, match="method wanda: needs a calibration text"):
        prune(model, {"0.5": tmp_path / "out"}, method="wanda", scope="linear")
    with pytest.raises(UserError, match=r"no train.jsonl; the task has no such split"):
        calibrated(model, empty, tmp_path / "out", "0.5", "wanda")
    with pytest.raises(UserError, match=r"method sparsegpt prunes matrices of layers, tensor .* has none; choose"):
        calibrated(model, text, tmp_path / "out", "0.5", "sparsegpt", "all")
    assert not (tmp_path / "out").exists()


def test_sentences_without_a_token_are_left_out(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """The tokenizer of GPT-2 adds no special tokens, so an empty sentence has none at all."""
    shutil.copytree(tiny_model("gpt2"), tmp_path / "model")
    tokenizer = read_json(tmp_path / "model/tokenizer.json")
    write_json(tmp_path / "model/tokenizer.json", tokenizer | {"post_processor": None})
    model, task = ModelFolder(tmp_path / "model"), save_mood_task(tmp_path / "task")
    lines = (task / "train.jsonl").read_text().splitlines()
    empty = [json.dumps(json.loads(line) | {"text": ""}) for line in lines[:3]]
    (task / "train.jsonl").write_text("\n".join([*empty, *lines[3:]]))
    write_manifest(task, kind="task", task="classification", labels=["bad", "good"])
    draw = {"sequence_length": 16, "seed": 0}
    found = calibration.batches(model, TaskFolder(task), samples=len(lines) - 3, **draw)
    assert sum(len(batch["input_ids"]) for batch in found) == len(lines) - 3
    assert all(batch["input_ids"].shape[1] for batch in found)
    with pytest.raises(UserError, match=f"{len(lines)} sentences are asked for, but task has {len(lines) - 3}; lower"):
        calibration.batches(model, TaskFolder(task), samples=len(lines), **draw)


def test_no_more_than_a_block_is_in_memory(
    tiny_model: Callable[[str], Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one block is loaded, every other one is on the device meta."""
    seen = []
    run = calibration.Blocks._run

    def watched(self: Any) -> Any:
        seen.append(
            {name for name in self.names if any(not p.is_meta for p in self._net.get_submodule(name).parameters())}
        )
        return run(self)

    monkeypatch.setattr(calibration.Blocks, "_run", watched)
    calibrated(tiny_model("bart"), text, tmp_path, "0.5", "wanda")
    assert seen == [
        {name} for name in [f"{s}.layers.{n}" for s in ("encoder", "decoder") for n in (0, 1)] for _ in "12"
    ]


def test_inputs_that_are_not_finite_are_named(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    for path in tiny_model("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load(tmp_path)
    name = next(name for name in tensors if "layers.0.input_layernorm" in name)
    tensors[name][0] = float("nan")
    save(tmp_path, tensors, sparse=False)
    with pytest.raises(UserError, match=r"the inputs of model.layers.0.self_attn.q_proj.weight are not finite"):
        calibrated(tmp_path, text, tmp_path / "out", "0.5", "wanda")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_file_without_a_block_s_tensor(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    for path in tiny_model("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load(tmp_path)
    del tensors["model.layers.1.input_layernorm.weight"]
    save(tmp_path, tensors, sparse=False)
    with pytest.raises(UserError, match=r"has no tensor for layers.1.input_layernorm.weight; download the model again"):
        calibrated(tmp_path, text, tmp_path / "out", "0.5", "wanda")


LONGFORMER = {"attention_window": [8, 8], "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 66}
SWITCH = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_experts": 32, "num_sparse_encoder_layers": 1}


def saved(kind: str, tokenizer: Path, folder: Path, **values: Any) -> Path:
    """A model of two layers with RANDOM weights, of a type that needs no entry in `tests.zoo`."""
    depth = {"num_hidden_layers": 2, "num_layers": 2, "num_decoder_layers": 2}
    special = {"vocab_size": 26, "pad_token_id": 0, "bos_token_id": 4, "eos_token_id": 5}
    config = transformers.AutoConfig.for_model(kind, num_attention_heads=4, num_heads=4, **depth, **special, **values)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    for path in tokenizer.glob("token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    write_manifest(folder, kind="model")
    return folder


@pytest.mark.parametrize("method", ["wanda", slow("magnitude+swaps"), slow("magnitude+reconstruct")])
@pytest.mark.parametrize(
    ("kind", "tokenizer", "values", "message"),
    [
        (
            "longformer",
            "bert",
            LONGFORMER,
            r"does not run encoder\.\S+query_global\S+ and 2 other matrices",
        ),
        ("switch_transformers", "bart", SWITCH, r"does not run encoder\.\S+expert_\d+\.wi\.weight and \d+ other"),
    ],
)
def test_matrices_that_the_text_does_not_run_are_refused(
    kind: str, tokenizer: str, values: dict[str, Any], message: str, method: str,
    tiny_model: Callable[[str], Path], text: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """A checkpoint without them would load with random weights in their place."""
    model = saved(kind, tiny_model(tokenizer), tmp_path / kind, **values)
    with pytest.raises(UserError, match=message) as caught:
        prune(
            model, {"0.5": tmp_path / "out"}, method=method, scope="linear", text=text,
            calibration={"samples": 2, "sequence_length": 16, "seed": 0},
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_an_expert_may_have_no_token_in_some_batches(
    tiny_model: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    model = saved("switch_transformers", tiny_model("bart"), tmp_path / "model", **SWITCH | {"num_experts": 3})
    after = calibrated(model, text, tmp_path / "out", "0.5", "magnitude+reconstruct", "layers.1")
    assert after.keys() == load(model).keys()


def test_layers_that_share_keys_and_values_are_refused(
    tiny_model: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "laurel_rank": 4}
    layers = {"num_kv_shared_layers": 1, "layer_types": ["sliding_attention"] * 2, "activation_sparsity_pattern": None}
    inputs = {"vocab_size_per_layer_input": 26, "hidden_size_per_layer_input": 8}
    model = saved("gemma3n_text", tiny_model("llama"), tmp_path / "model", **sizes, **layers, **inputs)
    with pytest.raises(UserError, match=r"are not observed: the last layers use keys and values of earlier ones"):
        calibrated(model, text, tmp_path / "out", "0.5", "wanda")
    assert not (tmp_path / "out").exists()
