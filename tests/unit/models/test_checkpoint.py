"""Names and shapes of a checkpoint's tensors against the model's parameters. All weights are RANDOM, models tiny."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import check_checkpoint, load_base, load_causal, load_classifier
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.files import read_manifest
from llm_sparsity.study.sparsity import Sparsity
from tests.marks import slow, slow_but
from tests.tiny import save_text_task
from tests.weights import load
from tests.zoo import BART, WORDS, ZOO, make
from tests.zoo import save as save_zoo

Tensors = Mapping[str, Tensor]
Changed = Callable[..., ModelFolder]
BIASED = {"codegen", "gptj", "phi"}  # their output layers have a bias, so no body alone is whole
KINDS = ("bert", "roberta", "distilbert", "gpt2", "llama", "bart")


@pytest.fixture
def changed(tiny_model: Callable[[str], Path], tmp_path: Path) -> Changed:
    """A tiny model whose weight file and configuration were changed."""

    def make(kind: str, change: Callable[[Tensors], Tensors], **config: Any) -> ModelFolder:
        folder = tmp_path / f"changed-{kind}"
        shutil.copytree(tiny_model(kind), folder, dirs_exist_ok=True)
        tensors = {name: tensor.contiguous().clone() for name, tensor in change(load_file(folder / WEIGHTS)).items()}
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | config))
        return ModelFolder(folder)

    return make


WEIGHTS = "model.safetensors"


def renamed(rename: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rename(name): tensor for name, tensor in tensors.items()}


def adapted(tensors: Tensors) -> Tensors:
    """The names of a model of peft that was not merged."""
    found = {}
    for name, tensor in tensors.items():
        stem, adapts = f"base_model.model.{name}", name.endswith(("q_proj.weight", "c_attn.weight", "query.weight"))
        found[stem.replace(".weight", ".base_layer.weight") if adapts else stem] = tensor
        if adapts:
            found[stem.replace(".weight", ".lora_A.default.weight")] = torch.zeros(4, 32)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed(lambda name: f"_orig_mod.{name}"), r"\d+ missing .*; \d+ unexpected .*_orig_mod\..*compiled"),
        (renamed(lambda name: f"module.{name}"), r"unexpected \(module\..*DataParallel"),
        (renamed(lambda name: f"net.{name}"), r"unexpected \(net\..*saved from a wrapper: save the model inside"),
        (adapted, r"unexpected \(base_model\.model\..*an adapter that is not merged"),
        (renamed(lambda name: name.replace(".1.", ".1._orig_mod.")), r"missing .* unexpected .*_orig_mod.*compiled"),
        (lambda tensors: {n: t for n, t in tensors.items() if ".1." not in n}, r"config\.json: \d+ missing"),
        (renamed(lambda name: name.replace(".1.", ".2.")), r"missing .* unexpected .* save both with"),
    ],
)  # fmt: skip
def test_a_file_without_the_models_parameters_is_refused(
    kind: str, change: Callable[[Tensors], Tensors], message: str, changed: Changed
) -> None:
    folder = changed(kind, change)
    with pytest.raises(UserError, match=message) as error:
        check_checkpoint(folder)
    assert "\n" not in str(error.value)
    for load_it in (load_base, lambda model: load_classifier(model, labels=2, seed=0)):
        with pytest.raises(UserError, match=r"tensors do not fit config\.json"):
            load_it(folder)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("gpt2", {"lm_head.bias": torch.ones(26)}, r"1 unexpected \(lm_head\.bias\)"),
        ("llama", {"model.layers.2.input_layernorm.weight": torch.ones(32)}, "1 unexpected"),
        ("llama", {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)}, "an adapter that is not"),
        ("llama", {"model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}, "a quantised checkpoint: choose the"),
        ("bert", {"encoder.layer.0.gate": torch.ones(1)}, "1 unexpected"),
        ("llama", {"_orig_mod.model.norm.weight": torch.ones(32)}, r"1 unexpected \(_orig_mod.*a compiled model"),
        ("llama", {"ema_model.model.norm.weight": torch.ones(32)}, r"1 unexpected \(ema_model.*saved from a wrapper"),
        ("llama", {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4)}, "an adapter that"),
        ("llama", {"prompt_embeddings": torch.ones(4, 32)}, r"1 unexpected \(prompt_embeddings\); an adapter that is"),
        ("gpt2", {"module.h.0.ln_1.bias": torch.ones(32)}, r"1 unexpected \(module.*saved from a wrapper"),
        ("gpt2", {"prompt_encoder.default.embedding.weight": torch.ones(4, 32)}, "an adapter that is not merged"),
        ("bert", {"encoder.layer.0.attention.self.key.ia3_l.default": torch.ones(32)}, "an adapter that is not merged"),
        ("llama", {"model.layers.0.self_attn.k_proj.k_scale": torch.ones(1)}, "a quantised checkpoint"),
        ("llama", {"model.layers.0.mlp.experts.down_proj_blocks": torch.ones(1)}, "a quantised checkpoint"),
    ],
)  # fmt: skip
def test_a_tensor_that_changes_what_the_model_computes_is_refused(
    kind: str, more: Tensors, message: str, changed: Changed
) -> None:
    with pytest.raises(UserError, match=message):
        check_checkpoint(changed(kind, lambda tensors: {**tensors, **more}))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)}),
        ("gpt2", {"transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}),
        ("gpt2", {"score.weight": torch.ones(3, 32), "multiple_choice_head.summary.weight": torch.ones(1, 32)}),
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
        ("bert", {"embeddings.position_ids": torch.arange(64)[None], "cls.predictions.bias": torch.ones(26)}),
        ("roberta", {"roberta.pooler.dense.weight": torch.ones(32, 32), "roberta.pooler.dense.bias": torch.ones(32)}),
        ("distilbert", {"vocab_transform.weight": torch.ones(32, 32), "qa_outputs.bias": torch.ones(2)}),
        ("bart", {"final_logits_bias": torch.ones(1, 26), "encoder.version": torch.ones(1)}),
    ],
)  # fmt: skip
def test_heads_poolers_and_old_buffers_may_lie_beside(kind: str, more: Tensors, changed: Changed) -> None:
    expected = load_base(
        changed(kind, lambda tensors: {n: t for n, t in tensors.items() if n not in more})
    ).state_dict()
    folder = changed(kind, lambda tensors: {**tensors, **more})
    check_checkpoint(folder)
    found = load_base(folder).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items() if "pooler" not in name)


@pytest.mark.parametrize(
    ("kind", "change", "config"),
    [
        ("bert", dict, {"vocab_size": 30}),
        ("gpt2", lambda tensors: {n: t.t() if "c_fc.weight" in n else t for n, t in tensors.items()}, {}),
        ("llama", lambda tensors: {n: t[:16] if "0.self_attn.q_proj" in n else t for n, t in tensors.items()}, {}),
        ("llama", dict, {"intermediate_size": 32}),  # wider than the configuration says
        ("bart", lambda tensors: {n: t[1:] if "shared" in n else t for n, t in tensors.items()}, {}),
    ],
)
def test_other_shapes_are_refused(
    kind: str, change: Callable[[Tensors], Tensors], config: dict[str, Any], changed: Changed
) -> None:
    with pytest.raises(UserError, match=r"\d+ of another shape \(.*: \d+(x\d+)? in place of \d+(x\d+)?"):
        check_checkpoint(changed(kind, change, **config))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "bart"])
def test_narrower_models_and_sparse_files_pass(kind: str, changed: Changed, tmp_path: Path) -> None:
    for method in ("structured", "magnitude"):
        prune(changed(kind, dict), {Sparsity("0.5"): tmp_path / method}, method=method, scope="linear")
        check_checkpoint(ModelFolder(tmp_path / method / "model"))


@pytest.mark.parametrize("kind", slow_but(KINDS, [kind for kind in ZOO if kind not in BIASED]))
def test_a_body_alone_passes(kind: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """The file as transformers saves it without the head of pretraining."""
    body = make(kind, tie_word_embeddings=True).base_model
    body.save_pretrained(tmp_path)
    expected = body.state_dict()
    shutil.copy(tiny_model("bert") / "tokenizer.json", tmp_path)
    assert check_checkpoint(ModelFolder(tmp_path)) == 26
    found = load_base(ModelFolder(tmp_path)).state_dict()
    assert all(
        torch.equal(found[name], value) for name, value in expected.items() if name in found and "pooler" not in name
    )


def test_a_decoder_needs_its_output_layer_unless_it_is_tied(changed: Changed) -> None:
    """`AutoModel.save_pretrained` leaves it out; perplexity would be that of a random output layer."""
    check_checkpoint(changed("llama", dict))  # tied
    body = changed("llama", dict, tie_word_embeddings=False)
    with pytest.raises(
        UserError, match=r"1 missing \(lm_head\.weight\); a body that was saved without its output layer"
    ):
        check_checkpoint(body)
    with pytest.raises(UserError, match="a body that was saved without its output layer"):
        load_causal(body)
    load_base(body)
    classifier = changed(
        "llama", lambda tensors: {**tensors, "score.weight": torch.ones(2, 32)}, tie_word_embeddings=False
    )
    check_checkpoint(classifier)  # it can be fine-tuned, but not scored
    with pytest.raises(UserError, match="a body that was saved without its output layer"):
        load_causal(classifier)


@pytest.mark.parametrize(("kind", "prefix"), [("llama", "model"), ("gpt2", "transformer")])
def test_a_decoder_within_a_wrapper_of_the_same_name_is_refused(kind: str, prefix: str, changed: Changed) -> None:
    """transformers takes one prefix more in the model with a head, but not in the model without one."""
    with pytest.raises(UserError, match=r"\d+ missing .*; saved from a wrapper: save the model inside"):
        check_checkpoint(changed(kind, renamed(lambda name: f"{prefix}.{name}")))


def test_an_output_layer_may_lie_beside_a_body_without_prefix(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = ModelFolder(save_zoo("gpt_neox", tmp_path, tiny_model("gpt2")))
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({n.removeprefix("gpt_neox."): t for n, t in tensors.items()}, tmp_path / WEIGHTS, {"format": "pt"})
    check_checkpoint(folder)
    assert load_causal(folder).get_output_embeddings().weight.equal(tensors["embed_out.weight"])
    load_base(folder)


def test_a_table_that_is_computed_and_not_stored_is_told(tmp_path: Path) -> None:
    tf.MarianMTModel(tf.MarianConfig(**WORDS | BART)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"2 missing \(encoder\.embed_positions.*; transformers computes these and"):
        check_checkpoint(ModelFolder(tmp_path))


def same_prunings(one: ModelFolder, other: ModelFolder, folder: Path, runs: list[dict[str, Any]]) -> None:
    for number, settings in enumerate(runs):
        for name, model in (("one", one), ("other", other)):
            prune(model, {Sparsity("0.5"): folder / f"{name}{number}"}, **settings)
        first, second = (folder / f"{name}{number}" for name in ("one", "other"))
        assert (first / "sparsity.csv").read_text() == (second / "sparsity.csv").read_text()
        assert read_manifest(first / "model")["pruned"] == read_manifest(second / "model")["pruned"]
        expected, found = load(first / "model"), load(second / "model")
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_old_names_of_norms_change_nothing(changed: Changed, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """bert-base-uncased calls the weight and bias of a norm gamma and beta."""
    new = {"weight": "gamma", "bias": "beta"}
    old = changed(
        "bert",
        renamed(lambda n: n.rpartition(".")[0] + "." + new[n.rpartition(".")[2]] if "LayerNorm" in n else n),
    )
    plain = ModelFolder(tiny_model("bert"))
    check_checkpoint(old)
    expected = load_base(plain).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_base(old).state_dict().items())
    text = {
        "text": TaskFolder(save_text_task(tmp_path / "text")),
        "calibration": {"samples": 2, "sequence_length": 16, "seed": 0},
    }
    runs = [{"method": m, "scope": s} for m, s in (("magnitude", "all"), ("random", "all"), ("structured", "linear"))]
    same_prunings(plain, old, tmp_path, [*runs, {"method": "wanda", "scope": "linear", **text}])


@pytest.mark.parametrize(
    ("kind", "tied"),
    [
        ("gpt2", ["transformer.wte", "lm_head"]),
        slow("llama", ["model.embed_tokens", "lm_head"]),
        slow("bert", ["embeddings.word_embeddings", "cls.predictions.decoder"]),
        slow("roberta", ["roberta.embeddings.word_embeddings", "lm_head.decoder"]),
        slow("bart", ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]),
    ],
)
def test_any_copy_of_tied_embeddings_may_be_the_one_in_the_file(
    kind: str, tied: list[str], changed: Changed, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    plain = ModelFolder(tiny_model(kind))
    text = {
        "text": TaskFolder(save_text_task(tmp_path / "text")),
        "calibration": {"samples": 2, "sequence_length": 16, "seed": 0},
    }
    runs = [
        {"method": "magnitude", "scope": "all"},
        {"method": "random", "scope": "embeddings"},
        {"method": "wanda", "scope": "linear", **text},
    ]
    for name in tied[1:]:
        other = changed(kind, renamed(lambda n, name=name: n.replace(f"{tied[0]}.weight", f"{name}.weight")))
        check_checkpoint(other)
        expected, found = load_base(plain).state_dict(), load_base(other).state_dict()
        assert all(torch.equal(value, found[key]) for key, value in expected.items() if "pooler" not in key)
        same_prunings(plain, other, tmp_path / name, runs)
        shutil.copyfile(tiny_model(kind) / WEIGHTS, other.path / WEIGHTS)


def test_a_configuration_that_makes_no_model_is_one_line(changed: Changed) -> None:
    with pytest.raises(UserError, match=r"config\.json: transformers cannot make the model: .*; correct it"):
        check_checkpoint(changed("bert", dict, num_attention_heads=5))


def test_the_model_of_a_real_file_is_whole(shared: Path) -> None:
    assert check_checkpoint(ModelFolder(shared / "models/g2p-bart-us")) == 63


def test_a_reader_gives_module_names(changed: Changed) -> None:
    folder = changed("gpt2", renamed(lambda n: n.replace("transformer.wte", "lm_head")))
    with folder.open() as reader:
        assert "transformer.wte.weight" in reader.names
        assert "lm_head.weight" not in reader.names
        assert reader.shape("transformer.wte.weight") == (26, 32)
        assert reader.dtype("transformer.wte.weight") == torch.float32
        stored = load_file(folder.path / WEIGHTS)["lm_head.weight"]
        assert torch.equal(reader.tensor("transformer.wte.weight"), stored)
    assert isinstance(load_causal(folder), tf.GPT2LMHeadModel)
