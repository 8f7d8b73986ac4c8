"""A study of a model that no config knows yet. Weights are RANDOM."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from llm_sparsity.cli.init import init
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.container import copy_companions
from llm_sparsity.study.config import load
from llm_sparsity.study.document import parsed, read_document
from tests import weights, zoo
from tests.standin_hub import Hub, serving
from tests.tiny import ARCHITECTURE, save_tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("bert", "gpt2", "llama", "bart"):
        save_tiny_model(kind, folder / kind)
    return folder


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "bart"])
def test_a_folder_becomes_a_study_that_is_valid(kind: str, models: Path, tmp_path: Path) -> None:
    path = init(str(models / kind), name="mine", output=tmp_path / "mine.yaml")
    text = path.read_text()
    study = load(yaml.safe_load(text))
    model = study.models["mine"]
    assert model.architecture == ARCHITECTURE[kind]
    assert model.source.folder == str(models / kind)
    assert model.parameters is not None and 1e4 < model.parameters < 1e6
    assert text.startswith("# yaml-language-server: $schema=")
    assert Path(text.splitlines()[0].partition("=")[2]).is_file()
    assert "$" not in text.partition("\n")[2], "every placeholder is filled"
    cells = study.cells()
    assert cells.runs or cells.evaluations
    scopes = {variant.scope for _, variant in cells.variants}
    assert {"linear", "attention", "mlp"} <= scopes
    layers = {layer for scope in scopes for layer in scope.split(".")[1:]}
    assert layers <= {"0", "1"}, "layers that there are"


def test_no_method_is_proposed_that_cannot_run_the_layers(models: Path, tmp_path: Path) -> None:
    """A mixture of experts, whose matrices are packed."""
    text = init(
        str(zoo.save("mixtral", tmp_path / "mixtral", models / "llama")), output=tmp_path / "a.yaml"
    ).read_text()
    assert "layers.0.mlp.experts.gate_up_proj: it is not the weight of a linear layer\n" in text
    study = load(parsed(text, "a.yaml"))
    assert study.calibration is None
    assert {variant.method for _, variant in study.cells().variants} == {
        "dense", "magnitude", "uniform", "random", "int8", "int4",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "gpt2", "bart"])
def test_tasks_of_ones_own_take_the_place_of_those_in_the_template(kind: str, models: Path, tmp_path: Path) -> None:
    text = init(str(models / kind), output=tmp_path / "mine.yaml").read_text()
    tasks = text.partition("\ntasks:\n")[2].partition("\n\n")[0]
    comments, *entries = re.split(r"(?m)^(?=  [\w-]+:$)", tasks)
    own = parsed(re.sub(r"(?m)^  # (?!  ).*\n|#   ", "", comments), "mine.yaml")
    for entry, (name, task) in zip(entries, own.items(), strict=True):
        values = parsed(text.replace(entry, ""), "mine.yaml")
        values["tasks"] = (values["tasks"] or {}) | {name: task}
        assert str(load(values).tasks[name].source.folder).startswith("my-")


@pytest.mark.parametrize("kind", ["bert", "llama", "bart"])
def test_a_classifier_may_keep_its_head(kind: str, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / kind, tmp_path / "mine")
    values = json.loads((tmp_path / "mine/config.json").read_text())
    named = values | {"architectures": [f"{kind.title()}ForSequenceClassification"]}
    (tmp_path / "mine/config.json").write_text(json.dumps(named))
    text = init(str(tmp_path / "mine"), output=tmp_path / "mine.yaml").read_text()
    assert load(parsed(text, "mine.yaml")).trains("reviews", "kept")
    kept = load(parsed(text.replace("# head:", "head:").replace("epochs: 2", "epochs: 0"), "mine.yaml"))
    assert kept.models["mine"].head == "reviews" and kept.cells().runs and not kept.trains("reviews", "kept")
    assert "head:" not in init(str(models / kind), output=tmp_path / "other.yaml").read_text()


def test_parameters_are_counted_as_in_a_download(models: Path, tmp_path: Path) -> None:
    """Old checkpoints of GPT-2 hold causal masks, which are no parameters."""
    copy_companions(models / "gpt2", tmp_path / "old")
    tensors = weights.load(models / "gpt2")
    masks = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in (0, 1)}
    weights.save(tmp_path / "old", tensors | masks, sparse=False)
    study = load(yaml.safe_load(init(str(tmp_path / "old"), output=tmp_path / "a.yaml").read_text()))
    assert study.models["old"].parameters == pytest.approx(sum(tensor.numel() for tensor in tensors.values()), 1e-3)


def test_a_name_becomes_a_file_of_that_name(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(models / "bert", tmp_path / "my model, v2")
    monkeypatch.chdir(tmp_path)
    path = init("my model, v2")
    assert str(path) == "my-model--v2.yaml"
    assert load(yaml.safe_load(path.read_text())).models["my-model--v2"].source.folder == str(tmp_path / "my model, v2")


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "bart"])
def test_sequences_fit_the_positions_of_the_model(kind: str, models: Path, tmp_path: Path) -> None:
    """The tiny models have 64 positions; windows of text, batches that are timed, and sentences are usually longer."""
    study = load(yaml.safe_load(init(str(models / kind), output=tmp_path / "a.yaml").read_text()))
    assert study.measure.sequence_length == 64
    if study.calibration is not None:
        assert study.calibration.sequence_length == study.evaluate.sequence_length == 64
    else:
        assert study.finetune.max_length == 64


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the newest commit of owner/name on a hub."""
    with serving(Hub({COMMIT: tmp_path / COMMIT}, []), tmp_path / "cache", monkeypatch):
        yield tmp_path / COMMIT


