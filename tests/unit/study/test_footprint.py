import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_sparsity.study import config, footprint, plan
from llm_sparsity.study.sparsity import Sparsity

STAGES = ["download", "prune", "weights", "measure", "evaluate", "zero_shot", "finetune"]


@pytest.fixture
def study(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Config:
    """The report's study, in a folder in which nothing has run."""
    monkeypatch.chdir(tmp_path)
    footprint._model_size.cache_clear()
    return config.load(yaml.safe_load((root / "config.yaml").read_text()))


def changed(study: config.Config, **values: Any) -> config.Config:
    """The study with other values in the entry of gpt2."""
    models = dict(study.models)
    models["gpt2"] = models["gpt2"].model_copy(update=values)
    return study.model_copy(update={"models": models})


def test_the_size_of_a_model_comes_from_its_config_until_it_is_downloaded(study: config.Config) -> None:
    models = dict(study.models)
    models["gpt2"] = models["gpt2"].model_copy(update={"parameters": 1.25e9})
    large = study.model_copy(update={"models": models})
    assert plan.minutes(large, "prune", "gpt2") == (10 * plan.ASSUMED["prune"], False)
    assert footprint.model_size(large, "gpt2") == (1.25e9, 5e9)
    models["gpt2"] = models["gpt2"].model_copy(update={"parameters": None})
    assert footprint.model_size(large.model_copy(update={"models": models}), "gpt2")[0] == footprint.BASE
    folder = Path("resources/models/gpt2")
    folder.mkdir(parents=True)
    files = {"model.safetensors": {"bytes": 500}, "vocab.json": {"bytes": 7}}
    (folder / "manifest.json").write_text(json.dumps({"files": files, "parameters": 250}))
    assert footprint.model_size(large, "gpt2") == (250, 500)


@pytest.mark.parametrize(
    ("sparsity", "share"), [("0", 1.0), ("0.5", 0.441), ("0.95", 0.049), ("2of4", 0.441), ("0.7", 0.267)]
)
def test_bytes_of_a_sparse_checkpoint(sparsity: str, share: float) -> None:
    assert footprint.stored(Sparsity(sparsity)) == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_memory_and_disk_grow_with_the_model(study: config.Config, stage: str) -> None:
    large = changed(study, parameters=7e9)
    for measure in (footprint.mem_mb, footprint.disk_mb):
        small, more = (
            measure(each, stage, "gpt2", task="sst2", variant="magnitude-all-0.5") for each in (study, large)
        )
        assert isinstance(small, int)
        assert 1000 <= small <= more
        assert small % 100 == more % 100 == 0
    assert footprint.mem_mb(large, stage, "gpt2", task="sst2") > 3 * footprint.mem_mb(study, stage, "gpt2", task="sst2")


def test_jobs_without_a_model(study: config.Config) -> None:
    for stage in ("collect", "plot", "download"):
        assert 1000 <= footprint.mem_mb(study, stage) < 2000
        assert 1000 <= footprint.disk_mb(study, stage) <= 2000
    assert footprint.mem_mb(study, "download", task="sst2") >= 1000
    with pytest.raises(ValueError, match="unknown stage 'train'"):
        footprint.mem_mb(study, "train", "gpt2")


def test_tables_have_weight_statistics_once_a_model(study: config.Config) -> None:
    """So more variants of the same models need little more memory."""
    few, many = (
        study.model_copy(
            update={"study": [grid.model_copy(update={"scopes": scopes, "tasks": []}) for grid in study.study]}
        )
        for scopes in (["all"], ["all", *(f"layers.{number}" for number in range(12))])
    )
    assert len(many.cells().variants) > 4 * len(few.cells().variants)
    added = len(many.cells().variants) - len(few.cells().variants)
    assert footprint._tables(many) - footprint._tables(few) == added * footprint.ROWS < added * footprint.TABLE


def test_what_adds_memory_to_a_fine_tuning(study: config.Config) -> None:
    def needs(study: config.Config, recipe: str = "kept") -> int:
        return footprint.mem_mb(study, "finetune", "gpt2", task="sst2", recipe=recipe)

    assert needs(changed(study, gpus=4)) == pytest.approx(4 * needs(study), rel=0.01)
    assert needs(study, "gradual") > needs(study)
    less = study.finetune.model_copy(update={"gradient_checkpointing": True})
    assert needs(study.model_copy(update={"finetune": less})) < needs(study)


def test_disk_of_a_pruning_follows_its_sparsity(study: config.Config) -> None:
    large = changed(study, parameters=7e9)
    half, most = (footprint.disk_mb(large, "prune", "gpt2", variant=f"magnitude-all-{level}") for level in (0.5, 0.9))
    assert 2 * 28000 * 0.44 < half < 2 * 28000 * 0.45
    assert most < half / 4
    assert footprint.disk_mb(large, "prune", "gpt2", variant="magnitude-linear-0.9") > most, "embeddings are not pruned"


def test_a_model_that_is_converted_to_half_precision_has_half_the_bytes(study: config.Config) -> None:
    entry = study.models["gpt2"]
    source = entry.source.model_copy(update={"dtype": "float16"})
    half = study.model_copy(update={"models": {"gpt2": entry.model_copy(update={"source": source})}})
    assert footprint.model_size(half, "gpt2") == (entry.parameters, 2 * entry.parameters)


# Peak memory of jobs on SmolLM2-135M (134.5 million parameters, 538 MB in float32), MB, of one thread of a CPU.
PEAKS = [
    ("weights", {}, 636),
    ("prune", {"variant": "magnitude-linear-0.5"}, 568),
    ("prune", {"variant": "structured-linear-0.5"}, 499),
    ("prune", {"variant": "wanda-linear-0.5"}, 1479),
    ("prune", {"variant": "sparsegpt-linear-0.5"}, 1474),
    ("measure", {"variant": "dense"}, 2017),
    ("measure", {"variant": "wanda-linear-0.5"}, 3503),
    ("evaluate", {"task": "text"}, 1043),
    ("finetune", {"task": "text"}, 4474),
    ("finetune", {"task": "text", "recipe": "lora"}, 3812),  # of 4 sequences at once
]
SETTINGS = {
    "name": "peaks",
    "study": [{"models": ["smollm2"], "sparsities": ["0"], "tasks": ["text"]}],
    "models": {"smollm2": {"architecture": "decoder", "parameters": 134.5e6, "source": {"folder": "smollm2"}}},
    "tasks": {
        "text": {
            "kind": "language-model", "source": {"folder": "text"}, "files": {"train": "a.txt", "test": "b.txt"},
            "finetune": {"micro_batch_size": 8, "max_length": 128},
            "evaluate": {"sequence_length": 256, "batch_size": 4},
        }
    },
    "calibration": {"task": "text", "samples": 16, "sequence_length": 512},
    "measure": {"batch_sizes": [1, 8], "sequence_length": 128},
}  # fmt: skip


@pytest.mark.parametrize(("stage", "axes", "peak"), PEAKS)
def test_estimates_exceed_measured_peaks_by_less_than_five_times(
    stage: str, axes: dict[str, str], peak: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(footprint, "CUDA", 0.0)
    assert peak < footprint.mem_mb(config.load(SETTINGS), stage, "smollm2", **axes) < 5 * peak
