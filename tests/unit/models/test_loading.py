import json
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import save_file
from transformers.core_model_loading import GLOBAL_WORKERS

from llm_sparsity.data.download import download_model
from llm_sparsity.models.checkpoint import ModelReader
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import StoredTensor, load_base, load_causal, load_classifier, loading_dtype
from tests.marks import slow


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


@pytest.mark.parametrize("option", [{"return_dict": False}, {"output_attentions": True}])
def test_what_a_configuration_returns_is_not_asked(
    option: dict[str, bool], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_model("gpt2"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | option))
    for net in (load_causal(ModelFolder(tmp_path)), load_classifier(ModelFolder(tmp_path), labels=2, seed=0)):
        found = net(torch.tensor([[7, 8, 9]]))
        assert found.logits.shape[0] == 1
        assert found.attentions is None
        net.config.save_pretrained(tmp_path / "saved")


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


@pytest.mark.parametrize("kind", ["bert", slow("roberta"), slow("distilbert"), "gpt2", slow("llama"), "bart"])
@pytest.mark.parametrize("labels", [slow(2), 3])
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
    architecture = ModelFolder(tmp_path / "mine").structure.architecture
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


def half(folder: Path, target: Path, keep: str = "^$") -> ModelFolder:
    """A copy of a model with its weights in bfloat16, except those whose names match `keep`."""
    shutil.copytree(folder, target)
    with ModelReader(folder, ModelFolder(folder).structure) as reader:
        tensors = {name: reader.tensor(name) for name in reader.names}
    stored = {name: tensor if re.search(keep, name) else tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    return ModelFolder(target)


def test_a_gpu_gets_a_model_in_its_own_dtype(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """In which its weights are exact; the norms of half-precision models are often float32."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    plain, found = ModelFolder(tiny_model("llama")), half(tiny_model("llama"), tmp_path / "half")
    mixed = half(tiny_model("llama"), tmp_path / "mixed", keep="norm")
    assert [loading_dtype(folder, cpu) for folder in (plain, found, mixed)] == 3 * [torch.float32]
    assert [loading_dtype(folder, cuda) for folder in (plain, found, mixed)] == [
        torch.float32, torch.bfloat16, torch.float32
    ]  # fmt: skip
    for load in (load_base, load_causal):
        narrow, wide = load(found, torch.bfloat16), load(found)
        assert {weight.dtype for weight in narrow.parameters()} == {torch.bfloat16}
        expected = dict(wide.named_parameters())
        assert all(torch.equal(weight.float(), expected[name]) for name, weight in narrow.named_parameters())


def test_loading_holds_the_model_and_a_few_tensors(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the tensors as they are stored, no more than one for each of transformers' threads is in memory at a time."""
    folder, alive, most, read = (
        half(tiny_model("llama"), tmp_path / "half"),
        weakref.WeakSet(),
        0,
        StoredTensor.__getitem__,
    )

    def counted(self: StoredTensor, index: object) -> torch.Tensor:
        nonlocal most
        alive.add(tensor := read(self, index))
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(StoredTensor, "__getitem__", counted)
    names = load_causal(folder).state_dict()
    assert 0 < most <= GLOBAL_WORKERS < len(names) / 2


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_model_without_values_reads_none(
    kind: str, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ModelFolder(tiny_model(kind))
    whole = load_classifier(folder, labels=2, seed=0)
    monkeypatch.setattr(ModelReader, "tensor", None)
    empty = load_classifier(folder, labels=2, seed=0, values=False)
    assert [(name, weight.shape) for name, weight in empty.named_parameters()] == [
        (name, weight.shape) for name, weight in whole.named_parameters()
    ]
    assert {weight.device.type for weight in empty.parameters()} == {"cpu"}
    held = dict(empty.named_buffers())
    assert all(torch.equal(buffer, held[name]) for name, buffer in whole.named_buffers())
