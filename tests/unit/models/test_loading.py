import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as tf

from llm_sparsity.data.download import download_model
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_causal, load_classifier


def test_the_head_depends_on_the_seed_alone(tiny_model: Callable[[str], Path]) -> None:
    folder = ModelFolder(tiny_model("bert"))
    torch.manual_seed(1)
    first = load_classifier(folder, labels=2, seed=0).classifier.weight
    torch.manual_seed(2)
    second = load_classifier(folder, labels=2, seed=0).classifier.weight
    assert torch.equal(first, second)
    assert not torch.equal(first, load_classifier(folder, labels=2, seed=1).classifier.weight)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_classifier(folder, labels=2, seed=0)
    assert torch.equal(torch.rand(1), expected)  # the caller's generator is left alone


def test_a_decoder_classifies_at_the_last_token_that_is_no_padding(tiny_model: Callable[[str], Path]) -> None:
    model = load_classifier(ModelFolder(tiny_model("gpt2")), labels=2, seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    pad = model.config.pad_token_id
    with torch.no_grad():
        short = model(torch.tensor([[7, 8, 9]])).logits
        padded = model(
            torch.tensor([[7, 8, 9, pad, pad]]), attention_mask=torch.tensor([[1, 1, 1, 0, 0]])
        ).logits  # fmt: skip
    torch.testing.assert_close(short, padded)


def test_a_decoder_gets_a_padding_token(tiny_model: Callable[[str], Path]) -> None:
    folder = ModelFolder(tiny_model("gpt2"))
    assert folder.tokenizer.pad_token_id == folder.tokenizer.eos_token_id
    assert load_classifier(folder, labels=2, seed=0).config.pad_token_id == folder.tokenizer.pad_token_id


def test_the_output_layer_of_a_causal_model_stays_tied(tiny_model: Callable[[str], Path]) -> None:
    model = load_causal(ModelFolder(tiny_model("llama")))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama", "bart"])
@pytest.mark.parametrize("labels", [2, 3])
def test_the_head_of_another_task_gives_way(
    labels: int, kind: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """A classifier of a hub, downloaded: its head is left out, and the new one depends on the seed alone."""
    shutil.copytree(tiny_model(kind), tmp_path / "mine", ignore=shutil.ignore_patterns("manifest.json"))
    torch.manual_seed(1)
    trained = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "mine", num_labels=labels)
    trained.save_pretrained(tmp_path / "mine")
    trained.base_model.save_pretrained(tmp_path / "body")
    shutil.copyfile(tiny_model(kind) / "tokenizer.json", tmp_path / "body/tokenizer.json")
    shutil.copyfile(tiny_model(kind) / "tokenizer_config.json", tmp_path / "body/tokenizer_config.json")
    architecture = ModelFolder(tmp_path / "mine").family.architecture
    heads = []
    for name in ("mine", "body"):
        download_model(tmp_path / f"{name}-model", source={"folder": str(tmp_path / name)}, architecture=architecture)
        model = load_classifier(ModelFolder(tmp_path / f"{name}-model"), labels=2, seed=0)
        prefix = model.base_model_prefix + "."
        heads.append({key: value for key, value in model.named_parameters() if not key.startswith(prefix)})
        assert model.config.num_labels == 2
    assert heads[0].keys() == heads[1].keys()
    assert heads[0]
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])


def test_a_head_that_this_program_trained_is_kept(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """A run branches off at the folder of an epoch, which has a manifest; for other labels the head is new."""
    folder = tmp_path / "epoch-1"
    shutil.copytree(tiny_model("bert"), folder)
    model = load_classifier(ModelFolder(folder), labels=2, seed=0)
    with torch.no_grad():
        model.classifier.bias.fill_(7)
    model.save_pretrained(folder)
    download_model(tmp_path / "model", source={"folder": str(folder)}, architecture="encoder")
    for kept in (ModelFolder(folder), ModelFolder(tmp_path / "model")):
        assert load_classifier(kept, labels=2, seed=1).classifier.bias.tolist() == [7, 7]
        assert load_classifier(kept, labels=3, seed=1).classifier.bias.tolist() == [0, 0, 0]
        assert json.loads((kept.path / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
