import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from tests import zoo


@pytest.mark.parametrize("config", ["{}", "[]", "not json"])
def test_a_folder_without_a_configuration_is_refused(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"config.json: not the configuration of a transformers model; expected `"):
        ModelFolder(tmp_path)


def test_what_is_no_model_folder_is_told_from_a_bad_file(tmp_path: Path) -> None:
    (tmp_path / "cell/model").mkdir(parents=True)
    (tmp_path / "cell/model/config.json").write_text("{}")
    for path, nearest in (("nowhere", ""), ("cell/model/config.json", ""), ("cell", "; did you mean .*cell/model")):
        with pytest.raises(UserError, match=rf"{path}: no model folder, which has config\.json{nearest}"):
            ModelFolder(str(tmp_path / path))


def test_an_unknown_model_type_is_refused(tmp_path: Path) -> None:
    for more, code in (
        ({}, ""),
        ({"auto_map": {"AutoModel": "modeling.Mine"}}, " and its own code, which is never run,"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", **more}))
        with pytest.raises(UserError, match=rf"config\.json: model type 'mine'{code} is not one that transformers 5\."):
            _ = ModelFolder(tmp_path).structure


def test_a_configuration_with_impossible_values_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "hidden_size": 32, "num_attention_heads": 5})
    )
    with pytest.raises(UserError, match=r"config\.json: .*; correct it") as error:
        _ = ModelFolder(tmp_path).structure
    assert "\n" not in str(error.value)


def test_a_folder_without_a_manifest_is_incomplete(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_model("bert") / "config.json").read_text())
    folder = ModelFolder(tmp_path)
    with pytest.raises(UserError, match=r"no manifest\.json, so this folder is not complete"):
        _ = folder.manifest


def test_facts_are_the_manifest_without_files(tiny_model: Callable[[str], Path]) -> None:
    folder = ModelFolder(tiny_model("gpt2"))
    assert folder.facts["architecture"] == "decoder"
    assert {"files", "bytes"}.isdisjoint(folder.facts)
    assert folder.weight_bytes == (folder.path / "model.safetensors").stat().st_size
    assert folder.pruned is None


@pytest.mark.parametrize(("kind", "scope", "count"), [("bert", "linear", 12), ("gpt2", "linear", 8), ("gpt2", "mlp", 4),
                                                      ("bart", "encoder", 12), ("bart", "decoder", 20)])  # fmt: skip
def test_roles_of_a_scope(kind: str, scope: str, count: int, tiny_model: Callable[[str], Path]) -> None:
    folder = ModelFolder(tiny_model(kind))
    with folder.open() as reader:
        roles = folder.roles(reader.names, scope)
    assert len(roles) == count
    assert all(folder.in_scope(name, scope) for name in roles)


@pytest.mark.parametrize(("kind", "stack", "heads"), [("bert", "encoder", 4), ("gpt2", "decoder", 4),
                                                      ("llama", "decoder", 2), ("bart", "decoder", 4)])  # fmt: skip
def test_heads(kind: str, stack: str, heads: int, tiny_model: Callable[[str], Path]) -> None:
    assert ModelFolder(tiny_model(kind)).structure.groups[stack] == heads


def test_a_folder_is_read_without_heavy_imports(root: Path) -> None:
    code = (
        "import sys, llm_sparsity.models.folder; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(root / "workflow")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq, 4 bits"),
        ({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}, "fp8"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes, 8 bits"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "format": "x"}}, "compressed-tensors"),
        ({"compression_config": {"format": "pack-quantized"}}, "pack-quantized"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "unknown kind, 4 bits"),
    ],
)
def test_quantised_checkpoints_are_refused(config: dict[str, Any], kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    with pytest.raises(UserError, match=rf"a quantised checkpoint \({kind}\).*; choose the unquantised checkpoint"):
        ModelFolder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": None}))
    ModelFolder(tmp_path)


@pytest.mark.parametrize(("kind", "types"), [("bert", 2), ("roberta", 2), ("distilbert", 0), ("gpt2", 0), ("bart", 0)])
def test_token_types(kind: str, types: int, tiny_model: Callable[[str], Path]) -> None:
    assert ModelFolder(tiny_model(kind)).token_types == types


@pytest.mark.parametrize(("kind", "longest"), [("bert", 64), ("roberta", 65), ("gpt2", 64), ("bart", 64)])
def test_the_longest_sequence(kind: str, longest: int, tiny_model: Callable[[str], Path]) -> None:
    folder = ModelFolder(tiny_model(kind))
    assert folder.max_length == longest
    folder.check_length("max_length", longest)
    with pytest.raises(UserError, match=f"max_length: found {longest + 1}, but .* allows {longest} tokens"):
        folder.check_length("max_length", longest + 1)


def test_the_longest_sequence_may_be_that_of_the_type(tmp_path: Path) -> None:
    """config.json may leave out what is the default of its type."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2})
    )
    assert ModelFolder(tmp_path).model_config.max_position_embeddings == 512
    assert ModelFolder(tmp_path).max_length == 512


def test_positions_that_are_relative_are_no_limit(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """T5's n_positions limits nothing; MPT's max_seq_len does."""
    assert ModelFolder(zoo.save("t5", tmp_path / "t5", tiny_model("bert"), n_positions=32)).max_length is None
    assert ModelFolder(zoo.save("mpt", tmp_path / "mpt", tiny_model("llama"), max_seq_len=16)).max_length == 16


def test_a_model_may_have_no_limit_of_length_and_read_the_last_position(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """XLNet's limit is -1, and its head reads what stands last."""
    folder = ModelFolder(zoo.save("xlnet", tmp_path / "xlnet", tiny_model("bert")))
    assert folder.max_length is None
    folder.check_length("max_length", 10**6)
    assert folder.padding_side == "left"
    assert ModelFolder(tiny_model("gpt2")).padding_side == "right"
