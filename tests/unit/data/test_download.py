"""Downloaded folders: their checks, their single weight file, and their replacement."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llm_sparsity.data.download import download_model
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.container import is_sparse
from llm_sparsity.storage.files import read_manifest, sha256, write_manifest
from tests.weights import load, save
from tests.zoo import save as save_zoo


def test_model_from_a_folder(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    download_model(tmp_path / "model", source={"folder": str(tiny_model("bert"))}, architecture="encoder")
    assert read_manifest(tmp_path / "model")["model_type"] == "bert"
    with pytest.raises(UserError, match="folder: found '/no/such', which is no folder"):
        download_model(tmp_path / "x", source={"folder": "/no/such"}, architecture="encoder")


def test_files_of_a_folder_are_copied(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Later edits of a user's folder do not reach the downloaded one."""
    shutil.copytree(tiny_model("bert"), tmp_path / "mine")
    download_model(tmp_path / "model", source={"folder": str(tmp_path / "mine")}, architecture="encoder")
    (tmp_path / "mine/config.json").write_bytes(b"")
    assert read_manifest(tmp_path / "model")["files"]["config.json"]["sha256"] == sha256(tmp_path / "model/config.json")


def test_sparse_container_keeps_its_bytes_and_its_pruned_facts(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """A study may start from a pruned or fine-tuned folder, whose mask has to be known."""
    pruned = tmp_path / "pruned"
    shutil.copytree(tiny_model("bert"), pruned, ignore=shutil.ignore_patterns("*.safetensors"))
    save(pruned, {name: tensor * (tensor > 0) for name, tensor in load(tiny_model("bert")).items()})
    write_manifest(pruned, kind="model", pruned={"scope": "linear", "sparsity": "0.5"})
    download_model(tmp_path / "model", source={"folder": str(pruned)}, architecture="encoder")
    manifest = read_manifest(tmp_path / "model")
    assert manifest["pruned"] == {"scope": "linear", "sparsity": "0.5"}
    assert manifest["files"]["model.safetensors"] == read_manifest(pruned)["files"]["model.safetensors"]
    assert is_sparse(tmp_path / "model")


def shard(folder: Path, files: int) -> None:
    """Divide the weights of a model folder into several files with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {}
    for number in range(files):
        name = f"model-{number + 1:05}-of-{files:05}.safetensors"
        part = dict(list(weights.items())[number::files])
        save_file(part, folder / name, {"format": "pt"})
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize("files", [1, 3])
def test_shards_become_one_file(files: int, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("gpt2"), tmp_path / "shards")
    shard(tmp_path / "shards", files)
    download_model(tmp_path / "model", source={"folder": str(tmp_path / "shards")}, architecture="decoder")
    manifest = read_manifest(tmp_path / "model")
    assert [name for name in manifest["files"] if "safetensors" in name] == ["model.safetensors"]
    assert {path.name for path in (tmp_path / "model").iterdir()} == {*manifest["files"], "manifest.json"}
    assert manifest["files"]["model.safetensors"]["sha256"] == sha256(tmp_path / "model/model.safetensors")
    before, after = load_file(tiny_model("gpt2") / "model.safetensors"), load_file(tmp_path / "model/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not is_sparse(tmp_path / "model")


def test_another_model_replaces_all_files(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model-00001-of-00001.safetensors").write_bytes(b"of another model")
    (model / "model.safetensors.index.json").write_text("{}")
    (model / "notes.md").write_text("the user's")
    download_model(model, source={"folder": str(tiny_model("bert"))}, architecture="encoder")
    assert {path.name for path in model.iterdir()} == {*read_manifest(model)["files"], "manifest.json", "notes.md"}
    before = {path: path.read_bytes() for path in model.iterdir()}
    with pytest.raises(UserError):
        download_model(model, source={"folder": str(tiny_model("gpt2"))}, architecture="encoder")
    assert {path: path.read_bytes() for path in model.iterdir()} == before  # a failure changes nothing


def test_other_architecture_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"architecture: found 'decoder', but .* is an encoder \(bert\)"):
        download_model(tmp_path / "model", source={"folder": str(tiny_model("bert"))}, architecture="decoder")
    assert not (tmp_path / "model/manifest.json").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_a_link_out_of_the_folder_is_refused(name: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "mine")
    outside = shutil.copy(tmp_path / "mine/model.safetensors", tmp_path / "elsewhere")
    (tmp_path / "mine" / name).unlink(missing_ok=True)
    (tmp_path / "mine" / name).symlink_to(outside)
    with pytest.raises(
        UserError, match=f"mine: '{name}' is a link to '.*/elsewhere', outside its folder; put the file"
    ):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "mine")}, architecture="encoder")


def test_truncated_weights_are_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "half")
    weights = tmp_path / "half/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "half")}, architecture="encoder")
    assert not (tmp_path / "model/manifest.json").exists()


def test_missing_shard_is_named(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "shards", ignore=shutil.ignore_patterns("*.safetensors"))
    save_file({"a": torch.ones(1)}, tmp_path / "shards/model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "shards/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"shard model-00002-of-00002\.safetensors of .* is missing"):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "shards")}, architecture="encoder")


def test_shards_without_an_indexed_tensor(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "m")
    shard(tmp_path / "m", 2)
    index = tmp_path / "m/model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": shards | {"absent.weight": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(UserError, match=r"index\.json: names absent\.weight, which no shard holds"):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")
    index.write_text(json.dumps({"weight_map": shards | {"absent.weight": "../other/model.safetensors"}}))
    with pytest.raises(UserError, match=r"weight_map: found '\.\./other/model\.safetensors', which is outside"):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")
    for damaged in ("[]", "{", '{"weight_map": []}'):
        index.write_text(damaged)
        with pytest.raises(UserError, match="no index of a transformers model"):
            download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")


def test_an_index_beside_a_single_file_is_stale(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """As transformers reads it: shards of an earlier model may lie beside one that was saved over them."""
    shutil.copytree(tiny_model("bert"), tmp_path / "m")
    weights = load_file(tmp_path / "m/model.safetensors")
    old = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    save_file(old, tmp_path / "m/model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}
    (tmp_path / "m/model.safetensors.index.json").write_text(json.dumps(index))
    download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")
    assert sha256(tmp_path / "model/model.safetensors") == sha256(tiny_model("bert") / "model.safetensors")


@pytest.mark.parametrize(
    ("absent", "message"),
    [("config.json", "no config.json; expected"), ("tokenizer.json", r"no tokenizer; expected one of tokenizer\.json")],
)
def test_incomplete_model(absent: str, message: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "m", ignore=shutil.ignore_patterns(absent))
    with pytest.raises(UserError, match=message):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")
    (tmp_path / "m" / absent).write_text("{not json")
    if absent == "config.json":
        with pytest.raises(UserError, match="not the configuration of a transformers model"):
            download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")


def test_buffers_are_not_counted_as_parameters(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Old GPT-2 files contain causal masks, old BERT files position ids."""
    shutil.copytree(tiny_model("gpt2"), tmp_path / "old")
    weights = load_file(tmp_path / "old/model.safetensors")
    buffers = {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    buffers["embeddings.position_ids"] = torch.arange(64)
    save_file(weights | buffers, tmp_path / "old/model.safetensors")
    download_model(tmp_path / "model", source={"folder": str(tmp_path / "old")}, architecture="decoder")
    assert read_manifest(tmp_path / "model")["parameters"] == sum(weight.numel() for weight in weights.values())


@pytest.mark.parametrize("equal", [True, False])
def test_an_output_layer_counts_unless_it_is_a_copy(
    equal: bool, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Some files hold a tied output layer beside the embeddings. transformers unties tensors that differ."""
    shutil.copytree(tiny_model("gpt2"), tmp_path / "old")
    weights = load_file(tmp_path / "old/model.safetensors")
    words = weights["transformer.wte.weight"]
    save_file(weights | {"lm_head.weight": words.clone() if equal else words + 1}, tmp_path / "old/model.safetensors")
    download_model(tmp_path / "model", source={"folder": str(tmp_path / "old")}, architecture="decoder")
    counted = sum(weight.numel() for weight in weights.values()) + (0 if equal else words.numel())
    assert read_manifest(tmp_path / "model")["parameters"] == counted


def test_float64_is_no_quantised_dtype(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "m")
    weights = load_file(tmp_path / "m/model.safetensors")
    save_file({name: weight.double() for name, weight in weights.items()}, tmp_path / "m/model.safetensors")
    download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_quantised_weights_are_refused(dtype: torch.dtype, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("llama"), tmp_path / "m")
    weights = load_file(tmp_path / "m/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(weights | {name: weights[name].to(dtype)}, tmp_path / "m/model.safetensors")
    with pytest.raises(UserError, match=rf"{name} is \w+, a quantised weight; choose the unquantised checkpoint"):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="decoder")


def test_an_adapter_beside_its_base_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """transformers would load it too, where peft is installed."""
    shutil.copytree(tiny_model("bert"), tmp_path / "m")
    (tmp_path / "m/adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config\.json is of an adapter that is not merged; merge it into"):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")


def test_another_programs_manifest_keeps_no_head(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    net = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_model("bert"), num_labels=2)
    shutil.copytree(tiny_model("bert"), tmp_path / "m")
    net.save_pretrained(tmp_path / "m")
    (tmp_path / "m/manifest.json").write_text('{"name": "web app"}')
    download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")
    assert not any("classifier" in name for name in load(tmp_path / "model"))


def test_an_adapter_alone_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("llama"), tmp_path / "m")
    (tmp_path / "m/model.safetensors").rename(tmp_path / "m/adapter_model.safetensors")
    with pytest.raises(UserError, match=r"an adapter alone, and no model\.safetensors; merge it"):
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="decoder")


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without_special(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", bos_token=None, eos_token=None)


def sentencepiece_only(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")


def with_more_tokens(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["one", "two"])
    tokenizer.save_pretrained(folder)


def without_end(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", post_processor=None)


def with_ends(end: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", eos_token_id=end)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("gpt2", without_special, "neither a padding nor an end token; set `pad_token` in tokenizer_config.json"),
        ("llama", sentencepiece_only, r"tokenizer\.model is a sentencepiece file, and there is no tokenizer\.json;"),
        ("gpt2", with_more_tokens, r"has token 27, 'two', but the model has embeddings for 26 tokens; choose"),
        ("bart", without_end, "does not end a text with token 5, `eos_token_id` of config.json, at which bart"),
        ("bart", with_ends(None), r"config\.json: found `eos_token_id` None, but bart .* write its id, 5 in the tok"),
        ("bart", with_ends([5]), r"config\.json: found `eos_token_id` \[5\], but bart classifies at one token"),
        ("bert", lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot load the tokenizer: .*; save it"),
        ("bert", lambda folder: (folder / "tokenizer.json").write_text(""), r"tokenizer\.json is no JSON: .* download"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_cannot_be_used_is_refused_at_download(
    kind: str, change: Callable[[Path], object], message: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_model(kind), tmp_path / "m")
    change(tmp_path / "m")
    architecture = {"bart": "encoder-decoder", "bert": "encoder"}.get(kind, "decoder")
    with pytest.raises(UserError, match=message) as error:
        download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture=architecture)
    assert "\n" not in str(error.value)


def test_all_files_of_a_tokenizer_are_copied(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(tiny_model("roberta"), mine, ignore=shutil.ignore_patterns("token*", "manifest.json"))
    (mine / "vocab.txt").write_text("the 9\nfilm 9\nf@@ 9\n")
    (mine / "bpe.codes").write_text("t h 5\nth e</w> 5\nf i 4\nfi l 4\nfil m</w> 4\n")
    expected = transformers.PhobertTokenizer(str(mine / "vocab.txt"), str(mine / "bpe.codes"))("the film")["input_ids"]
    (mine / "tokenizer_config.json").write_text('{"tokenizer_class": "PhobertTokenizer"}')
    download_model(tmp_path / "model", source={"folder": str(mine)}, architecture="encoder")
    assert ModelFolder(tmp_path / "model").tokenizer("the film")["input_ids"] == expected


def test_a_tokenizer_of_bytes_has_no_vocabulary(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    save_zoo("t5", tmp_path / "m", tiny_model("bert"), vocab_size=384, eos_token_id=1)
    for path in (tmp_path / "m").glob("*token*"):
        path.unlink()
    given = {"source": {"folder": str(tmp_path / "m")}, "architecture": "encoder-decoder"}
    with pytest.raises(UserError, match="no tokenizer; expected one of"):
        download_model(tmp_path / "model", **given)
    transformers.ByT5Tokenizer().save_pretrained(tmp_path / "m")
    download_model(tmp_path / "model", **given)
    assert ModelFolder(tmp_path / "model").tokenizer("ab")["input_ids"] == [100, 101, 1]


def test_a_classification_head_is_left_out(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """It is of another task; the rest, heads of pretraining included, stays bit by bit."""
    shutil.copytree(tiny_model("roberta"), tmp_path / "m", ignore=shutil.ignore_patterns("manifest.json"))
    weights = load_file(tmp_path / "m/model.safetensors")
    head = {"classifier.dense.weight": torch.ones(32, 32), "classifier.out_proj.bias": torch.ones(3)}
    save_file(weights | head, tmp_path / "m/model.safetensors")
    download_model(tmp_path / "model", source={"folder": str(tmp_path / "m")}, architecture="encoder")
    found = load_file(tmp_path / "model/model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
