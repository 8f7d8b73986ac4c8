"""Exported folders, read by transformers in processes of their own. Weights are RANDOM."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from llm_sparsity.cli.main import main
from llm_sparsity.export.cell import find_cell
from llm_sparsity.export.export import export
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage import container
from llm_sparsity.storage.files import write_manifest
from tests import weights

from .conftest import add_run

RUN = "magnitude-linear-0.5/mood/kept/seed-0"
CELLS = {
    f"bert/{RUN}": "BertForSequenceClassification",
    f"bart/{RUN}": "BartForSequenceClassification",
    "llama/int8-linear-0": "LlamaForCausalLM",
}
OTHERS = {
    "bert/structured-mlp-0.5/mood/kept/seed-0": "BertForSequenceClassification",
    "gpt2/magnitude-linear-0.5": "GPT2LMHeadModel",
    f"gpt2/{RUN}": "GPT2ForSequenceClassification",
    "bert/int8-linear-0": "BertModel",
    "gpt2/structured-mlp-0.5": "GPT2LMHeadModel",
    "gpt2/int8-linear-0": "GPT2LMHeadModel",
    "llama/magnitude-linear-0.5": "LlamaForCausalLM",
    "llama/structured-linear-0.5": "LlamaForCausalLM",
    "bart/structured-mlp-0.5": "BartModel",
    "bart/dense": "BartModel",
}


@pytest.mark.parametrize(
    ("cell", "model_class"),
    [
        *list(CELLS.items())[:1],
        *(pytest.param(*item, marks=pytest.mark.slow) for item in list(CELLS.items())[1:]),
        *(pytest.param(*item, marks=pytest.mark.exhaustive) for item in OTHERS.items()),
    ],
)
def test_transformers_alone_computes_the_same(cell: str, model_class: str, study: Path, tmp_path: Path) -> None:
    exported = export(find_cell(study / "results" / cell), tmp_path / "out")
    assert exported.checked is not None
    assert exported.checked.difference <= 1e-5
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == [model_class]
    assert not {"quantization_config", "compression_config", "auto_map"} & config.keys()
    assert {"README.md", "tokenizer.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    if model_class.endswith(("LM", "LMHeadModel")):
        assert (tmp_path / "out/generation_config.json").exists()
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "bart"])
def test_widths_that_no_configuration_has_are_refused(kind: str, study: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"structured pruning has made .*; for other programs, prune with `mlp`"):
        export(find_cell(study / "results" / kind / "structured-layers.0-0.5"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_classifier_prints_the_labels_of_its_task(study: Path, tmp_path: Path) -> None:
    export(find_cell(study / "results/gpt2" / RUN), tmp_path / "out", check=False)
    classify = transformers.pipeline("text-classification", str(tmp_path / "out"))
    found = classify(["the film was good", "the story was bad"], batch_size=2)
    assert {row["label"] for row in found} <= {"bad", "good"}
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").label2id == {"bad": 0, "good": 1}


def test_a_regression_keeps_its_number(study: Path, tmp_path: Path) -> None:
    task = tmp_path / "resources/tasks/grades"
    task.mkdir(parents=True)
    for split in ("train", "validation"):
        lines = (study / f"resources/tasks/mood/{split}.jsonl").read_text().splitlines()
        rows = [row | {"label": 5.0 * row["label"]} for row in map(json.loads, lines)]
        (task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(task, kind="task", task="regression", score="pearsonr")
    (tmp_path / "resources/models").symlink_to(study / "resources/models")
    add_run(tmp_path, "bert", "dense", "grades", 0)
    exported = export(find_cell(tmp_path / "results/bert/dense/grades/kept/seed-0"), tmp_path / "out", check=False)
    assert exported.model_class == "BertForSequenceClassification"
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.num_labels, config.problem_type) == (1, "regression")
    assert exported.scores[0].metric == "pearsonr"


def test_weights_keep_their_bits_and_dtype(study: Path, tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        source = tmp_path / str(dtype)
        source.mkdir()
        container.copy_companions(study / "resources/models/llama", source)
        tensors = weights.load(study / "resources/models/llama")
        weights.save(source, {name: tensor.to(dtype) for name, tensor in tensors.items()})
        export(find_cell(source), tmp_path / f"{dtype}-out", check=False)
        found = weights.load(tmp_path / f"{dtype}-out")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name].to(dtype)) for name in tensors)
        assert json.loads((tmp_path / f"{dtype}-out/config.json").read_text())["dtype"] == str(dtype)[6:]


@pytest.mark.slow
def test_weights_of_several_dtypes_keep_theirs_in_shards(study: Path, tmp_path: Path) -> None:
    source = tmp_path / "mixed"
    container.copy_companions(study / "resources/models/llama", source)
    tensors = weights.load(study / "resources/models/llama")
    mixed = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in tensors.items()}
    weights.save(source, mixed, sparse=False)
    export(find_cell(source), tmp_path / "out", max_shard_size="10KB")  # and it is checked
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert files == set(index["weight_map"].values())
    assert len(files) > 2
    found = weights.load(tmp_path / "out")
    assert all(torch.equal(found[name], mixed[name]) and found[name].dtype == mixed[name].dtype for name in mixed)


def test_int8_is_written_as_the_values_that_were_measured(study: Path, tmp_path: Path) -> None:
    cell = find_cell(study / "results/llama/int8-linear-0")
    exported = export(cell, tmp_path / "out", check=False)
    own, found = weights.load(cell.folder.path), weights.load(tmp_path / "out")
    assert all(torch.equal(own[name], found[name]) for name in own)
    assert exported.quantised == "int8"


def test_a_head_that_the_folder_does_not_hold_is_not_made_up(study: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    container.copy_companions(study / "resources/models/bert", source)
    weights.save(source, weights.load(study / "resources/models/bert"), sparse=False)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    assert export(find_cell(source), tmp_path / "out", check=False).model_class == "BertModel"
    assert weights.load(tmp_path / "out").keys() == weights.load(source).keys()


def test_pickles_and_code_beside_a_model_stay_behind(study: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    container.copy_companions(study / "resources/models/llama", source)
    weights.save(source, weights.load(study / "resources/models/llama"), sparse=False)
    for name in ("pytorch_model.bin", "modeling_own.py", "LICENSE"):
        (source / name).write_text("x")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling_own.Own"}}))
    export(find_cell(source), tmp_path / "out", check=False)
    assert "auto_map" not in json.loads((tmp_path / "out/config.json").read_text())
    assert {"pytorch_model.bin", "modeling_own.py"}.isdisjoint(path.name for path in (tmp_path / "out").iterdir())
    assert (tmp_path / "out/LICENSE").exists()


def test_a_folder_that_exists_is_refused_and_stays(study: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already; name a new folder, or remove this one"):
        export(find_cell(study / "results/llama/int8-linear-0"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_leaves_nothing(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llm_sparsity.export.export.draw", fail)
    with pytest.raises(KeyboardInterrupt):
        export(find_cell(study / "results/llama/int8-linear-0"), tmp_path / "out", check=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_weight_that_changed_fails_the_check(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_sparsity.export import export as module

    def damage(model: torch.nn.Module, folder: ModelFolder, output: Path, size: str) -> None:
        save(model, folder, output, size)
        tensors = weights.load(output)
        tensors["model.norm.weight"] *= 1.01
        weights.save(output, tensors, sparse=False)

    save = module.save_plain
    monkeypatch.setattr(module, "save_plain", damage)
    with pytest.raises(UserError, match="transformers alone computes other outputs"):
        export(find_cell(study / "results/llama/int8-linear-0"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_says_what_was_written(study: Path, root: Path, tmp_path: Path) -> None:
    words = ["export", "results/llama/int8-linear-0", "--output", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "llm_sparsity", *words], cwd=study, env={"PYTHONPATH": str(root / "workflow")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "LlamaForCausalLM" in done.stdout
    assert "dequantised" in done.stdout
    assert "the largest difference is 0" in done.stdout


def test_the_command_names_the_nearest_result(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    with pytest.raises(SystemExit, match=r"no such result; the nearest result is results/llama/int8-linear-0$"):
        main(["export", "results/lama/int8-linear-0", "--output", str(tmp_path / "out")])


def changed(study: Path, kind: str, folder: Path, **config: object) -> Path:
    """A dense model of a study, whose configuration is changed."""
    shutil.copytree(study / "resources/models" / kind, folder)
    values = {**json.loads((folder / "config.json").read_text()), **config}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


@pytest.mark.slow
def test_outputs_that_are_not_finite_are_no_equal_outputs(study: Path, tmp_path: Path) -> None:
    folder = changed(study, "bert", tmp_path / "model")
    tensors = {name: tensor.clone() for name, tensor in weights.load(folder).items()}
    next(tensor for name, tensor in tensors.items() if "word_embeddings" in name)[7] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="computes outputs that are not finite; nothing is written"):
        export(find_cell(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_names_no_class_keeps_its_head(study: Path, tmp_path: Path) -> None:
    folder = changed(study, "bert", tmp_path / "model", architectures=None)
    exported = export(find_cell(folder), tmp_path / "out", check=False)
    assert exported.model_class == ("BertForMaskedLM" if "cls." in str(weights.load(folder).keys()) else "BertModel")
    assert weights.load(tmp_path / "out").keys() == weights.load(folder).keys()


def test_weights_of_float64_are_written_as_they_are(study: Path, tmp_path: Path) -> None:
    folder = changed(study, "bert", tmp_path / "model")
    tensors = {name: tensor.double() / 3 for name, tensor in weights.load(folder).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    export(find_cell(folder), tmp_path / "out", check=False)
    found = weights.load(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items() if name in found)


def test_a_classifier_is_padded_as_it_was_trained(study: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(study / f"results/gpt2/{RUN}", run)
    path = run / "model/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    export(find_cell(run), tmp_path / "out", check=False)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").padding_side == "right"