def test_an_adapter_of_the_hub_is_refused(hub: Path, tmp_path: Path) -> None:
    hub.mkdir()
    (hub / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^owner/name at revision main: has no config.json; an adapter or a GGUF"):
        init("owner/name", output=tmp_path / "name.yaml")


def test_a_repository_of_the_hub_is_pinned_to_its_newest_commit(models: Path, hub: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "llama", hub)
    path = init("owner/name", output=tmp_path / "name.yaml")
    source = load(yaml.safe_load(path.read_text())).models["name"].source
    assert (source.hub, source.revision) == ("owner/name", COMMIT)
    fetched = [file.name for file in (tmp_path / "cache").rglob("snapshots/*/*")]
    assert fetched == ["config.json"], "weights are not downloaded to plan a study"


def test_what_cannot_be_studied_is_refused_in_one_line(models: Path, tmp_path: Path) -> None:
    def refused(model: Path | str, **options: object) -> str:
        with pytest.raises(UserError) as error:
            init(str(model), output=tmp_path / "refused.yaml", **options)  # type: ignore[arg-type]
        assert not (tmp_path / "refused.yaml").exists()
        return str(error.value)

    assert "found no such folder, and it is no repository id" in refused(tmp_path / "nowhere/at/all")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(tmp_path / "empty")
    shutil.copytree(models / "bert", tmp_path / "odd")
    (tmp_path / "odd/config.json").write_text(json.dumps({"model_type": "mine"}))
    assert "'mine' is not one that transformers" in refused(tmp_path / "odd")
    shutil.copytree(models / "bert", tmp_path / "pickle")
    (tmp_path / "pickle/model.safetensors").rename(tmp_path / "pickle/pytorch_model.bin")
    assert "has no safetensors" in refused(tmp_path / "pickle")
    assert "--name: found '../up'" in refused(models / "bert", name="../up")


def test_a_file_is_never_overwritten(models: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    with pytest.raises(UserError, match="exists; remove it"):
        init(str(models / "bert"), output=tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == "precious"


@pytest.mark.parametrize("name", ["0001000", "1.10", "null", "on", "1e3"])
def test_a_name_that_yaml_reads_as_something_else(name: str, models: Path, tmp_path: Path) -> None:
    path = init(str(models / "bert"), name=name, output=tmp_path / "mine.yaml")
    study = load(read_document(path))
    assert study.name == name
    assert list(study.models) == [name]


def test_a_large_model(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_sparsity.data.download.count_parameters", lambda *_: 10_240_000_000)
    path = init(str(models / "llama"), name="big", output=tmp_path / "mine.yaml")
    assert load(read_document(path)).models["big"].parameters == 10.24e9


def test_a_long_name_of_a_folder_is_cut(models: Path, tmp_path: Path) -> None:
    (tmp_path / ("b" * 100)).symlink_to(models / "bert")
    path = init(str(tmp_path / ("b" * 100)), output=tmp_path / "mine.yaml")
    assert list(load(read_document(path)).models) == ["b" * 80]
