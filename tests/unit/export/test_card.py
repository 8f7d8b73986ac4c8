"""The model card: front matter as the hub reads it, and what it says. Weights are RANDOM."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from llm_sparsity import load_config
from llm_sparsity.export.cell import find_cell
from llm_sparsity.export.density import share_left
from llm_sparsity.export.export import export
from llm_sparsity.export.scores import scores
from llm_sparsity.storage.files import read_json, write_json


def card_of(cell: Path, output: Path) -> ModelCard:
    export(find_cell(cell), output, check=False)
    return ModelCard.load(output / "README.md")


def test_a_fine_tuned_run(study: Path, tmp_path: Path) -> None:
    run = study / "results/bert/magnitude-linear-0.5/mood/kept/seed-0"
    card = card_of(run, tmp_path / "out")
    found = card.data
    assert (found.pipeline_tag, found.library_name) == ("text-classification", "transformers")
    assert found.tags == ["llm-sparsity", "pruned", "magnitude"]
    own = read_json(run / "metrics.json")["metrics"]
    assert {result.metric_type: result.metric_value for result in found.eval_results} == own
    assert {(result.dataset_name, result.dataset_split) for result in found.eval_results} == {("mood", "validation")}
    assert "with 50 % of the weights of `linear` removed by `magnitude`, fine-tuned on mood" in card.text
    row = re.search(r"\| mood \(validation, 32 examples\) \| accuracy \| (.*) \|", card.text)
    assert row is not None
    accuracy, seeds, dense = row.group(1).split(" | ")
    assert accuracy.startswith(f"{own['accuracy']:.3f} ± 0.")
    assert "mean of 2 seeds" in card.text
    assert "±" in seeds
    assert "±" in dense
    assert "Not checked" in card.text


def test_a_classifier_that_came_fine_tuned(study: Path, tmp_path: Path) -> None:
    """A study whose model has `head: mood`, and whose runs have no epochs."""
    mine = tmp_path / "study"
    for part in ("results/bert/magnitude-linear-0.5", "resources/models/bert"):
        shutil.copytree(study / part, mine / part)
    run = mine / "results/bert/magnitude-linear-0.5/mood/kept/seed-0"
    result, head = read_json(run / "metrics.json"), {"task": {"name": "mood", "labels": ["bad", "good"]}}
    write_json(run / "metrics.json", result | {"settings": result["settings"] | {"epochs": 0}})
    dense = mine / "resources/models/bert/manifest.json"
    write_json(dense, read_json(dense) | head)
    card = card_of(run, tmp_path / "out")
    said = "by `magnitude`, with the classification head for mood that it came with, not trained any further."
    assert said in card.text
    assert "fine-tuned" not in card.text
    excerpt = yaml.safe_load(card.text.split("```yaml")[1].split("```")[0])
    assert (excerpt["models"]["bert"]["head"], excerpt["finetune"]["epochs"]) == ("mood", 0)


def test_a_fine_tuned_language_model(study: Path, tmp_path: Path) -> None:
    run = study / "results/llama/magnitude-linear-0.5/text/kept/seed-0"
    card, result = card_of(run, tmp_path / "out"), read_json(run / "metrics.json")
    assert {(each.dataset_name, each.dataset_split) for each in card.data.eval_results} == {("text", "test")}
    assert f"| text (test, {result['examples']['validation']} windows) | perplexity |" in card.text
    assert "with nothing removed, fine-tuned by the recipe `kept` and measured in the same way." in card.text


def test_a_dense_model_has_nothing_removed(study: Path, tmp_path: Path) -> None:
    card = card_of(study / "results/bert/dense/mood/kept/seed-0", tmp_path / "out")
    assert "Nothing: the weights are those of the dense model, fine-tuned." in card.text
    assert "density.png" not in card.content
    assert not (tmp_path / "out/density.png").exists()


def test_an_evaluated_quantised_model(study: Path, tmp_path: Path) -> None:
    card = card_of(study / "results/llama/int8-linear-0", tmp_path / "out")
    assert card.data.pipeline_tag == "text-generation"
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "perplexity": 21.5, "nll": 3.0,
    }  # fmt: skip
    assert "| text (test, 1,000 tokens) | perplexity | 21.5 | 20.0 |" in card.text
    assert "The codes and scales of int8 are written as their products, dequantised" in card.text
    assert "with the weights of `linear` quantised by `int8`" in card.text
    assert "Dense is the same model with nothing removed, measured in the same way." in card.text


def test_bytes_are_those_of_the_files(study: Path, tmp_path: Path) -> None:
    cell = study / "results/llama/magnitude-linear-0.5"
    card = card_of(cell, tmp_path / "out")
    dense, sparse, here = (int(text.replace(",", "")) for text in re.findall(r"\| ([\d,]+) \|$", card.text, re.M)[:3])
    assert dense == (study / "resources/models/llama/model.safetensors").stat().st_size
    assert sparse == (cell / "model/model.safetensors").stat().st_size
    assert here == (tmp_path / "out/model.safetensors").stat().st_size
    assert sparse < here


@pytest.mark.parametrize(
    ("stated", "front", "said"),
    [
        ("apache-2.0", {"license": "apache-2.0"}, "as its source states it: apache-2.0"),
        ("MIT License", {"license": "mit"}, "as its source states it: mit"),
        ("Some Own Terms", {"license": "other", "license_name": "some-own-terms"}, "states it: some-own-terms"),
        (None, {}, "Unknown: the source of the base model states none"),
    ],
)
def test_the_licence(stated: str | None, front: dict[str, str], said: str, study: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in (study / "resources/models/llama").iterdir():
        (source / path.name).symlink_to(path)
    (source / "manifest.json").unlink()
    write_json(
        source / "manifest.json", read_json(study / "resources/models/llama/manifest.json") | {"licence": stated}
    )
    card = card_of(source, tmp_path / "out")
    assert {key: value for key, value in card.data.to_dict().items() if key.startswith("license")} == front
    assert said in card.text


def test_a_hub_model_is_linked_and_its_own_card_is_read(study: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in (study / "resources/models/llama").iterdir():
        (source / path.name).symlink_to(path)
    (source / "manifest.json").unlink()
    facts = read_json(study / "resources/models/llama/manifest.json")
    facts["source"] = {"hub": "some/model", "revision": "a" * 40}
    write_json(source / "manifest.json", facts)
    (source / "README.md").write_text(
        "---\nlanguage: [en, de]\nlicense: other\nlicense_name: own\nlicense_link: https://example.org\n"
        "datasets: [a/b]\n---\n# Theirs\n"
    )
    card = card_of(source, tmp_path / "out")
    found = card.data.to_dict()
    assert found["base_model"] == "some/model"
    assert (found["language"], found["datasets"]) == (["en", "de"], ["a/b"])
    assert (found["license"], found["license_name"], found["license_link"]) == ("other", "own", "https://example.org")
    assert "Theirs" not in card.text
    assert "[some/model](https://huggingface.co/some/model)" in card.text


def test_folders_of_this_machine_stay_private(study: Path, tmp_path: Path) -> None:
    facts = read_json(study / "resources/models/llama/manifest.json")
    source = tmp_path / "source"
    source.mkdir()
    for path in (study / "resources/models/llama").iterdir():
        (source / path.name).symlink_to(path)
    (source / "manifest.json").unlink()
    write_json(source / "manifest.json", facts | {"source": {"folder": "/home/somebody/private/llama-own"}})
    card = card_of(source, tmp_path / "out")
    assert "llama-own" in card.text
    assert "somebody" not in card.content
    assert str(tmp_path) not in card.content


def test_what_no_study_can_make_again_has_no_config(study: Path, tmp_path: Path) -> None:
    source = shutil.copytree(study / "resources/models/llama", tmp_path / "llama")
    (source / "manifest.json").unlink()
    card = card_of(source, tmp_path / "out")
    assert "## How to make it again" not in card.text and "## Checked" in card.text


def test_the_picture_has_a_row_for_each_matrix(study: Path, tmp_path: Path) -> None:
    exported = export(find_cell(study / "results/bart/structured-mlp-0.5"), tmp_path / "out", check=False)
    half = [row for row in exported.densities if row.part == "mlp"]
    assert {row.left / row.size for row in half} == {0.5}
    assert {row.left / row.size for row in exported.densities if row.part == "attention"} == {1.0}
    assert {row.stack for row in half} == {"encoder", "decoder"}
    with Image.open(tmp_path / "out/density.png") as picture:
        assert picture.width > 1000


@pytest.mark.parametrize("table", [".", "mood/seed-0"])
def test_a_fine_tuned_model_has_the_sizes_of_its_variant(table: str, study: Path, tmp_path: Path) -> None:
    """Its tensors have other names, and a variant of a fine-tuned model lies below the task."""
    pruned, copied = (root / "results/bert/structured-mlp-0.5" for root in (study, tmp_path))
    shutil.copytree(pruned / "mood/kept/seed-0/model", copied / "mood/kept/seed-0/model")
    (copied / table).mkdir(parents=True, exist_ok=True)
    shutil.copy(pruned / "sparsity.csv", copied / table)
    tuned, before = (
        export(find_cell(cell), tmp_path / name, check=False).densities
        for name, cell in {"tuned": copied / "mood/kept/seed-0", "before": pruned}.items()
    )
    assert [row.size for row in tuned] == [row.size for row in before]
    assert share_left(tuned) < 0.9


def test_scores_of_further_splits_and_diverged_ones(study: Path, tmp_path: Path) -> None:
    run = tmp_path / "results/bert/dense/mnli/kept/seed-0"
    (run / "model").mkdir(parents=True)
    for path in (study / "results/bert/dense/mood/kept/seed-0/model").iterdir():
        (run / "model" / path.name).symlink_to(path)
    metrics = {
        "accuracy": 0.5, "accuracy_mismatched": 0.4, "matthews": 0.3, "matthews_stderr": 0.1, "perplexity": None,
    }  # fmt: skip
    examples = {"train": 64, "validation": 100, "mismatched": 50}
    write_json(run / "metrics.json", {"metrics": metrics, "examples": examples, "score": "matthews"})
    found = {(score.metric, score.split): score for score in scores(find_cell(run))}
    assert list(found) == [("matthews", "validation"), ("accuracy", "validation"), ("accuracy", "mismatched")]
    assert found["accuracy", "mismatched"].examples == 50
    assert found["matthews", "validation"].margin == pytest.approx(0.196, abs=1e-3)
    assert found["accuracy", "validation"].margin == pytest.approx(0.0961, abs=1e-4)  # 1.96 (0.25 / 104)^0.5


def test_a_perfect_score_has_an_interval(study: Path, tmp_path: Path) -> None:
    run = tmp_path / "results/bert/dense/mood/kept/seed-0"
    run.mkdir(parents=True)
    (run / "model").symlink_to(study / "results/bert/dense/mood/kept/seed-0/model")
    write_json(run / "metrics.json", {"metrics": {"accuracy": 1.0}, "examples": {"train": 64, "validation": 32}})
    (score,) = scores(find_cell(run))
    assert score.margin == pytest.approx(0.0748, abs=1e-4)  # 1.96 (34/36 2/36 / 36)^0.5


@pytest.mark.parametrize(
    "cell", ["bert/magnitude-linear-0.5/mood/kept/seed-0", "bert/structured-mlp-0.5", "llama/wanda-linear-0.5"]
)
def test_the_excerpt_is_a_config_that_makes_this_cell(cell: str, study: Path, tmp_path: Path) -> None:
    card = card_of(study / "results" / cell, tmp_path / "out")
    excerpt = re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    assert excerpt is not None
    config = yaml.safe_load(excerpt.group(1))
    mood = {"kind": "classification", "source": {"folder": "mood"}, "columns": ["text", "label"], "text": "text"}
    mood |= {"files": {"train": "t.jsonl", "validation": "v.jsonl"}, "label": "label", "labels": ["bad", "good"]}
    text = {"kind": "language-model", "source": {"folder": "text"}, "files": {"train": "t.txt"}}
    cells = load_config({"name": "again", "tasks": {"mood": mood, "text": text}, **config}).cells()
    places = {str(each.folder) for each in cells.runs} | {f"results/{model}/{each}" for model, each in cells.variants}
    assert f"results/{cell}" in places
